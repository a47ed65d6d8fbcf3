"""Triton search against a full sort: ties, bitmaps, ragged sets, blocks of any sizes."""

import numpy as np
import pytest
import torch
from tolerance import assert_close_to_float64

from divse import EmbeddingSets, search
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.similarity.dispatch import calls

pytest.importorskip("divse_kernels")

from search_cases import DEVICE, bitmap, check, expect, searched, unit

import divse_kernels as kernels
from divse_kernels import launches
from divse_kernels.best import MAX_TOPK


@pytest.mark.parametrize("topk", [1, 10, MAX_TOPK])
@pytest.mark.parametrize(("b", "n", "k", "size"), [(1, 1, 4, 4), (3, 90, 4, 3), (17, 33, 1, 5)])
def test_sizes(b, n, k, size, topk):
    check(unit(b, k, 40), unit(n, size, 40, seed=1), topk)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 17, 32])
def test_sizes_of_sets(size):
    check(unit(3, size, 32), unit(21, 4, 32, seed=1), 5)
    check(unit(3, 4, 32), unit(21, size, 32, seed=1), 5)


def test_no_sets():
    found = kernels.search(unit(2, 4, 32), unit(0, 4, 32), 3)
    assert torch.equal(found.ids, torch.full((2, 3), -1, device=DEVICE))
    assert (found.scores == -torch.inf).all()
    assert kernels.search(unit(0, 4, 32), unit(5, 4, 32), 3).ids.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_those_of_float64(dtype):
    queries, gallery = unit(4, 4, 40), unit(50, 4, 40, dtype=dtype, seed=1)
    for rounded in (queries.to(dtype), queries):  # the fp32 query of a 16-bit gallery counts
        found = kernels.search(rounded, gallery, 50)
        plain, exact = (
            kernels.smooth_chamfer(rounded.float(), gallery.float()).gather(1, found.ids),
            double(rounded, gallery).gather(1, found.ids),
        )
        assert_close_to_float64(found.scores, plain, exact)
        assert (exact.diff(dim=1) < 1e-6).all()


def double(queries, gallery):
    c = 16 * torch.einsum("bkd,nld->bnkl", queries.double(), gallery.double())
    return (c.logsumexp(3).mean(2) + c.logsumexp(2).mean(2)) / 32


@pytest.mark.parametrize("similarity", ["chamfer", "maxsim", "mil"])
def test_other_similarities(similarity):
    check(unit(3, 4, 32), unit(40, 6, 32, seed=1), 7, similarity=similarity)
    if similarity == "maxsim":
        check(unit(3, 4, 32), unit(40, 6, 32, seed=1), 7, similarity=similarity, reduction="mean")


@pytest.mark.parametrize("alpha", [1.0, 200.0])
def test_parameters(alpha):
    check(unit(3, 4, 32), unit(40, 6, 32, seed=1), 7, alpha=alpha, log_mean=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_ragged_sets_and_padding_that_is_no_number():
    queries, gallery = unit(5, 3, 32), unit(30, 4, 32, seed=1)
    lengths = {
        "query_lengths": torch.arange(5, device=DEVICE) % 3 + 1,
        "gallery_lengths": torch.arange(30, device=DEVICE) % 4 + 1,
    }
    before = check(queries, gallery, 8, **lengths)
    gallery[torch.arange(4, device=DEVICE) >= lengths["gallery_lengths"][:, None]] = torch.nan
    after = kernels.search(queries, gallery, 8, **lengths)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_not_a_number_is_never_best():
    gallery = unit(40, 4, 32, seed=1)
    gallery[::3] = torch.nan
    found = check(unit(2, 4, 32), gallery, 40)
    assert (found.ids[:, :26] % 3 != 0).all() and (found.scores[:, 26:] == -torch.inf).all()
    check(unit(2, 4, 32), torch.full_like(gallery, torch.nan), 3)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97, 1.0])
def test_excluded_sets(share):
    queries, gallery = unit(3, 4, 32), unit(61, 4, 32, seed=1)
    excluded = torch.rand(61, generator=torch.Generator().manual_seed(2)).to(DEVICE) < share
    check(queries, gallery, 9, excluded)
    found = searched(queries, gallery, 9, 16, excluded=bitmap(excluded))
    expect(found, queries, gallery, 9, excluded)


def test_positions_past_gaps_and_past_32_bits():
    queries, gallery = unit(2, 4, 32), unit(20, 4, 32, seed=1)
    blocks = [(5, gallery[:12].cpu(), None), ((1 << 32) - 100, gallery[12:].cpu(), None)]
    found = kernels.search_blocks(queries, blocks, 20)
    ids = kernels.search(queries, gallery, 20).ids
    assert torch.equal(found.ids, torch.where(ids < 12, ids + 5, ids - 12 + (1 << 32) - 100))


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"topk": 0}, ValueError, "1 to 1000"),
        ({"topk": 1001}, ValueError, "1001"),
        ({"alpha": torch.tensor(16.0)}, TypeError, "float"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"excluded": torch.zeros(5, dtype=torch.bool)}, ValueError, "bitmap"),
        ({"excluded": torch.zeros(1, dtype=torch.uint8)}, ValueError, "9 sets"),
        ({"excluded": torch.zeros(8, dtype=torch.uint8)[::2]}, ValueError, "contiguous"),
        ({"gallery": torch.zeros(9, 4, 64)}, ValueError, "agree"),
        ({"similarity": "cosine"}, ValueError, "cosine"),
        ({"gallery_lengths": torch.ones(3, dtype=torch.int64)}, ValueError, "gallery_lengths"),
    ],
)
def test_what_is_refused_says_why(change, error, word):
    arguments = {"queries": unit(2, 4, 32), "gallery": unit(9, 4, 32), "topk": 3} | {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=word):
        kernels.search(**arguments)


def test_blocks_that_do_not_fit_are_refused():
    queries, block = unit(2, 4, 32), torch.zeros(3, 4, 32)
    with pytest.raises(ValueError, match="order"):
        kernels.search_blocks(queries, [(0, block, None), (2, block, None)], 1)
    with pytest.raises(ValueError, match="position 0.*agree"):
        kernels.search_blocks(queries, [(0, torch.zeros(3, 4, 64), None)], 1)
    with pytest.raises(ValueError, match="below"):
        kernels.search_blocks(queries, [((1 << 32) - 2, block, None)], 1)


@pytest.mark.parametrize("topk", [3, 1003])
def test_the_api_searches_by_the_kernel(topk):
    """More results than the kernel serves come from a sort, block by block."""
    queries, gallery = unit(2, 3, 32), unit(1005 if topk > 3 else 30, 4, 32, seed=1)
    excluded = torch.arange(len(gallery), device=DEVICE) == 2
    launched = launches["search_scan"]
    found, expected = (
        search(queries, gallery, topk, excluded=excluded, impl=impl)
        for impl in ("triton", "reference")
    )
    assert torch.equal(found.ids, expected.ids) or topk > 3  # near equals may change places
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    assert (launches["search_scan"] > launched) == (topk == 3)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_gallery_streams_from_disk(tmp_path, monkeypatch, ragged):
    values = unit(90, 4, 32).cpu().numpy()
    lengths = np.arange(90) % 4 + 1 if ragged else None
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths))
    monkeypatch.setattr(Gallery, "blocks", lambda self, whole=Gallery.blocks: whole(self, 6400))
    heard = []
    searcher = Searcher(gallery, progress=lambda what, step, total: heard.append(step))
    before = calls["triton.search"]
    found = searcher.search(values[:3], 7, impl="triton")
    expected = searcher.search(values[:3], 7, impl="reference")
    assert calls["triton.search"] == before + 1  # once for all blocks
    assert heard == [25, 25, 25, 15] * 2
    assert (found.ids == expected.ids).all()
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)
