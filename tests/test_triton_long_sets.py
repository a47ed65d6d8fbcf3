"""Sets of more than 32 elements, and packed ones, by the Triton kernel against float64."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIMILARITIES = {
    "smooth_chamfer": {},
    "shifted": {"alpha": 200.0},
    "log_mean": {"log_mean": True},
    "chamfer": {},
    "mil": {},
    "maxsim": {},
    "maxsim_mean": {"reduction": "mean"},
}
every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def mask(lengths, size):
    return None if lengths is None else torch.arange(size, device=DEVICE) < lengths[:, None]


def lengths_of(count, size, seed=0):
    found = torch.randint(1, size + 1, (count,), generator=torch.Generator().manual_seed(seed))
    found[0], found[-1] = 1, size
    return found.to(DEVICE)


def called(name):
    """The similarity and its parameters."""
    similarity = {"shifted": "smooth_chamfer", "log_mean": "smooth_chamfer"}.get(name, name)
    return similarity.removesuffix("_mean"), SIMILARITIES[name]


def specified(queries, gallery, dtype, name, lengths=(None, None)):
    """The specification in `dtype` on the same stored values; padding read as zeros."""
    similarity, parameters = called(name)
    rows, columns = mask(lengths[0], queries.shape[1]), mask(lengths[1], gallery.shape[1])
    q, g = (
        s.to(dtype) if m is None else s.to(dtype).masked_fill(~m[..., None], 0.0)
        for s, m in ((queries, rows), (gallery, columns))
    )
    return getattr(reference, similarity)(
        torch.einsum("bkd,nld->bnkl", q, g),
        None if rows is None else rows[:, None],
        None if columns is None else columns[None],
        **parameters,
    )


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


def test_gradients_are_refused_rather_than_lost():
    queries, gallery = unit(2, 40, 32).requires_grad_(), unit(3, 4, 32, seed=1)
    with pytest.raises(ValueError, match="no gradient"):
        kernels.scores(queries, gallery)
    with pytest.raises(ValueError, match="no gradient"):
        kernels.scores(queries.detach(), gallery, alpha=torch.tensor(16.0, requires_grad=True))


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
