"""COCO, Flickr30K and one's own data on a tiny COCO, against plain references."""

from dataclasses import replace

import numpy as np
import pytest
from eval_cases import (
    DATA,
    IMAGES,
    KEPT,
    OWNER,
    first_five,
    map_at_r,
    matrix,
    mean,
    measured,
    r_precision,
    ranking,
    recall,
)

from divse.evaluation.corpus import Corpus
from divse.evaluation.protocols import PROTOCOLS, Sources


def test_first_five_captions_of_each_picture():
    assert DATA.captions == 52
    assert DATA.first_captions().tolist() == KEPT and len(KEPT) == 50
    shuffled = replace(DATA, image_of_caption=np.random.default_rng(5).permutation(OWNER))
    assert shuffled.first_captions().tolist() == first_five(shuffled)


def whole(scores, pictures, captions):
    """Recalls among some pictures and their captions, by sorting."""
    found = {}
    for k in (1, 5, 10):
        found[f"i2t_r{k}"] = mean(
            recall(scores[i], captions, {t for t in captions if OWNER[t] == i}, k) for i in pictures
        )
        found[f"t2i_r{k}"] = mean(
            recall(scores[:, t], pictures, {int(OWNER[t])}, k) for t in captions
        )
    return found | {"rsum": sum(found.values())}


@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_coco_5k_and_flickr_rank_all_pictures_with_five_captions_each(levels):
    scores = matrix(levels)
    for name, title in (("coco-5k", "COCO 10"), ("f30k", "Flickr30K 10")):
        got, protocol = measured(name, scores)
        assert got == pytest.approx(whole(scores, IMAGES, KEPT))
        assert protocol.title == title


@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_coco_1k_is_the_mean_of_five_consecutive_folds(levels):
    scores = matrix(levels)
    folds = [
        whole(scores, pictures, [t for t in KEPT if OWNER[t] in pictures])
        for pictures in ([0, 1], [2, 3], [4, 5], [6, 7], [8, 9])
    ]
    got, protocol = measured("coco-1k", scores)
    assert got == pytest.approx({name: np.mean([f[name] for f in folds]) for name in folds[0]})
    assert protocol.title == "COCO, folds of 2 (mean of 5 folds)"
    real = PROTOCOLS["coco-1k"](Corpus("coco", 5000, np.arange(25_000) // 5), Sources())
    assert real.title == "COCO 1K (mean of 5 folds)"
    assert [len(task.judgement) for task in real.tasks] == [1000, 5000] * 5
    with pytest.raises(ValueError, match="5 divides"):
        measured("coco-1k", np.zeros((3, 3)), data=Corpus("three", 3, np.arange(3)))


def test_own_data_is_judged_by_all_that_fits():
    scores = matrix()
    fits = np.random.default_rng(1).random(scores.shape) < 0.1
    fits[3] = fits[:, 8] = False  # queries without a fitting item are not asked
    got, protocol = measured("own", scores, data=replace(DATA, relevance=fits))
    captions = list(range(DATA.captions))
    asked = {
        "i2t": [(scores[i], captions, set(np.flatnonzero(fits[i]))) for i in IMAGES],
        "t2i": [(scores[:, t], IMAGES, set(np.flatnonzero(fits[:, t]))) for t in captions],
    }
    for way, queries in asked.items():
        judged = [query for query in queries if query[2]]
        assert got[f"{way}_r5"] == pytest.approx(mean(recall(*query, 5) for query in judged))
        assert got[f"{way}_map_at_r"] == pytest.approx(mean(map_at_r(*q) for q in judged))
        assert got[f"{way}_r_precision"] == pytest.approx(mean(r_precision(*q) for q in judged))
    assert [len(task.judgement) for task in protocol.tasks] == [9, fits.any(0).sum()]
    sources, _ = measured("own", scores)
    assert sources["i2t_r1"] == pytest.approx(
        mean(recall(scores[i], captions, set(np.flatnonzero(i == OWNER)), 1) for i in IMAGES)
    )


def test_ties_lose_a_place():
    """A picture's caption that scores like a wrong one is not found first."""
    data = Corpus("pair", 2, np.array([0, 1]))
    scores = np.array([[0.5, 0.5], [0.1, 0.9]])
    got, _ = measured("own", scores, data=data)
    assert got["i2t_r1"] == 50.0 and got["i2t_map_at_r"] == 50.0
    assert ranking(scores[0], [0, 1], {0}) == [1, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_of_caption": np.array([0.5])}, "one integer a caption"),
        ({"image_of_caption": OWNER + 1}, "must lie in 0..9"),
        ({"relevance": np.zeros((10, 52))}, "must be bool"),
        ({"relevance": np.zeros((10, 52), bool)}, "no pair at all"),
        ({"image_ids": np.zeros(10, np.int64)}, "10 different ids"),
        ({"caption_ids": np.arange(51)}, "52 different ids"),
    ],
)
def test_a_wrong_corpus_says_what_is_wrong(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(DATA, **changes)
