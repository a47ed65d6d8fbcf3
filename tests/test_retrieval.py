"""Retrieval metrics against hand-made matrices and brute force."""

import numpy as np
import pytest
import torch

from divse.evaluation import evaluate, evaluate_sets, map_at_r, ranks, recalls, set_ranks
from divse.sets import EmbeddingSets
from divse.similarity import score

# 3 pictures, 5 captions: captions 0-1 of picture 0, 2 of picture 1, 3-4 of picture 2
SOURCE = np.array([0, 0, 1, 2, 2])
SCORES = np.array(
    [
        [0.9, 0.2, 0.3, 0.1, 0.0],  # best caption is its own: rank 0
        [0.8, 0.7, 0.6, 0.1, 0.0],  # two wrong captions score higher: rank 2
        [0.1, 0.6, 0.5, 0.2, 0.3],  # own captions 0.2, 0.3; two wrong ones higher: rank 2
    ]
)


def brute_force_rank(scores: np.ndarray, positive: np.ndarray) -> int:
    """Sort with the positives last among equals, then find the first positive."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], positive[j]))
    return next((place for place, j in enumerate(order) if positive[j]), -1)


def test_ranks_by_hand():
    got = ranks(SCORES, SOURCE)
    assert got.i2t.tolist() == [0, 2, 2]
    assert got.t2i.tolist() == [0, 2, 0, 0, 0]


def test_recalls_by_hand():
    got = evaluate(SCORES, SOURCE)
    assert got["i2t_r1"] == pytest.approx(100 / 3)
    assert got["t2i_r1"] == pytest.approx(80.0)
    assert got["i2t_r5"] == got["i2t_r10"] == got["t2i_r5"] == got["t2i_r10"] == 100.0
    assert got["rsum"] == pytest.approx(100 / 3 + 80 + 400)
    assert list(got) == [f"{w}_r{k}" for w in ("i2t", "t2i") for k in (1, 5, 10)] + ["rsum"]


def test_constant_scores_earn_nothing():
    source = np.repeat(np.arange(20), 5)
    got = evaluate(np.zeros((20, 100)), source)
    assert got["rsum"] == 0.0
    # a tie with a single negative costs exactly one place
    scores = np.array([[0.5, 0.5], [0.1, 0.9]])
    assert ranks(scores, np.array([0, 1])).i2t.tolist() == [1, 0]


def test_rounding_does_not_decide_a_rank():
    """Two pictures share a caption; fp32 rounds its two copies differently."""
    above = np.nextafter(np.float32(0.7), np.float32(1))
    for own, other in ((0.7, above), (above, 0.7)):
        scores = np.array([[own, other], [0.1, 0.2]], np.float32)
        assert ranks(scores, np.array([0, 1])).i2t.tolist() == [1, 0]
    scores = np.array([[7e-9, 6.9e-9], [0.0, 1e-9]])  # small scores are told apart all the same
    assert ranks(scores, np.array([0, 1])).i2t.tolist() == [0, 0]


def test_relevance_counts_every_fitting_pair():
    fits = np.zeros((3, 5), bool)
    fits[SOURCE, np.arange(5)] = True
    fits[1, 0] = True  # caption 0 fits picture 1 too
    fits[2, 1] = True  # and caption 1 fits picture 2
    fits[:, 4] = False  # caption 4 fits nothing: not judged
    got = ranks(SCORES, SOURCE, fits)
    assert got.i2t.tolist() == [0, 0, 0]
    assert got.t2i.tolist() == [0, 1, 0, 0, -1]
    assert recalls(got)["t2i_r1"] == pytest.approx(75.0)
    assert evaluate(SCORES, SOURCE, fits)["i2t_r1"] == 100.0


@pytest.mark.parametrize("levels", [3, 10_000], ids=["many ties", "few ties"])
@pytest.mark.parametrize("with_relevance", [False, True])
def test_ranks_equal_brute_force(levels, with_relevance):
    rng = np.random.default_rng(levels + with_relevance)
    source = np.sort(rng.integers(0, 13, 41))
    scores = rng.integers(0, levels, (13, 41)) / levels
    positive = np.arange(13)[:, None] == source
    relevance = None
    if with_relevance:
        positive |= rng.random((13, 41)) < 0.1
        relevance = positive
    got = ranks(scores, source, relevance)
    assert got.i2t.tolist() == [
        brute_force_rank(s, p) for s, p in zip(scores, positive, strict=True)
    ]
    assert got.t2i.tolist() == [
        brute_force_rank(s, p) for s, p in zip(scores.T, positive.T, strict=True)
    ]


def test_perfect_and_reversed_scores():
    source = np.repeat(np.arange(30), 5)
    perfect = (np.arange(30)[:, None] == source).astype(np.float32)
    assert evaluate(perfect, source)["rsum"] == 600.0
    assert evaluate(-perfect, source)["rsum"] == 0.0


def random_sets(n: int, k: int, dim: int, seed: int, ragged: bool = False) -> EmbeddingSets:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, dim, generator=generator)
    lengths = torch.randint(1, k + 1, (n,), generator=generator) if ragged else None
    return EmbeddingSets.of(values, lengths)


@pytest.mark.parametrize("block", [1, 7, 64, 2048])
@pytest.mark.parametrize("with_relevance", [False, True])
def test_streamed_equals_whole(block, with_relevance):
    images, texts = random_sets(12, 4, 16, 0), random_sets(33, 3, 16, 1, ragged=True)
    source = np.sort(np.random.default_rng(2).integers(0, 12, 33))
    relevance = np.random.default_rng(3).random((12, 33)) < 0.2 if with_relevance else None
    scores = score(images, texts, alpha=9.0, impl="reference")
    options = {"alpha": 9.0, "impl": "reference"}
    got = set_ranks(images, texts, source, relevance, block=block, **options)
    whole = ranks(scores, source, relevance)
    assert got.i2t.tolist() == whole.i2t.tolist()
    assert got.t2i.tolist() == whole.t2i.tolist()
    streamed = evaluate_sets(images, texts, source, relevance=relevance, block=block, **options)
    assert streamed == evaluate(scores, source, relevance)


def test_streaming_never_scores_more_than_a_block(monkeypatch):
    shapes = []

    def counted(a, b, *args, **kwargs):
        shapes.append((len(a), len(b)))
        return score(a, b, *args, **kwargs)

    monkeypatch.setattr("divse.evaluation.scores.score", counted)
    images, texts = random_sets(20, 2, 8, 0), random_sets(20, 2, 8, 1)
    set_ranks(images, texts, np.arange(20), block=5)
    assert max(a * b for a, b in shapes) == 25
    # 16 tiles; only the 4 on the diagonal hold positives and are scored a second time
    assert len(shapes) <= 20
    shapes.clear()
    set_ranks(images, texts, np.arange(20), block=20)
    assert shapes == [(20, 20)]  # one tile is scored once


@pytest.mark.parametrize("similarity", ["chamfer", "mil", "maxsim"])
def test_any_similarity(similarity):
    images, texts = random_sets(6, 2, 8, 4), random_sets(9, 2, 8, 5)
    source = np.array([0, 0, 1, 2, 3, 3, 4, 5, 5])
    scores = score(images, texts, similarity)
    got = evaluate_sets(images, texts, source, similarity=similarity, block=4)
    assert got == evaluate(scores, source)


def test_tensors_and_half_precision_are_accepted():
    scores = torch.tensor(SCORES, dtype=torch.bfloat16, requires_grad=True)
    assert ranks(scores, torch.tensor(SOURCE)).i2t.tolist() == [0, 2, 2]
    whole = (SCORES * 10).astype(np.uint8)
    assert ranks(whole, SOURCE).i2t.tolist() == [0, 2, 2]
    fits = np.ones((3, 5), bool)
    assert map_at_r(whole, fits)["t2i_map_at_r"] == 100.0


def brute_force_map_at_r(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    total = int(positive.sum())
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], positive[j]))[:total]
    hits = [bool(positive[j]) for j in order]
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(total)]
    return sum(p for p, hit in zip(precision, hits, strict=True) if hit) / total, sum(hits) / total


def test_map_at_r_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    fits = np.array([[True, False, True, True]])
    got = map_at_r(scores, fits)
    # places 1 and 3 of the first R = 3 hit: AP@R = (1 + 2/3) / 3, R-Precision = 2/3
    assert got["i2t_map_at_r"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert got["i2t_r_precision"] == pytest.approx(100 * 2 / 3)
    # captions 0, 2, 3 each have one fitting picture among one; caption 1 has none
    assert got["t2i_map_at_r"] == got["t2i_r_precision"] == 100.0


@pytest.mark.parametrize("levels", [2, 1000])
def test_map_at_r_equals_brute_force(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (9, 23)) / levels
    fits = rng.random((9, 23)) < 0.25
    got = map_at_r(scores, fits)
    for way, s, f in (("i2t", scores, fits), ("t2i", scores.T, fits.T)):
        expected = np.array(
            [brute_force_map_at_r(a, b) for a, b in zip(s, f, strict=True) if b.any()]
        )
        assert got[f"{way}_map_at_r"] == pytest.approx(100 * expected[:, 0].mean())
        assert got[f"{way}_r_precision"] == pytest.approx(100 * expected[:, 1].mean())


def test_map_at_r_of_constant_scores_is_zero_where_negatives_suffice():
    fits = np.zeros((4, 40), bool)
    fits[np.repeat(np.arange(4), 10), np.arange(40)] = True
    assert map_at_r(np.ones((4, 40)), fits)["i2t_map_at_r"] == 0.0


@pytest.mark.parametrize(
    ("scores", "source", "relevance", "words"),
    [
        (np.zeros(5), SOURCE, None, "matrix"),
        (np.zeros((0, 5)), SOURCE, None, "non-empty"),
        (SCORES, SOURCE[:4], None, "one integer per caption"),
        (SCORES, SOURCE.astype(float), None, "one integer per caption"),
        (SCORES, SOURCE + 1, None, r"\[0, 3\)"),
        (SCORES, SOURCE, np.zeros((3, 4), bool), "relevance must be bool"),
        (SCORES, SOURCE, np.zeros((3, 5)), "relevance must be bool"),
        (SCORES, SOURCE, np.zeros((3, 5), bool), "no pair at all"),
        (SCORES * np.nan, SOURCE, None, "NaN"),
    ],
)
def test_wrong_input_says_what_is_wrong(scores, source, relevance, words):
    with pytest.raises(ValueError, match=words):
        ranks(scores, source, relevance)
