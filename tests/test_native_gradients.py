"""Gradients of divse_native against autograd in float64, on every instruction set."""

import numpy as np
import pytest
import torch
from native_cases import (
    ALPHAS,
    SHAPES,
    every_isa,
    make_lengths,
    make_sets,
    plain_scores,
    with_nan_padding,
)
from tolerance import assert_close_to_float64

import divse_native


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gradients(dtype, queries, gallery, grads, alpha, **options):
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (queries, gallery, alpha)]
    if "similarity" not in options:
        options["alpha"] = leaves[2]
    scores = plain_scores(leaves[0], leaves[1], **options)
    scores.backward(torch.from_numpy(grads).to(dtype))
    return [leaf.grad for leaf in leaves]


def check_gradients(queries, gallery, grads, isa, *, alpha, given=None, **options):
    exact, plain = (
        gradients(dtype, queries, gallery, grads, alpha, **options)
        for dtype in (torch.float64, torch.float32)
    )
    result = divse_native.backward(
        *(given or (queries, gallery)), grads, alpha=alpha, isa=isa, **options
    )
    # An element collects gradients of all sets of the other side; alpha's collects grads / alpha.
    size = float(np.linalg.norm(grads))
    for i, scale in enumerate((max(1.0, size), max(1.0, size), size * max(1.0, 1 / alpha))):
        assert_close_to_float64(result[i], plain[i], exact[i], scale)
    return result


@every_isa
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_alpha_walk(isa, alpha, rng):
    queries, gallery = make_sets(rng, 5, 4, 19), make_sets(rng, 18, 3, 19)
    for log_mean in (False, True):
        grads = rng.standard_normal((5, 18)).astype("float32")
        check_gradients(queries, gallery, grads, isa, alpha=alpha, log_mean=log_mean)


@every_isa
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("counts", [(1, 1), (2, 33), (17, 3), (16, 20)], ids=str)
def test_gradients_of_ragged_sets(isa, shape, counts, rng):
    k, length, dim = shape
    queries, gallery = make_sets(rng, counts[0], k, dim), make_sets(rng, counts[1], length, dim)
    lengths = make_lengths(rng, counts[0], k), make_lengths(rng, counts[1], length)
    given = with_nan_padding(queries, lengths[0]), with_nan_padding(gallery, lengths[1])
    grads = rng.standard_normal(counts).astype("float32")
    result = check_gradients(
        queries,
        gallery,
        grads,
        isa,
        alpha=16.0,
        given=given,
        query_lengths=lengths[0],
        gallery_lengths=lengths[1],
    )
    for grad, padded in zip(result[:2], given, strict=True):
        assert (grad[np.isnan(padded)] == 0).all()


@every_isa
def test_gradients_in_more_than_one_block(isa, rng):
    queries, gallery = make_sets(rng, 300, 4, 8), make_sets(rng, 360, 3, 8)
    grads = rng.standard_normal((300, 360)).astype("float32")
    check_gradients(queries, gallery, grads[:, :], isa, alpha=16.0)
    transposed = divse_native.backward(
        queries, gallery, np.asfortranarray(grads), alpha=16.0, isa=isa
    )
    plain = divse_native.backward(queries, gallery, grads, alpha=16.0, isa=isa)
    assert all(np.array_equal(a, b) for a, b in zip(transposed, plain, strict=True))


@every_isa
def test_gradients_of_vectors_of_any_length(isa, rng):
    queries, gallery = 3 * make_sets(rng, 17, 4, 32), make_sets(rng, 5, 4, 32)
    gallery[3] *= np.float32(10.0)
    grads = rng.standard_normal((17, 5)).astype("float32")
    exact = gradients(torch.float64, queries, gallery, grads, 60.0)
    plain = gradients(torch.float32, queries, gallery, grads, 60.0)
    result = divse_native.backward(queries, gallery, grads, alpha=60.0, isa=isa)
    for i in range(3):
        assert_close_to_float64(result[i], plain[i], exact[i], scale=30.0 * np.sqrt(85))
