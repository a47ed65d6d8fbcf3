"""divse_native.int8_search: the best by int8 codes alone, on every instruction set."""

import numpy as np
import pytest
import torch
from searcher_cases import clustered

from divse.sets import EmbeddingSets
from divse.similarity import score
from divse.similarity.certified import encode
from divse.similarity.quantise import two_parts

divse_native = pytest.importorskip("divse_native")


def coded(queries):
    """Queries as the kernel sees them: the first part of their codes."""
    parts = two_parts(torch.from_numpy(queries))
    return parts.codes1.double() * parts.scales1.double()[..., None]


@pytest.mark.parametrize("isa", divse_native.instruction_sets())
@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (33, 3, 17, 2), (130, 5, 63, 7)])
def test_scores_are_those_of_the_codes(isa, similarity, shape):
    sets, k, dim, batch = shape
    values = clustered(sets + batch, k, dim, seed=sets)
    queries = values[sets:]
    codes, scales, _ = (x.numpy() for x in encode(torch.from_numpy(values[:sets])))
    topk = min(sets, 20)
    found, ids = divse_native.int8_search(
        queries, codes, scales, topk, similarity=similarity, isa=isa, threads=2
    )
    stored = torch.from_numpy(codes).double() * torch.from_numpy(scales).double()[..., None]
    sides = EmbeddingSets(coded(queries)), EmbeddingSets(stored)
    exact = score(*sides, similarity=similarity, impl="reference").numpy()
    np.testing.assert_allclose(found, -np.sort(-exact, 1)[:, :topk], atol=5e-6 * k)
    np.testing.assert_allclose(found, np.take_along_axis(exact, ids, 1), atol=5e-6 * k)


def test_excluded_and_packed_sets():
    values, lengths = clustered(90, 4, 24), np.random.default_rng(0).integers(1, 5, 90)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    packed = values[np.arange(4) < lengths[:, None]]
    codes, scales, _ = (x[:, 0].numpy() for x in encode(torch.from_numpy(packed[:, None])))
    out = np.zeros(96, dtype=bool)
    out[10:85] = True
    found, ids = divse_native.int8_search(
        values[:3], codes, scales, 20,
        gallery_offsets=offsets, excluded=np.packbits(out, bitorder="little"),
        query_lengths=np.array([4, 1, 2]),
    )  # fmt: skip
    assert ids.shape == (3, 20) and (ids[:, 15:] == -1).all() and np.isinf(found[:, 15:]).all()
    assert set(ids[:, :15].ravel().tolist()) == {*range(10), *range(85, 90)}
    assert (ids[:, 0] == range(3)).mean() >= 0.5


class Indexed:
    """No array, though what it is indexed by gives one."""

    def __len__(self):
        return 5

    def __getitem__(self, _):
        return np.ones((5, 2, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((5, 2, 7), np.int8)}, "codes"),
        ({"codes": np.zeros((5, 2, 8), np.uint8)}, "codes"),
        ({"scales": np.zeros((4, 2), np.float32)}, "codes"),
        ({"scales": np.zeros((5, 2))}, "scales"),
        ({"scales": Indexed()}, "scales: got dtype None"),
        ({"topk": 6}, "topk"),
        ({"similarity": "mp"}, "similarity"),
        ({"excluded": np.zeros(2, np.uint8)}, "excluded"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    right = {
        "queries": np.ones((1, 3, 8), np.float32),
        "codes": np.zeros((5, 2, 8), np.int8),
        "scales": np.ones((5, 2), np.float32),
        "topk": 2,
    }
    assert divse_native.int8_search(**right)[0].shape == (1, 2)
    with pytest.raises((ValueError, TypeError), match=message):
        divse_native.int8_search(**(right | change))
