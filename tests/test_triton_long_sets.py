"""Sets of more than 32 elements, and packed ones, by the Triton kernel against float64."""

import pytest
import torch
from long_cases import DEVICE, SIMILARITIES, called, lengths_of, mask, specified, unit
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")
from divse_kernels import long_sets  # noqa: E402
from divse_kernels.launch import Side  # noqa: E402

every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def ours(queries, gallery, name, lengths=(None, None), offsets=None):
    similarity, parameters = called(name)
    before = kernels.launches["long_sets"]
    scores = kernels.scores(
        queries,
        gallery,
        similarity,
        query_lengths=lengths[0],
        gallery_lengths=lengths[1],
        gallery_offsets=offsets,
        **parameters,
    )
    assert kernels.launches["long_sets"] > before
    return scores


def check(queries, gallery, name, lengths=(None, None)):
    scores = ours(queries, gallery, name, lengths)
    plain, exact = (
        specified(queries, gallery, dtype, name, lengths)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())
    return scores


@every_similarity
@pytest.mark.parametrize(
    ("k", "size"), [(33, 33), (1, 100), (100, 4), (17, 64), (64, 33), (128, 40), (150, 140)]
)
def test_sizes(k, size, name):
    check(unit(2, k, 40), unit(2, size, 40, seed=1), name)


@pytest.mark.parametrize("name", ["maxsim", "smooth_chamfer"])
def test_a_thousand_elements(name):
    check(unit(1, 1024, 32), unit(1, 600, 32, seed=1), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dims", [32, 136, 256])
@pytest.mark.parametrize("name", ["maxsim", "chamfer"])
def test_dimensions(dims, dtype, name):
    check(unit(9, 32, dims, dtype=dtype), unit(3, 70, dims, dtype=dtype, seed=1), name)


@every_similarity
@pytest.mark.parametrize(("k", "size"), [(40, 140), (140, 150), (70, 5)])
def test_padding_never_matters(k, size, name):
    queries, gallery = unit(3, k, 40), unit(2, size, 40, seed=1)
    lengths = lengths_of(3, k), lengths_of(2, size, seed=1)
    before = check(queries, gallery, name, lengths)
    queries[~mask(lengths[0], k)] = torch.nan
    gallery[~mask(lengths[1], size)] = torch.inf
    assert torch.equal(ours(queries, gallery, name, lengths), before)


@every_similarity
@pytest.mark.parametrize(("k", "size"), [(40, 100), (140, 150), (70, 5)])
def test_packed_is_padded(k, size, name):
    queries, padded = unit(1, k, 40), unit(3, size, 40, seed=1)
    lengths = lengths_of(3, size)
    packed = padded[mask(lengths, size)]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    scores = ours(queries, packed, name, offsets=offsets)
    plain, exact = (
        specified(queries, padded, dtype, name, (None, lengths))
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())


def test_many_short_sets_share_what_is_read():
    """Programs walk over several gallery sets, the last over fewer."""
    check(unit(1, 33, 32), unit(70, 34, 32, seed=1), "maxsim")


@pytest.mark.parametrize("alpha", [0.1, 80.0, 81.0, 1000.0])
@pytest.mark.parametrize("kind", ["flat", "opposite"])
def test_sums_of_many_terms_stay_in_range(alpha, kind):
    queries = unit(1, 1, 32).repeat(1, 1024, 1)
    gallery = (queries if kind == "flat" else -queries)[:, :128]
    scores = kernels.scores(queries, gallery, alpha=alpha)
    cosines = torch.einsum("bkd,nld->bnkl", queries.double(), gallery.double())
    plain, exact = (
        reference.smooth_chamfer(cosines.to(dtype), alpha=alpha)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())


def test_alpha_may_be_a_tensor():
    queries, gallery = unit(2, 40, 32), unit(3, 33, 32, seed=1)
    scores = kernels.scores(queries, gallery, alpha=torch.tensor(16.0))
    torch.testing.assert_close(scores, kernels.scores(queries, gallery, alpha=16.0))


def test_no_sets():
    assert kernels.scores(unit(0, 40, 32), unit(3, 4, 32), "maxsim").shape == (0, 3)
    nothing = unit(0, 32), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    scores = kernels.scores(unit(2, 4, 32), nothing[0], "maxsim", gallery_offsets=nothing[1])
    assert scores.shape == (2, 0)


@pytest.mark.parametrize("k", [32, 130])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_of_float32_count(k, dtype):
    """Through the kernels' own launcher: scores convert, a search does not."""
    queries, gallery = unit(2, k, 40), unit(3, 70, 40, dtype=dtype, seed=1)
    scores = long_sets.scores(
        Side.of(queries, None), Side.of(gallery, None), 16.0, False, "smooth_chamfer"
    )
    plain, exact = (
        specified(queries, gallery, kind, "smooth_chamfer")
        for kind in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores, plain, exact)


def test_gradients_of_packed_sets_are_refused_rather_than_lost():
    queries, packed = unit(2, 40, 32).requires_grad_(), unit(9, 32)
    offsets = torch.tensor([0, 4, 9], device=DEVICE)
    with pytest.raises(ValueError, match="packed sets .* have no gradient: give padded sets"):
        kernels.scores(queries, packed, gallery_offsets=offsets)
    with torch.no_grad():
        assert kernels.scores(queries, packed, gallery_offsets=offsets).shape == (2, 2)


def test_what_is_refused_says_why():
    queries, packed = unit(2, 4, 32), unit(9, 32)
    with pytest.raises(ValueError, match="1 to 1024 elements, gallery hold 1025"):
        kernels.scores(queries, torch.zeros(1, 1025, 32, device=DEVICE))
    for offsets in ([0, 4, 8], [1, 9], [0, 0, 9], [0, 6, 4, 9]):
        with pytest.raises(ValueError, match="gallery_offsets must rise from 0 to 9"):
            kernels.scores(queries, packed, gallery_offsets=torch.tensor(offsets, device=DEVICE))
    offsets = torch.tensor([0, 9], device=DEVICE)
    with pytest.raises(ValueError, match="a packed gallery is"):
        kernels.scores(queries, queries, gallery_offsets=offsets)
    with pytest.raises(TypeError, match="must be integers"):
        kernels.scores(queries, packed, gallery_offsets=offsets.float())
    with pytest.raises(ValueError, match="exclude each other"):
        kernels.scores(queries, packed, gallery_offsets=offsets, gallery_lengths=offsets)


def test_torch_checks_the_operator():
    arguments = unit(2, 40, 32), unit(3, 33, 32, seed=1), "chamfer", 1.0, None, False
    torch.library.opcheck(torch.ops.divse.long_scores.default, (*arguments, *[None] * 3, 0))
