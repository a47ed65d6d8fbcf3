"""ECCV Caption on a tiny COCO, against plain references and the package eccv-caption."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from eval_cases import (
    DATA,
    IMAGES,
    KEPT,
    WAYS,
    corpus,
    map_at_r,
    matrix,
    mean,
    measured,
    needs_package,
    r_precision,
    ranking,
    recall,
    write_pairs,
)

from divse.evaluation.corpus import Corpus
from divse.evaluation.eccv import coco_test_ids, coco_test_images, package_folder
from divse.evaluation.protocols import Sources


def test_eccv_caption_by_the_definition(tmp_path):
    i2t, t2i = write_pairs(tmp_path, DATA, "eccv")
    scores = matrix()
    got, protocol = measured("eccv", scores, Sources(eccv=tmp_path))
    expected = {}
    for way, truth, rows, gallery in (
        ("i2t", i2t, scores, KEPT),
        ("t2i", t2i, scores.T, IMAGES),
    ):
        asked = [(rows[q], gallery, set(fits)) for q, fits in truth.items()]
        expected[f"{way}_map_at_r"] = mean(map_at_r(*q) for q in asked)
        expected[f"{way}_r_precision"] = mean(r_precision(*q) for q in asked)
        expected[f"{way}_r1"] = mean(recall(*q, 1) for q in asked)
    assert got == pytest.approx(expected)
    assert [len(task.judgement) for task in protocol.tasks] == [len(i2t), len(t2i)]


def test_a_caption_that_cannot_be_found_counts_in_r(tmp_path):
    """As the sixth captions of pictures do that ECCV Caption names."""
    i2t, _ = write_pairs(tmp_path, DATA, "eccv")
    scores, sixth = matrix(1000), next(t for t in range(52) if t not in KEPT)
    file = tmp_path / "eccv_image_to_caption.json"
    content = json.loads(file.read_text())
    content[str(DATA.image_ids[2])].append(int(DATA.caption_ids[sixth]))
    file.write_text(json.dumps(content))
    got, _ = measured("eccv", scores, Sources(eccv=tmp_path))
    values = []
    for query, fits in i2t.items():
        total = len(fits) + (query == 2)
        order = ranking(scores[query], KEPT, set(fits))[:total]
        values.append(len(set(order) & set(fits)) / total)
    assert got["i2t_r_precision"] == pytest.approx(mean(values))


def test_eccv_caption_needs_every_id(tmp_path):
    write_pairs(tmp_path, DATA, "eccv")
    for ids in (np.arange(52), np.where(np.arange(52) == 0, 7, DATA.caption_ids)):
        with pytest.raises(ValueError, match="caption ids are not in tiny"):
            measured("eccv", matrix(), Sources(eccv=tmp_path), replace(DATA, caption_ids=ids))
    file = tmp_path / "eccv_image_to_caption.json"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected JSON"):
        measured("eccv", matrix(), Sources(eccv=tmp_path))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="eccv_image_to_caption.json"):
        measured("eccv", matrix(), Sources(eccv=tmp_path))


def peer():
    """The Metrics of eccv-caption; it warns where ujson is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics
    return Metrics()


@needs_package
def test_equals_eccv_caption_on_a_tiny_coco(tmp_path):
    """All its figures but those that need more than 50 captions, with its code, on our truth."""
    data = corpus(extra=False)
    ids = data.image_ids.tolist(), data.caption_ids.tolist()
    metrics, sources = peer(), {}
    for prefix, seed in (("eccv", 5), ("cxc", 6), ("pm", 7)):
        write_pairs(tmp_path / prefix, data, prefix, seed)
        sources[prefix] = [tmp_path / prefix / f"{prefix}_{way}.json" for way in WAYS]
    metrics.set_eccv_gts(*sources["eccv"])
    metrics.set_pm_gts(*sources["pm"])
    metrics.coco_ids = data.caption_ids
    owner = {t: [ids[0][i]] for t, i in zip(ids[1], data.image_of_caption, strict=True)}
    own = {i: [t for t, (o,) in owner.items() if o == i] for i in ids[0]}
    metrics.coco_gts = {"i2t": own, "t2i": owner}
    scores = np.random.default_rng(8).permutation(500).reshape(10, 50) / 500
    i2t = {i: [ids[1][t] for t in np.argsort(-scores[n])] for n, i in enumerate(ids[0])}
    t2i = {t: [ids[0][i] for i in np.argsort(-scores[:, n])] for n, t in enumerate(ids[1])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metrics.compute_all_metrics(
            i2t,
            t2i,
            target_metrics=(
                *("eccv_r1", "eccv_map_at_r", "eccv_rprecision"),
                *("coco_1k_recalls", "coco_5k_recalls"),
            ),
        )
        theirs["pmrp"] = metrics.pmrp({"i2t": i2t, "t2i": t2i}, "all")
    truth = Sources(eccv=tmp_path / "eccv", plausible=tmp_path / "pm")
    for protocol, names in (
        ("eccv", {"r1": "eccv_r1", "map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision"}),
        ("coco-1k", {f"r{k}": f"coco_1k_r{k}" for k in (1, 5, 10)}),
        ("coco-5k", {f"r{k}": f"coco_5k_r{k}" for k in (1, 5, 10)}),
        ("pmrp", {"r_precision": "pmrp"}),
    ):
        got, _ = measured(protocol, scores, truth, data)
        for ours, name in names.items():
            for way in ("i2t", "t2i"):
                assert got[f"{way}_{ours}"] == pytest.approx(100 * theirs[name][way], abs=1e-9)


@needs_package
def test_equals_eccv_caption_on_its_own_ground_truth(tmp_path):
    """A part of it: 80 queries a way, among the pictures that they name; bench_eval.py takes all.

    Two of the pictures have a fitting caption that is not among the 25,000.
    """
    i2t, t2i = (json.loads((package_folder() / f"eccv_{way}.json").read_text()) for way in WAYS)
    captions, images = coco_test_ids(), coco_test_images(coco_test_ids())
    i2t = {i: i2t[i] for i in ["575916", "421999", *list(i2t)[:78]]}
    t2i = {t: t2i[t] for t in list(t2i)[:80]}
    named = np.isin(captions, [int(t) for t in [*t2i, *sum(i2t.values(), [])]])
    pictures = np.isin(images, [int(i) for i in [*i2t, *sum(t2i.values(), [])]])
    pictures |= named.reshape(5000, 5).any(1)
    ids = images[pictures], captions[np.repeat(pictures, 5)]
    owner = np.arange(len(ids[1])) // 5
    data = Corpus("part", len(ids[0]), owner, image_ids=ids[0], caption_ids=ids[1])
    for way, truth in zip(WAYS, (i2t, t2i), strict=True):
        (tmp_path / f"eccv_{way}.json").write_text(json.dumps(truth))
    scores = np.random.default_rng(0).random((data.images, data.captions), dtype=np.float32)
    scores[owner, np.arange(len(owner))] += 0.5
    got, protocol = measured("eccv", scores, Sources(eccv=tmp_path), data)
    assert protocol.tasks[0].judgement.lost.sum() == 2
    places = [{int(name): n for n, name in enumerate(side)} for side in ids]
    lists = {
        "i2t": {int(i): best(scores[places[0][int(i)]], ids[1].tolist()) for i in i2t},
        "t2i": {int(t): best(scores[:, places[1][int(t)]], ids[0].tolist()) for t in t2i},
    }
    metrics = peer()
    metrics.set_eccv_gts(*(tmp_path / f"eccv_{w}.json" for w in WAYS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metrics.eccv_metrics(lists, "all")
    names = {"map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision", "r1": "eccv_r1"}
    for way in ("i2t", "t2i"):
        for ours, name in names.items():
            figure = got[f"{way}_{ours}"]
            assert figure == pytest.approx(100 * theirs[name][way], abs=1e-9) and 1 < figure < 99


def best(scores: np.ndarray, ids: list[int], count: int = 64) -> list[int]:
    top = np.argpartition(-scores, count)[:count]
    return [ids[item] for item in top[np.argsort(-scores[top])]]
