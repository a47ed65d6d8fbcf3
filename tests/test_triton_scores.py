"""Triton scores against float64: sizes, ranges of alpha, padding, strides, refusals."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [1, 2, 3, 4, 5, 8, 17, 32]
ALPHAS = [0.1, 1.0, 16.0, 18.0, 19.0, 40.0, 41.0, 80.0, 81.0, 200.0, 1000.0]
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def mask(lengths, size):
    return None if lengths is None else torch.arange(size, device=DEVICE) < lengths[:, None]


def specified(queries, gallery, dtype, alpha, log_mean=False, lengths=(None, None)):
    """The specification in `dtype` on the same stored values; padding read as zeros."""
    rows, columns = mask(lengths[0], queries.shape[1]), mask(lengths[1], gallery.shape[1])
    q, g = (
        s.to(dtype) if m is None else s.to(dtype).masked_fill(~m[..., None], 0.0)
        for s, m in ((queries, rows), (gallery, columns))
    )
    return reference.smooth_chamfer(
        torch.einsum("bkd,nld->bnkl", q, g),
        None if rows is None else rows[:, None],
        None if columns is None else columns[None],
        alpha=alpha,
        log_mean=log_mean,
    )


def check(queries, gallery, alpha=16.0, log_mean=False, lengths=(None, None)):
    scores = kernels.smooth_chamfer(queries, gallery, alpha, log_mean, *lengths)
    assert scores.dtype == torch.float32
    plain = specified(queries, gallery, torch.float32, alpha, log_mean, lengths)
    exact = specified(queries, gallery, torch.float64, alpha, log_mean, lengths)
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_against_every_other(size):
    queries = unit(3, size, 40)
    for other in SIZES:
        check(queries, unit(5, other, 40, seed=other))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("b", "n", "k", "dims"), [(1, 1, 4, 32), (17, 35, 4, 72), (33, 2, 6, 136), (2, 70, 3, 64)]
)
def test_odd_shapes_span_several_tiles(b, n, k, dims, dtype):
    check(unit(b, k, dims, dtype=dtype), unit(n, 4, dims, dtype=dtype, seed=1))


@pytest.mark.parametrize("dims", [32, 48, 2048])
def test_dimensions(dims):
    check(unit(3, 4, dims), unit(4, 4, dims, seed=1))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "opposite"])
def test_alpha_walk(alpha, kind):
    """At every path and its limits, with the largest products that unit vectors can make."""
    queries, gallery = unit(4, 32, 32), unit(3, 32, 32, seed=1)
    if kind == "peaked":
        gallery[:, :3] = queries[:3, :3]
    if kind in ("flat", "opposite"):
        queries = unit(1, 1, 32).expand(4, 32, 32)
        gallery = (queries if kind == "flat" else -queries)[:3]
    check(queries, gallery, alpha)
    check(queries[:, :4], gallery[:, :4], alpha)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("alpha", [16.0, 30.0, 60.0, 200.0])
@pytest.mark.parametrize("log_mean", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_padding_never_matters(alpha, log_mean, dtype):
    queries, gallery = unit(5, 7, 40, dtype=dtype), unit(6, 4, 40, dtype=dtype, seed=1)
    lengths = torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])
    lengths = tuple(x.to(DEVICE) for x in lengths)
    check(queries, gallery, alpha, log_mean, lengths)
    before = kernels.smooth_chamfer(queries, gallery, alpha, log_mean, *lengths)
    queries[~mask(lengths[0], 7)] = torch.nan
    gallery[~mask(lengths[1], 4)] = torch.inf
    after = kernels.smooth_chamfer(queries, gallery, alpha, log_mean, *lengths)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_only_one_side_is_ragged():
    queries, gallery = unit(5, 4, 32), unit(3, 8, 32, seed=1)
    check(queries, gallery, lengths=(torch.tensor([4, 1, 2, 3, 4], device=DEVICE), None))
    check(queries, gallery, lengths=(None, torch.tensor([8, 1, 5], device=DEVICE)))


def test_log_mean_of_full_sets():
    check(unit(3, 5, 32), unit(4, 2, 32, seed=1), log_mean=True)


def test_any_strides():
    queries, gallery = unit(4, 40, 9), unit(3, 4, 136, seed=1)
    check(queries.mT.contiguous().mT.transpose(1, 2), gallery[..., :40])
    check(gallery[..., 3:43], gallery[::2, 1::2, 32:72])
    check(gallery[:1].expand(5, 4, 136), gallery.flip(0))


def test_scores_are_symmetric_and_single_equals_batch():
    queries, gallery = unit(21, 4, 40), unit(34, 5, 40, seed=1)
    scores = kernels.smooth_chamfer(queries, gallery)
    torch.testing.assert_close(kernels.smooth_chamfer(gallery, queries).mT, scores)
    torch.testing.assert_close(kernels.smooth_chamfer(queries[7:8], gallery[5:6]), scores[7:8, 5:6])


def test_alpha_may_be_a_tensor():
    queries, gallery = unit(4, 4, 40), unit(5, 4, 40, seed=1)
    for alpha in (0.5, 16.0, 300.0):
        scores = kernels.smooth_chamfer(queries, gallery, torch.tensor(alpha))
        torch.testing.assert_close(scores, kernels.smooth_chamfer(queries, gallery, alpha))


def test_no_sets():
    assert kernels.smooth_chamfer(unit(0, 4, 32), unit(5, 4, 32)).shape == (0, 5)
    assert kernels.smooth_chamfer(unit(5, 4, 32), unit(0, 4, 32)).shape == (5, 0)


def test_every_launch_is_counted():
    before = kernels.launches["smooth_chamfer_forward"]
    kernels.smooth_chamfer(unit(2, 4, 32), unit(3, 4, 32))
    assert kernels.launches["smooth_chamfer_forward"] == before + 1


@pytest.mark.parametrize(
    ("queries", "gallery", "word"),
    [
        (torch.zeros(2, 33, 32), torch.zeros(2, 4, 32), "33"),
        (torch.zeros(2, 0, 32), torch.zeros(2, 4, 32), "elements"),
        (torch.zeros(2, 4, 36), torch.zeros(2, 4, 36), "multiple of 8"),
        (torch.zeros(2, 4, 24), torch.zeros(2, 4, 24), "32"),
        (torch.zeros(2, 4, 4096), torch.zeros(2, 4, 4096), "2048"),
        (torch.zeros(2, 4, 32), torch.zeros(2, 4, 64), "agree"),
        (torch.zeros(4, 32), torch.zeros(2, 4, 32), "shape"),
        (torch.zeros(2, 4, 32).half(), torch.zeros(2, 4, 32), "float16"),
        (torch.zeros(2, 4, 32).double(), torch.zeros(2, 4, 32).double(), "float64"),
    ],
)
def test_what_is_refused_says_why(queries, gallery, word):
    queries, gallery = queries.to(DEVICE), gallery.to(DEVICE)
    assert word in kernels.supports(queries, gallery)
    with pytest.raises(ValueError, match=word):
        kernels.smooth_chamfer(queries, gallery)


def test_alpha_out_of_range_is_refused():
    for alpha in (0.0, -1.0, 1001.0, float("nan")):
        with pytest.raises(ValueError, match="alpha must be in"):
            kernels.smooth_chamfer(unit(1, 4, 32), unit(1, 4, 32), alpha)
    with pytest.raises(ValueError, match="one number"):
        kernels.smooth_chamfer(unit(1, 4, 32), unit(1, 4, 32), torch.ones(2))


def test_lengths_must_belong_to_the_sets():
    queries, gallery = unit(2, 4, 32), unit(3, 4, 32)
    with pytest.raises(ValueError, match="query_lengths must be"):
        kernels.smooth_chamfer(queries, gallery, query_lengths=torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="gallery_lengths must be integers"):
        kernels.smooth_chamfer(queries, gallery, gallery_lengths=torch.ones(3, device=DEVICE))


def test_what_can_be_served_is_not_refused():
    assert kernels.supports(unit(2, 4, 32), unit(3, 5, 32)) is None
