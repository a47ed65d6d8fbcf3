"""Inputs for the tests of divse_native, and the specification they are held to."""

import numpy as np
import pytest
import torch
from tolerance import assert_close_to_float64

import divse_native
from divse.similarity import reference

SIZES = (1, 2, 3, 15, 16, 17, 31, 33, 63, 65, 97)
ALPHAS = (0.1, 1, 16, 18, 19, 40, 41, 80, 81, 200, 1000)
# (K, L, D): one-element sets, odd sizes, more elements than one tile holds on either axis.
SHAPES = ((1, 1, 7), (4, 4, 64), (2, 9, 33), (7, 3, 129), (33, 5, 16), (6, 50, 8), (70, 100, 5))

# Similarities other than Smooth-Chamfer, with their parameters.
OF_MAXIMA = (
    {"similarity": "chamfer"},
    {"similarity": "maxsim"},
    {"similarity": "maxsim", "reduction": "mean"},
    {"similarity": "mil"},
)
every_isa = pytest.mark.parametrize("isa", divse_native.instruction_sets())
of_maxima = pytest.mark.parametrize(
    "similarity", OF_MAXIMA, ids=lambda given: "_".join(given.values())
)
every_similarity = pytest.mark.parametrize(
    "similarity",
    ({"alpha": 16.0}, *OF_MAXIMA),
    ids=lambda given: "_".join(map(str, given.values())),
)


def make_sets(rng, n, k, d, dtype="float32", peaked=False):
    sets = rng.standard_normal((n, k, d))
    if peaked:  # nearly parallel vectors: cosines near 1 and -1
        sets = rng.choice([-1, 1], (n, k, 1)) + 0.05 * sets
    return (sets / np.linalg.norm(sets, axis=-1, keepdims=True)).astype("float32").astype(dtype)


def make_lengths(rng, n, k):
    return rng.integers(1, k + 1, n)


def with_nan_padding(sets, lengths):
    padded = sets.copy()
    padded[np.arange(sets.shape[1]) >= lengths[:, None]] = np.nan
    return padded


def mask(lengths, k):
    return None if lengths is None else torch.from_numpy(np.arange(k) < lengths[:, None])


def plain_scores(
    queries,
    gallery,
    *,
    similarity="smooth_chamfer",
    query_lengths=None,
    gallery_lengths=None,
    **parameters,
):
    """The specification in the precision of its (torch) input."""
    cosines = torch.einsum("bkd,nld->bnkl", queries, gallery)
    rows, columns = mask(query_lengths, queries.shape[1]), mask(gallery_lengths, gallery.shape[1])
    rows = None if rows is None else rows[:, None].expand(-1, len(gallery), -1)
    columns = None if columns is None else columns[None].expand(len(queries), -1, -1)
    return getattr(reference, similarity)(cosines, rows, columns, **parameters)


def check_scores(queries, gallery, isa, *, given=None, layout=None, **options):
    """``given``: the arrays to pass instead, equal but for padding or layout (and its options)."""
    exact, plain = (
        plain_scores(torch.from_numpy(queries).to(t), torch.from_numpy(gallery).to(t), **options)
        for t in (torch.float64, torch.float32)
    )
    if layout is not None:
        options = {k: v for k, v in options.items() if not k.endswith("_lengths")} | layout
    result = divse_native.scores(*(given or (queries, gallery)), isa=isa, **options)
    assert result.dtype == np.float32
    scale = max(1.0, exact.abs().max().item())
    assert_close_to_float64(result, plain, exact, scale)
    return result


def packed(sets, lengths):
    """The real elements of all sets, one after another, and the offsets."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([s[:n] for s, n in zip(sets, lengths, strict=True)]), offsets


def as_bfloat16(sets):
    """The sets rounded to bfloat16: as uint16, and as the float32 values that those hold."""
    bits = torch.from_numpy(sets).to(torch.bfloat16)
    return bits.view(torch.uint16).numpy(), bits.float().numpy()


def full_sort(scores, topk):
    """Scores and positions of the best, ties by position."""
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
    return np.take_along_axis(scores, ids, axis=1), ids
