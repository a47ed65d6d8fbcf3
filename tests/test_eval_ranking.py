"""Places of fitting items, counted tile by tile, against sorting everything."""

import numpy as np
import pytest
from eval_cases import map_at_r, r_precision, ranking, sets

from divse.evaluation import ranking as module
from divse.evaluation.figures import measure
from divse.evaluation.judgement import Judgement, both_ways
from divse.evaluation.ranking import negatives_ahead
from divse.evaluation.scores import MatrixScores, MeanScores, SetScores
from divse.similarity import score


def ahead_of(scores, gallery, fits):
    """Negatives above or level with each fitting item, best first."""
    order = ranking(scores, gallery, fits)
    return [place - n for n, place in enumerate(i for i, item in enumerate(order) if item in fits)]


def check(judgement, ahead, scores, gallery):
    rows = scores.T if judgement.by_column else scores
    for number, query in enumerate(judgement.queries):
        window = slice(*judgement.offsets[number : number + 2])
        fits = set(judgement.items[window].tolist())
        among = [i for i in gallery if not (judgement.skip_self and i == query)]
        expected = ahead_of(rows[query], among, fits)
        got = ahead[window].tolist() if judgement.every else [ahead[number]]
        assert got == (expected if judgement.every else expected[:1])


@pytest.mark.parametrize("levels", [1, 2, 5, 100_000], ids=lambda n: f"{n} levels")
@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sorted_from", [1, 5, 32])
def test_counts_equal_sorting(monkeypatch, levels, block, dtype, sorted_from):
    monkeypatch.setattr(module, "SORTED", sorted_from)
    monkeypatch.setattr(module, "ROWS", 5)
    rng = np.random.default_rng(levels + block)
    scores = ((rng.integers(0, levels, (17, 43)) - levels // 2) / levels).astype(dtype)
    fits = rng.random(scores.shape) < 0.15
    some = np.sort(rng.permutation(17)[:11]), np.sort(rng.permutation(43)[:30])
    windows = (None, None), some, (np.arange(3, 9), np.arange(10, 31))
    judgements, galleries = [], []
    for images, captions in windows:
        for every in (False, True):
            pair = both_ways(
                *np.nonzero(fits), image_gallery=images, caption_gallery=captions, every=every
            )
            judgements += pair
            galleries += [
                range(43) if captions is None else captions,
                range(17) if images is None else images,
            ]
    found = negatives_ahead(MatrixScores(scores), judgements, block=block)
    for judgement, ahead, gallery in zip(judgements, found, galleries, strict=True):
        check(judgement, ahead, scores, list(gallery))


def test_column_sums_do_not_overflow():
    scores = np.ones((1000, 3), np.float32)
    assert module.column_sums(scores, np.array([0.5, 1.0, 1.5])).tolist() == [1000, 1000, 0]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("gallery", [None, np.array([0, 2, 3, 5, 6, 9])])
def test_a_query_is_no_answer_to_itself(every, gallery):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (10, 10)) / 4
    scores[np.arange(10), np.arange(10)] = 1.0  # nothing is more like it
    first, second = np.nonzero(rng.random((10, 10)) < 0.3)
    queries = np.append(first, [1, 4])  # pairs with itself do not count
    items = np.append(second, [1, 4])
    if gallery is not None:
        keep = np.isin(queries, gallery)
        queries, items = queries[keep], items[keep]
    judgement = Judgement.of_pairs(queries, items, skip_self=True, every=every, gallery=gallery)
    assert not (np.repeat(judgement.queries, judgement.counts) == judgement.items).any()
    (found,) = negatives_ahead(MatrixScores(scores), [judgement], block=4)
    check(judgement, found, scores, list(range(10) if gallery is None else gallery))


def test_self_outside_the_gallery_is_not_taken_off():
    scores = np.array([[1.0, 0.5, 0.7], [0.5, 1.0, 0.2], [0.7, 0.2, 1.0]])
    judgement = Judgement.of_pairs([0], [1], skip_self=True, gallery=np.array([1, 2]))
    assert negatives_ahead(MatrixScores(scores), [judgement])[0].tolist() == [1]


def test_infinite_scores_have_places_too():
    scores = np.array([[np.inf, 0.0, -np.inf], [np.inf, np.inf, 0.0]])
    judgements = both_ways([0, 1], [0, 2])
    found = negatives_ahead(MatrixScores(scores), judgements)
    assert [a.tolist() for a in found] == [[0, 2], [1, 0]]


def test_streamed_equals_whole_and_holds_a_strip_at_most(monkeypatch):
    images, texts = sets(23, 0), sets(57, 1, k=2)
    fits = np.random.default_rng(2).random((23, 57)) < 0.1
    judgements = [j for every in (0, 1) for j in both_ways(*np.nonzero(fits), every=bool(every))]
    whole = score(images, texts, alpha=7.0, impl="reference").numpy()
    expected = negatives_ahead(MatrixScores(whole), judgements, block=64)
    shapes = []

    class Counted(SetScores):
        def tile(self, rows, columns):
            found = super().tile(rows, columns)
            shapes.append(found.shape)
            return found

    monkeypatch.setattr(module, "STRIP", 57 * 4)
    streamed = Counted(images, texts, alpha=7.0, impl="reference")
    told = []
    found = negatives_ahead(
        streamed, judgements, block=10, progress=lambda what, step, total: told.append(step)
    )
    assert max(height * width for height, width in shapes) <= 4 * 10
    assert sum(height * width for height, width in shapes) <= 2 * 23 * 57
    assert sum(told) == 2 * 23
    for got, want in zip(found, expected, strict=True):
        assert got.tolist() == want.tolist()


def test_an_ensemble_is_the_mean_of_the_matrices():
    images, texts = [sets(9, s) for s in (0, 1, 2)], [sets(14, s) for s in (3, 4, 5)]
    members = [SetScores(*pair, impl="reference") for pair in zip(images, texts, strict=True)]
    mean = np.mean(
        [score(*p, impl="reference").numpy() for p in zip(images, texts, strict=True)], 0
    )
    together = MeanScores(members)
    assert together.shape == (9, 14)
    np.testing.assert_allclose(together.tile(slice(2, 7), slice(0, 14)), mean[2:7], rtol=1e-6)
    rows, columns = np.array([8, 0, 3]), np.array([1, 13, 1])
    np.testing.assert_allclose(together.pairs(rows, columns), mean[rows, columns], rtol=1e-5)
    with pytest.raises(ValueError, match="one and the same data"):
        MeanScores([members[0], MatrixScores(np.zeros((9, 13)))])


def test_a_matrix_is_read_from_disk_in_windows(tmp_path):
    matrix = np.random.default_rng(0).random((6, 11)).astype(np.float16)
    np.save(tmp_path / "scores.npy", matrix)
    scores = MatrixScores(np.load(tmp_path / "scores.npy", mmap_mode="r"))
    assert isinstance(scores.matrix, np.memmap)
    judgements = both_ways([0, 3, 5], [1, 1, 10], every=True)
    for got, want in zip(
        negatives_ahead(scores, judgements, block=4),
        negatives_ahead(MatrixScores(matrix), judgements),
        strict=True,
    ):
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize("levels", [2, 1000])
def test_precisions_equal_the_definition(levels):
    rng = np.random.default_rng(levels)
    scores, fits = rng.integers(0, levels, (9, 23)) / levels, rng.random((9, 23)) < 0.25
    judgement, _ = both_ways(*np.nonzero(fits), every=True)
    (ahead,) = negatives_ahead(MatrixScores(scores), [judgement])
    parts = measure(judgement, ahead, ("map_at_r", "r_precision"), judgement.queries)
    for number, query in enumerate(judgement.queries):
        asked = scores[query], list(range(23)), set(np.flatnonzero(fits[query]).tolist())
        assert parts["map_at_r"].values[number] == pytest.approx(map_at_r(*asked), abs=1e-12)
        assert parts["r_precision"].values[number] == pytest.approx(r_precision(*asked), abs=1e-12)


def test_wrong_input_says_what_is_wrong():
    pair = both_ways([0], [1])
    with pytest.raises(ValueError, match="items must lie in 0..0"):
        negatives_ahead(MatrixScores(np.zeros((3, 1))), pair[:1])
    with pytest.raises(ValueError, match="queries must lie in 0..0"):
        negatives_ahead(MatrixScores(np.zeros((3, 1))), pair[1:])
    with pytest.raises(ValueError, match="block"):
        negatives_ahead(MatrixScores(np.zeros((3, 3))), pair, block=0)
    with pytest.raises(ValueError, match="no query has a fitting item"):
        Judgement.of_pairs([2], [2], skip_self=True)
    with pytest.raises(ValueError, match="queries are rows"):
        Judgement.of_pairs([2], [1], skip_self=True, by_column=True)
    with pytest.raises(ValueError, match="hold NaN"):
        negatives_ahead(MatrixScores(np.full((2, 2), np.nan)), pair)
    with pytest.raises(ValueError, match="non-empty"):
        MatrixScores(np.zeros((0, 3)))
    with pytest.raises(TypeError, match="expected numbers"):
        MatrixScores(np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="dimensions"):
        SetScores(sets(2, 0, dim=4), sets(2, 0, dim=5))
    (ahead,) = negatives_ahead(MatrixScores(np.eye(2)), pair[:1])
    with pytest.raises(ValueError, match="every fitting item"):
        measure(pair[0], ahead, ("map_at_r",), pair[0].queries)
