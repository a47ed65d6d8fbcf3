"""Chamfer, MaxSim and MIL by the Triton kernels against float64, beside Smooth-Chamfer."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
SIMILARITIES = [
    ("smooth_chamfer", {}),
    ("chamfer", {}),
    ("mil", {}),
    ("maxsim", {}),
    ("maxsim", {"reduction": "mean"}),
]
every_similarity = pytest.mark.parametrize(
    ("similarity", "parameters"), SIMILARITIES, ids=lambda x: x if isinstance(x, str) else ""
)


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def mask(lengths, size):
    return None if lengths is None else torch.arange(size, device=DEVICE) < lengths[:, None]


def specified(queries, gallery, dtype, similarity, parameters, lengths=(None, None)):
    """The specification in `dtype` on the same stored values; padding read as zeros."""
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


def check(queries, gallery, similarity, parameters, lengths=(None, None)):
    scores = kernels.scores(
        queries,
        gallery,
        similarity,
        query_lengths=lengths[0],
        gallery_lengths=lengths[1],
        **parameters,
    )
    assert scores.dtype == torch.float32
    plain, exact = (
        specified(queries, gallery, dtype, similarity, parameters, lengths)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())
    return scores


@every_similarity
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 17, 32])
def test_every_size_against_every_other(size, similarity, parameters):
    queries = unit(3, size, 40)
    for other in (1, 2, 4, 5, 32):
        check(queries, unit(4, other, 40, seed=other), similarity, parameters)


@every_similarity
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("b", "n"), [(17, 70), (70, 3)])
def test_either_side_may_lie_along_the_rows(b, n, dtype, similarity, parameters):
    queries, gallery = unit(b, 4, 72, dtype=dtype), unit(n, 6, 72, dtype=dtype, seed=1)
    check(queries, gallery, similarity, parameters)


@every_similarity
def test_programs_that_go_from_tile_to_tile(similarity, parameters):
    """More tiles than programs, the last ones not full."""
    check(unit(200, 4, 32), unit(130, 3, 32, seed=1), similarity, parameters)


@every_similarity
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")  # numpy, interpreting
def test_padding_never_matters(swapped, similarity, parameters):
    sides = [unit(5, 7, 40), unit(6, 4, 40, seed=1)]
    lengths = [torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])]
    if swapped:
        sides, lengths = sides[::-1], lengths[::-1]
    lengths = [x.to(DEVICE) for x in lengths]
    before = check(*sides, similarity, parameters, lengths)
    for side, length, junk in zip(sides, lengths, (torch.nan, torch.inf), strict=True):
        side[~mask(length, side.shape[1])] = junk
    after = kernels.scores(
        *sides, similarity, query_lengths=lengths[0], gallery_lengths=lengths[1], **parameters
    )
    assert torch.equal(after, before)


@pytest.mark.parametrize("similarity", ["maxsim", "chamfer", "mil"])
def test_only_one_side_is_ragged(similarity):
    queries, gallery = unit(5, 4, 32), unit(3, 8, 32, seed=1)
    four, eight = torch.tensor([4, 1, 2, 3, 4]), torch.tensor([8, 1, 5])
    check(queries, gallery, similarity, {}, (four.to(DEVICE), None))
    check(queries, gallery, similarity, {}, (None, eight.to(DEVICE)))


def test_negative_cosines_are_no_smaller_than_padding():
    queries = unit(3, 3, 32)
    gallery = -queries[:1].repeat(4, 1, 1)
    lengths = torch.tensor([1, 2, 3], device=DEVICE), torch.tensor([2, 1, 3, 2], device=DEVICE)
    for similarity, parameters in SIMILARITIES:
        check(queries, gallery, similarity, parameters, lengths)


@every_similarity
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients(similarity, parameters, ragged):
    sides = unit(5, 3, 40), unit(7, 4, 40, seed=1)
    lengths = (None, None)
    if ragged:
        sizes = torch.tensor([3, 1, 2, 3, 2]), torch.tensor([1, 4, 3, 2, 4, 1, 2])
        lengths = tuple(size.to(DEVICE) for size in sizes)
    weights = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).to(DEVICE)

    def gradients(function, dtype):
        leaves = [side.to(dtype).requires_grad_() for side in sides]
        scores = function(*leaves)
        return torch.autograd.grad(scores, leaves, weights.to(scores.dtype))

    def ours(q, g):
        ql, gl = lengths
        return kernels.scores(q, g, similarity, query_lengths=ql, gallery_lengths=gl, **parameters)

    def spec(dtype):
        return lambda q, g: specified(q, g, dtype, similarity, parameters, lengths)

    found = gradients(ours, torch.float32)
    plain = gradients(spec(torch.float32), torch.float32)
    exact = gradients(spec(torch.float64), torch.float64)
    for got, near, true in zip(found, plain, exact, strict=True):
        assert_close_to_float64(got, near, true, scale=float(true.abs().max()))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_operator_and_its_gradient_pass_the_checks_of_torch():
    queries, gallery = unit(2, 4, 32).requires_grad_(), unit(3, 3, 32, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.divse.scores.default, (queries, gallery, "maxsim", None, None))


def test_what_is_not_known_is_refused():
    sets = unit(2, 4, 32)
    with pytest.raises(ValueError, match="similarity: got 'cosine', expected one of smooth_"):
        kernels.scores(sets, sets, "cosine")
    with pytest.raises(ValueError, match="reduction: got 'max'"):
        kernels.scores(sets, sets, "maxsim", reduction="max")


def test_torch_checks_the_operator():
    queries, gallery = unit(2, 4, 32), unit(3, 4, 32, seed=1)
    torch.library.opcheck(torch.ops.divse.scores.default, (queries, gallery, "maxsim", None, None))
