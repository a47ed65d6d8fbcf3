"""CxC on a tiny COCO, against plain references."""

from dataclasses import replace

import numpy as np
import pytest
from eval_cases import (
    DATA,
    IMAGES,
    KEPT,
    OWNER,
    caption_name,
    image_name,
    mean,
    needs_package,
    recall,
    sets,
    write_csv,
    write_cxc,
)

from divse.evaluation.corpus import Corpus
from divse.evaluation.eccv import coco_test_ids, coco_test_images
from divse.evaluation.protocols import PROTOCOLS, Sources, answer
from divse.evaluation.scores import SetScores
from divse.similarity import score


def test_cxc_retrieval_in_four_ways(tmp_path):
    rows = write_cxc(tmp_path, DATA)
    images, texts = sets(10, 0), sets(52, 1)
    sides = {"i2t": (images, texts), "i2i": (images, images), "t2t": (texts, texts)}
    protocol = PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path))
    made = {name: SetScores(*pair, impl="reference") for name, pair in sides.items()}
    (found,) = answer([protocol], made, block=7)
    scores = {name: score(*pair, impl="reference").numpy() for name, pair in sides.items()}

    fits = {name: {} for name in ("i2t", "t2i", "i2i", "t2t")}
    for t, i, rating in rows["sits"]:
        if rating >= 3 and t in KEPT:
            fits["i2t"].setdefault(i, set()).add(t)
            fits["t2i"].setdefault(t, set()).add(i)
    for a, b, rating in rows["sis"]:
        if rating >= 2.5:
            fits["i2i"].setdefault(a, set()).add(b)
            fits["i2i"].setdefault(b, set()).add(a)
    for t in KEPT:
        fits["t2t"][t] = {u for u in KEPT if OWNER[u] == OWNER[t] and u != t}
    for a, b, rating in rows["sts"]:
        if rating >= 3 and a in KEPT and b in KEPT:
            fits["t2t"][a].add(b)
            fits["t2t"][b].add(a)
    assert any(r == 3.0 for *_, r in rows["sits"]), "a rating on the edge counts"
    assert len(fits["i2i"]) < 10, "some pictures have no positive"
    gallery = {"i2t": KEPT, "t2i": IMAGES, "i2i": IMAGES, "t2t": KEPT}
    for way, queries in fits.items():
        table = scores["i2t"].T if way == "t2i" else scores[way]
        for k in (1, 5, 10):
            expected = mean(
                recall(table[q], [g for g in gallery[way] if way[0] != way[2] or g != q], some, k)
                for q, some in queries.items()
            )
            assert found.figures[f"{way}_r{k}"].value == pytest.approx(expected)
    assert set(found.correlations) == {"sits", "sis", "sts"}
    assert not protocol.notes


def test_cxc_says_what_it_left_out(tmp_path):
    write_cxc(tmp_path, DATA)
    (tmp_path / "sts_test.csv").unlink()
    smaller = replace(
        DATA,
        image_of_caption=OWNER[:40],
        caption_ids=DATA.caption_ids[:40],
    )
    protocol = PROTOCOLS["cxc"](smaller, Sources(cxc=tmp_path))
    assert len(protocol.notes) == 2 and "left out" in protocol.notes[0] + protocol.notes[1]
    assert {task.way for task in protocol.tasks} == {"i2t", "t2i", "i2i"}
    only = protocol.without({"i2i", "t2t"})
    assert {task.way for task in only.tasks} == {"i2t", "t2i"} and set(only.rated) == {"sits"}
    assert "i2i, t2t is left out" in only.notes[-1]
    with pytest.raises(FileNotFoundError, match="sits_val.csv"):
        PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path, split="val"))
    with pytest.raises(ValueError, match="ids, and those of tiny are not known"):
        PROTOCOLS["cxc"](replace(DATA, caption_ids=None), Sources(cxc=tmp_path))
    with pytest.raises(ValueError, match="same split of COCO"):
        PROTOCOLS["cxc"](replace(DATA, image_ids=np.arange(10) + 10_000), Sources(cxc=tmp_path))
    write_csv(tmp_path / "sits_test.csv", [(caption_name(DATA, 0), image_name(DATA, 0), "five")])
    with pytest.raises(ValueError, match=r"sits_test.csv, line 2: got .*five"):
        PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path))


@needs_package
def test_cxc_without_its_files_takes_what_the_package_has():
    captions = coco_test_ids()
    images = coco_test_images(captions)
    data = Corpus("coco", 5000, np.arange(25_000) // 5, None, images, captions)
    cxc = PROTOCOLS["cxc"](data, Sources())
    assert [len(task.judgement) for task in cxc.tasks] == [5000, 24_972]
    assert "--cxc FOLDER" in cxc.notes[0]
