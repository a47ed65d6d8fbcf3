"""PMRP on a tiny COCO, against its definition."""

import json

import numpy as np
import pytest
from eval_cases import (
    DATA,
    IMAGES,
    KEPT,
    OWNER,
    matrix,
    mean,
    measured,
    r_precision,
    write_instances,
    write_pairs,
)

from divse.evaluation.protocols import Sources


def plausible(labels, scores, pictures):
    """PMRP of some pictures, both ways, by PCME's definition."""
    pictures = [i for i in pictures if labels[i].any()]
    captions = [t for t in KEPT if OWNER[t] in pictures]
    found = {}
    for way, queries, gallery in (("i2t", pictures, captions), ("t2i", captions, pictures)):
        rows = scores if way == "i2t" else scores.T
        values = []
        for zeta in (0, 1, 2):
            for q in queries:
                own = labels[q if way == "i2t" else OWNER[q]]
                far = {g: (labels[OWNER[g] if way == "i2t" else g] != own).sum() for g in gallery}
                near = {g for g, distance in far.items() if distance <= zeta}
                values.append(r_precision(rows[q], gallery, near))
        found[f"{way}_r_precision"] = mean(values)
    return found


def test_pmrp_by_the_definition(tmp_path):
    labels = write_instances(tmp_path / "instances.json", DATA)
    np.save(tmp_path / "labels.npy", labels.astype(np.uint8))
    scores = matrix(50)
    for file in ("instances.json", "labels.npy"):
        sources = Sources(plausible=tmp_path / file)
        got, protocol = measured("pmrp", scores, sources)
        assert got == pytest.approx(plausible(labels, scores, IMAGES))
        assert 4 not in protocol.tasks[0].judgement.queries, "a picture without a class"
        folds = [plausible(labels, scores, [i, i + 1]) for i in range(0, 10, 2)]
        got, _ = measured("pmrp-1k", scores, sources)
        assert got == pytest.approx({name: np.mean([f[name] for f in folds]) for name in folds[0]})


def test_pmrp_of_listed_pairs_and_wrong_files(tmp_path):
    i2t, t2i = write_pairs(tmp_path, DATA, "pm")
    scores = matrix()
    got, _ = measured("pmrp", scores, Sources(plausible=tmp_path))
    assert got == pytest.approx(
        {
            "i2t_r_precision": mean(r_precision(scores[q], KEPT, set(f)) for q, f in i2t.items()),
            "t2i_r_precision": mean(
                r_precision(scores[:, q], IMAGES, set(f)) for q, f in t2i.items()
            ),
        }
    )
    np.save(tmp_path / "wrong.npy", np.full((10, 3), 2))
    np.save(tmp_path / "none.npy", np.zeros((10, 3)))
    (tmp_path / "wrong.json").write_text(json.dumps({"images": []}))
    other = {"annotations": [{"image_id": 5_000_000, "category_id": 1}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    for name, path, words in (
        ("pmrp", None, "needs its ground truth"),
        ("pmrp-1k", tmp_path, "folds need class labels"),
        ("pmrp", tmp_path / "wrong.npy", "expected 0 and 1"),
        ("pmrp", tmp_path / "none.npy", "no picture has a class"),
        ("pmrp", tmp_path / "wrong.json", "expected COCO's instances"),
        ("pmrp", tmp_path / "other.json", "none of its annotations"),
        ("pmrp", tmp_path / "absent.json", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            measured(name, scores, Sources(plausible=path))
