"""Candidates, aligned pairs and kept cosines of divse_native, with gradients, against float64."""

import numpy as np
import pytest
import torch
from native_cases import (
    SHAPES,
    every_isa,
    every_similarity,
    make_lengths,
    make_sets,
    of_maxima,
    plain_scores,
    with_nan_padding,
)
from tolerance import assert_close_to_float64

import divse_native


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def some_candidates(rng, queries, count, gallery):
    candidates = rng.integers(0, gallery, (queries, count))
    candidates[rng.random(candidates.shape) < 0.2] = -1
    candidates[-1] = -1  # a query without any
    return candidates


def gradients(dtype, queries, gallery, grads, candidates=None, **options):
    """Gradients for queries, gallery and alpha of sum(grads * scores), by autograd."""
    alpha = torch.tensor(options.pop("alpha", 1.0), dtype=dtype, requires_grad=True)
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (queries, gallery)]
    if "similarity" not in options:
        options["alpha"] = alpha
    scores = plain_scores(*leaves, **options)
    if candidates is not None:
        scores = scores.gather(1, torch.from_numpy(candidates).clamp_min(0))
        grads = np.where(candidates < 0, 0, grads)
    scores.backward(torch.from_numpy(grads).to(dtype))
    zero = torch.zeros_like(alpha)
    return [*(leaf.grad for leaf in leaves), zero if alpha.grad is None else alpha.grad]


def check_gradients(result, queries, gallery, grads, **options):
    exact, plain = (
        gradients(dtype, queries, gallery, grads, **options)
        for dtype in (torch.float64, torch.float32)
    )
    scale = max(1.0, float(np.linalg.norm(grads)))
    for ours, theirs, truth in zip(result, plain, exact, strict=True):
        assert_close_to_float64(ours, theirs, truth, scale)


@every_isa
@every_similarity
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_and_their_gradients(isa, similarity, shape, rng):
    k, length, dim = shape
    queries, gallery = make_sets(rng, 5, k, dim), make_sets(rng, 23, length, dim)
    lengths = {"query_lengths": make_lengths(rng, 5, k)}
    lengths["gallery_lengths"] = make_lengths(rng, 23, length)
    given = (
        with_nan_padding(queries, lengths["query_lengths"]),
        with_nan_padding(gallery, lengths["gallery_lengths"]),
    )
    for count in (1, 19):
        candidates = some_candidates(rng, 5, count, 23)
        options = {"isa": isa, "threads": 2, **lengths, **similarity}
        scores = divse_native.candidate_scores(*given, candidates, **options)
        all_scores = divse_native.scores(
            *(x[:1] if i == 0 else x for i, x in enumerate(given)),
            **(options | {"query_lengths": lengths["query_lengths"][:1]}),
        )
        assert (scores[candidates < 0] == -np.inf).all()
        real = candidates[0] >= 0
        assert (scores[0, real] == all_scores[0, candidates[0, real]]).all()
        grads = rng.standard_normal(candidates.shape).astype("float32")
        result = divse_native.candidate_backward(*given, candidates, grads, **options)
        check_gradients(
            result, queries, gallery, grads, candidates=candidates, **lengths, **similarity
        )
        again = divse_native.candidate_backward(
            *given, candidates, grads, **(options | {"threads": 1})
        )
        assert all(np.array_equal(a, b) for a, b in zip(result, again, strict=True))


@every_isa
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_candidates_are_the_scores_of_all(isa, dtype, rng):
    """A query alone is scored by the kernel that candidates use: the same bits."""
    gallery = make_sets(rng, 50, 3, 20, dtype)
    for query in make_sets(rng, 3, 4, 20):
        scores = divse_native.scores(query[None], gallery, alpha=30.0, isa=isa)
        picked = rng.permutation(50)[None, :33]
        asked = divse_native.candidate_scores(query[None], gallery, picked, alpha=30.0, isa=isa)
        assert (asked[0] == scores[0, picked[0]]).all()


@every_isa
@of_maxima
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("counts", [(1, 1), (2, 33), (17, 3)], ids=str)
def test_gradients_of_maxima(isa, similarity, shape, counts, rng):
    k, length, dim = shape
    queries, gallery = make_sets(rng, counts[0], k, dim), make_sets(rng, counts[1], length, dim)
    lengths = {"query_lengths": make_lengths(rng, counts[0], k)}
    lengths["gallery_lengths"] = make_lengths(rng, counts[1], length)
    grads = rng.standard_normal(counts).astype("float32")
    result = divse_native.backward(queries, gallery, grads, isa=isa, **lengths, **similarity)
    check_gradients(result, queries, gallery, grads, **lengths, **similarity)


@every_isa
@pytest.mark.parametrize("counts", [(1, 20), (20, 1)], ids=str)
@pytest.mark.parametrize(
    ("similarity", "weights"),
    [
        ({"similarity": "maxsim"}, [[1, 0, 0], [1, 0, 0]]),
        ({"similarity": "mil"}, [[1, 0, 0], [0, 0, 0]]),
        ({"similarity": "chamfer"}, [[1 / 4 + 1 / 6, 1 / 6, 1 / 6], [1 / 4, 0, 0]]),
    ],
    ids=str,
)
def test_of_equal_cosines_the_first_has_the_gradient(isa, similarity, weights, counts, rng):
    """Whichever side is in the lanes. Query elements are equal, so are the gallery's."""
    queries = np.repeat(make_sets(rng, counts[0], 1, 6), 2, axis=1)
    gallery = np.repeat(make_sets(rng, counts[1], 1, 6), 3, axis=1)
    ones = np.ones(counts, np.float32)
    grad_q, grad_g, _ = divse_native.backward(queries, gallery, ones, isa=isa, **similarity)
    weights = np.array(weights)
    sums = gallery[:, 0].sum(0), queries[:, 0].sum(0)
    np.testing.assert_allclose(
        grad_q, (weights.sum(1)[:, None] * sums[0])[None] + 0 * queries, atol=1e-5
    )
    np.testing.assert_allclose(
        grad_g, (weights.sum(0)[:, None] * sums[1])[None] + 0 * gallery, atol=1e-5
    )


@every_isa
@every_similarity
def test_kept_cosines_serve_the_backward_pass(isa, similarity, rng):
    queries, gallery = make_sets(rng, 35, 4, 24), make_sets(rng, 41, 3, 24)
    lengths = {"query_lengths": make_lengths(rng, 35, 4)}
    lengths["gallery_lengths"] = make_lengths(rng, 41, 3)
    options = {"isa": isa, "threads": 2, **lengths, **similarity}
    scores, cosines = divse_native.scores_and_cosines(queries, gallery, **options)
    assert np.abs(scores - divse_native.scores(queries, gallery, **options)).max() < 1e-5
    grads = rng.standard_normal((35, 41)).astype("float32")
    result = divse_native.backward(queries, gallery, grads, cosines=cosines, **options)
    check_gradients(result, queries, gallery, grads, **lengths, **similarity)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((3, 2)), "got dtype float64"),
        (np.zeros((2, 2), np.int64), r"expected int64 \(3, M\)"),
        (np.full((3, 2), 5), r"got 5, expected -1 \(none\) to 4"),
        (np.full((3, 2), -2), "got -2"),
    ],
    ids=str,
)
def test_wrong_candidates_are_refused(candidates, message, rng):
    with pytest.raises(ValueError, match=message):
        divse_native.candidate_scores(make_sets(rng, 3, 2, 8), make_sets(rng, 5, 2, 8), candidates)


def test_wrong_cosines_are_refused(rng):
    queries, gallery = make_sets(rng, 3, 2, 8), make_sets(rng, 5, 2, 8)
    with pytest.raises(ValueError, match=r"cosines: got shape \(3, 5\), expected \(10, 32\)"):
        divse_native.backward(
            queries,
            gallery,
            np.zeros((3, 5), np.float32),
            cosines=np.zeros((3, 5), np.float32),
        )


@every_isa
def test_a_long_list_is_shared_by_threads(isa, rng):
    """One query, whose candidates all threads score: as search scores them, where they stand."""
    queries = rng.standard_normal((1, 4, 96)).astype(np.float32)
    gallery = rng.standard_normal((1500, 4, 96)).astype(np.float16)
    lengths = rng.integers(1, 5, 1500)
    candidates = rng.permutation(1500)[None, :1301].copy()
    candidates[0, ::7] = -1
    options = {"gallery_lengths": lengths, "isa": isa}
    best, ids = divse_native.search(queries, gallery, 1500, threads=1, **options)
    exact = np.empty(1500, np.float32)
    exact[ids[0]] = best[0]
    expected = np.where(candidates < 0, -np.inf, exact[candidates])
    for threads in (1, 4):
        found = divse_native.candidate_scores(
            queries, gallery, candidates, threads=threads, **options
        )
        np.testing.assert_array_equal(found, expected)
    none = divse_native.candidate_scores(queries, gallery, np.full((1, 200), -1), threads=4)
    assert np.isneginf(none).all()
