"""Inputs for the tests of divse_native, and the specification they are held to."""

import numpy as np
import pytest
import torch

import divse_native
from divse.similarity import reference

SIZES = (1, 2, 3, 15, 16, 17, 31, 33, 63, 65, 97)
ALPHAS = (0.1, 1, 16, 18, 19, 40, 41, 80, 81, 200, 1000)
# (K, L, D): one-element sets, odd sizes, more elements than one tile holds on either axis.
SHAPES = ((1, 1, 7), (4, 4, 64), (2, 9, 33), (7, 3, 129), (33, 5, 16), (6, 50, 8), (70, 100, 5))

every_isa = pytest.mark.parametrize("isa", divse_native.instruction_sets())


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
    queries, gallery, *, alpha, log_mean=False, query_lengths=None, gallery_lengths=None
):
    """The specification in the precision of its (torch) input."""
    cosines = torch.einsum("bkd,nld->bnkl", queries, gallery)
    rows, columns = mask(query_lengths, queries.shape[1]), mask(gallery_lengths, gallery.shape[1])
    rows = None if rows is None else rows[:, None].expand(-1, len(gallery), -1)
    columns = None if columns is None else columns[None].expand(len(queries), -1, -1)
    return reference.smooth_chamfer(cosines, rows, columns, alpha=alpha, log_mean=log_mean)
