"""Explanations of hits: the weights of every similarity, and parts that sum to the score."""

import numpy as np
import pytest
import torch
from gallery_cases import ragged, sets, vectors
from hypothesis import given
from hypothesis import strategies as st

import divse
from divse.search import Searcher, explain_hits
from divse.search.explanation import HitExplanation
from divse.search.gallery import Gallery

WEIGHT_OF_ALL = {
    ("smooth_chamfer", ()): 1,
    ("smooth_chamfer", (("log_mean", True),)): 1,
    ("smooth_chamfer", (("alpha", 90.0),)): 1,
    ("chamfer", ()): 1,
    ("mil", ()): 1,
    ("maxsim", ()): None,  # the number of query elements
    ("maxsim", (("reduction", "mean"),)): 1,
}


@pytest.mark.parametrize(("similarity", "options"), WEIGHT_OF_ALL)
@pytest.mark.parametrize("make", [sets, ragged])
def test_parts_sum_to_the_score(make, similarity, options):
    queries, gallery = make(3, 3, 8, seed=7), make(20)
    positions = np.array([[0, 4, 19], [3, 2, -1], [-1, -1, -1]])
    found = explain_hits(queries, gallery, positions, similarity, **dict(options))
    assert [[hit.position for hit in row] for row in found] == [[0, 4, 19], [3, 2], []]
    scores = divse.score(queries, gallery, similarity, impl="reference", **dict(options))
    for number, row in enumerate(found):
        for hit in row:
            k = 3 if queries.lengths is None else queries.lengths[number]
            size = 4 if gallery.lengths is None else gallery.lengths[hit.position]
            assert hit.cosines.shape == hit.weights.shape == (k, size)
            expected = queries.values[number, :k] @ gallery.values[hit.position, :size].T
            np.testing.assert_allclose(hit.cosines, expected, atol=1e-6)
            assert hit.score == pytest.approx(scores[number, hit.position], abs=1e-6)
            assert hit.contributions.sum() + hit.remainder == pytest.approx(hit.score, abs=1e-12)
            assert (hit.weights >= 0).all() and hit.shares.sum() == pytest.approx(1)
            everything = WEIGHT_OF_ALL[similarity, options] or k
            assert hit.weights.sum() == pytest.approx(everything)
            if similarity != "smooth_chamfer":
                assert hit.remainder == pytest.approx(0, abs=1e-12)


@given(
    st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.1, 1.0, 16.0, 300.0]), st.integers(0)
)
def test_weights_and_remainder_are_the_closed_form(k, size, alpha, seed):
    queries, gallery = sets(1, k, 6, seed % 2**32), sets(1, size, 6, (seed + 1) % 2**32)
    hit = explain_hits(queries, gallery, np.zeros((1, 1), int), alpha=alpha)[0][0]
    rows = torch.softmax(alpha * torch.from_numpy(hit.cosines), 1)
    columns = torch.softmax(alpha * torch.from_numpy(hit.cosines), 0)
    np.testing.assert_allclose(hit.weights, rows / (2 * k) + columns / (2 * size), atol=1e-12)
    entropy = torch.special.entr(rows).sum() / k + torch.special.entr(columns).sum() / size
    assert hit.remainder == pytest.approx(float(entropy) / (2 * alpha), abs=1e-12)
    assert -1e-12 <= hit.remainder <= np.log(k * size) / (2 * alpha) + 1e-12


def test_chamfer_counts_each_row_and_column_once():
    x = torch.eye(4)[None, :2]
    y = torch.nn.functional.normalize(torch.tensor([[[1.0, 0.1, 0, 0], [1.0, 0.3, 0, 0]]]), dim=-1)
    hit = explain_hits(x, y, torch.tensor([[0]]), "chamfer")[0][0]
    # rows: element 0 meets 0, element 1 meets 1; columns: both elements of y meet 0
    np.testing.assert_allclose(hit.weights, [[0.5, 0.25], [0, 0.25]])
    assert [pair[:2] for pair in hit.pairs()] == [(0, 0), (0, 1), (1, 1)]
    assert [pair[:2] for pair in hit.matches()] == [(0, 0), (1, 1)]
    assert [pair[:2] for pair in hit.pairs(1)] == [(0, 0)]


def test_an_element_that_counts_for_nothing_still_met_its_nearest():
    cosines, weights = np.array([[0.9, 0.1], [0.2, 0.7]]), np.array([[1.0, 0], [0, 0]])
    hit = HitExplanation(0, 0.9, cosines, weights)
    assert [(pair.query, pair.gallery, pair.share) for pair in hit.matches()] == [
        (0, 0, 1.0),
        (1, 1, 0.0),
    ]
    assert len(hit.pairs()) == 1


@pytest.mark.parametrize("make", [sets, ragged])
def test_hits_of_a_gallery(tmp_path, make):
    gallery = Gallery.create(tmp_path / "g", make(12)).add(make(8, seed=3))
    queries = make(2, 3, 8, seed=5)
    found = Searcher(gallery).search_positions(queries, 5)
    for scores, row in zip(found.scores, explain_hits(queries, gallery, found.ids), strict=True):
        np.testing.assert_allclose([hit.score for hit in row], scores, atol=2e-6)


@pytest.mark.parametrize("names", [None, [f"set {row}" for row in range(9)]])
def test_hits_by_their_ids(tmp_path, names):
    gallery = Gallery.create(tmp_path / "g", sets(9), names).remove(["set 2"] if names else [2])
    queries = sets(2, 3, 8, seed=5)
    found = Searcher(gallery).search(queries, 4)
    for scores, row in zip(
        found.scores, explain_hits(queries, gallery, ids=found.ids), strict=True
    ):
        np.testing.assert_allclose([hit.score for hit in row], scores, atol=2e-6)
    with pytest.raises(KeyError, match="no sets with these ids"):
        explain_hits(queries, gallery, ids=[["set 2"] if names else [2]] * 2)
    with pytest.raises(TypeError, match="give positions for sets in memory"):
        explain_hits(queries, sets(9), ids=found.ids)
    with pytest.raises(ValueError, match="one of them"):
        explain_hits(queries, gallery)


def test_ready_for_json():
    found = explain_hits(sets(1, 2), sets(1, 3), np.zeros((1, 1), int))[0][0].to_dict(most=2)
    assert np.shape(found["cosines"]) == np.shape(found["weights"]) == (2, 3)
    assert [sorted(pair) for pair in found["pairs"]] == [
        ["contribution", "cosine", "gallery", "query", "share"]
    ] * 2


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        (np.zeros(3, int), ValueError, r"got int64 \(3,\), expected whole numbers of shape \(1, "),
        (np.zeros((1, 2)), ValueError, "got float64"),
        (np.array([[4]]), IndexError, "got 4, the gallery has 4 sets"),
    ],
)
@pytest.mark.parametrize("gallery", [sets(4), vectors(4, 4, 8)])
def test_wrong_positions_are_refused(gallery, positions, error, message):
    with pytest.raises(error, match=message):
        explain_hits(sets(1), gallery, positions)
