"""Triton gradients against float64 autograd, and the operators against torch's own checks."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")
products = pytest.importorskip("divse_kernels.products")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def specified(queries, gallery, alpha, log_mean, query_lengths, gallery_lengths):
    cosines = torch.einsum("bkd,nld->bnkl", queries, gallery)
    sides = ((query_lengths, queries.shape[1]), (gallery_lengths, gallery.shape[1]))
    rows, columns = (
        None if n is None else torch.arange(size, device=DEVICE) < n[:, None] for n, size in sides
    )
    return reference.smooth_chamfer(
        cosines,
        None if rows is None else rows[:, None],
        None if columns is None else columns[None],
        alpha=alpha,
        log_mean=log_mean,
    )


def gradients(score, inputs, weights, dtype):
    """Scores and gradients of the weighted sum of scores, computed in `dtype`, in leaf types."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    scores = score(*(x.to(dtype) if dtype else x for x in leaves))
    (scores * weights.to(scores.dtype)).sum().backward()
    return [x.grad for x in leaves]


def check(queries, gallery, alpha, log_mean=False, lengths=(None, None)):
    """Compare every gradient, alpha's too if it is a tensor."""
    weights = torch.randn(len(queries), len(gallery), generator=torch.Generator().manual_seed(7))
    weights = weights.to(DEVICE)
    learned = isinstance(alpha, torch.Tensor)
    inputs = (queries, gallery, alpha) if learned else (queries, gallery)

    def ours(q, g, a=alpha):
        return kernels.smooth_chamfer(q, g, a, log_mean, *lengths)

    def spec(q, g, a=alpha):
        return specified(q, g, a, log_mean, *lengths)

    got = gradients(ours, inputs, weights, None)
    plain = gradients(spec, inputs, weights, torch.float32)
    exact = gradients(spec, [x.double() for x in inputs], weights, torch.float64)
    for result, reference32, reference64, value in zip(got, plain, exact, inputs, strict=True):
        assert result.dtype == value.dtype and result.shape == value.shape
        # The gradient for alpha is the small difference of two sums of such size.
        scale = reference64.abs().max() if value.ndim else weights.abs().sum() / alpha
        assert_close_to_float64(result, reference32, reference64, scale.item())


@pytest.mark.parametrize(
    ("k", "size"), [(1, 1), (1, 4), (2, 3), (4, 4), (5, 8), (6, 1), (17, 32), (32, 3)]
)
def test_sizes(k, size):
    check(unit(3, k, 40), unit(5, size, 40, seed=1), 16.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("b", "n", "k", "dims"), [(1, 1, 4, 32), (17, 35, 4, 72), (33, 2, 6, 136)])
def test_odd_shapes_span_several_tiles(b, n, k, dims, dtype):
    check(unit(b, k, dims, dtype=dtype), unit(n, 4, dims, dtype=dtype, seed=1), 16.0)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 18.0, 19.0, 40.0, 80.0, 81.0, 200.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "opposite"])
def test_alpha_walk(alpha, kind):
    queries, gallery = unit(4, 32, 32), unit(3, 32, 32, seed=1)
    if kind == "peaked":
        gallery[:, :3] = queries[:3, :3]
    if kind in ("flat", "opposite"):
        queries = unit(1, 1, 32).repeat(4, 32, 1)
        gallery = (queries if kind == "flat" else -queries)[:3]
    check(queries, gallery, alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.5, 16.0, 300.0])
@pytest.mark.parametrize("log_mean", [False, True])
def test_gradient_for_alpha(alpha, log_mean, dtype):
    queries, gallery = unit(5, 4, 40, dtype=dtype), unit(6, 3, 40, dtype=dtype, seed=1)
    check(queries, gallery, torch.tensor(alpha, device=DEVICE), log_mean)


@pytest.mark.parametrize("alpha", [16.0, 200.0, torch.tensor(16.0)])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_padding_never_matters(alpha):
    queries, gallery = unit(5, 7, 40), unit(6, 4, 40, seed=1)
    lengths = torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])
    lengths = tuple(x.to(DEVICE) for x in lengths)
    alpha = alpha.to(DEVICE) if isinstance(alpha, torch.Tensor) else alpha
    check(queries, gallery, alpha, lengths=lengths)

    def all_gradients():
        q, g = queries.clone().requires_grad_(), gallery.clone().requires_grad_()
        a = alpha.clone().requires_grad_() if isinstance(alpha, torch.Tensor) else alpha
        kernels.smooth_chamfer(q, g, a, False, *lengths).square().sum().backward()
        return [q.grad, g.grad] + ([a.grad] if isinstance(a, torch.Tensor) else [])

    before = all_gradients()
    queries[torch.arange(7, device=DEVICE) >= lengths[0][:, None]] = torch.nan
    gallery[torch.arange(4, device=DEVICE) >= lengths[1][:, None]] = torch.inf
    after = all_gradients()
    assert after[0][0, 1:].eq(0).all() and after[1][1, 1:].eq(0).all()
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_gradients_repeat_bit_for_bit():
    queries, gallery = unit(9, 4, 72).requires_grad_(), unit(140, 4, 72, seed=1).requires_grad_()
    weights = torch.randn(9, 140, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    runs = [
        torch.autograd.grad(kernels.smooth_chamfer(queries, gallery), [queries, gallery], weights)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-7, 1e5])
def test_gradients_of_any_size_fit_half_precision(scale, dtype):
    """The result must only lose what its own type cannot hold."""
    queries, gallery = unit(3, 4, 32, dtype=dtype), unit(4, 4, 32, dtype=dtype, seed=1)
    weights = torch.full((3, 4), scale, device=DEVICE)

    def spec(q, g):
        return specified(q, g, 16.0, False, None, None)

    sides = queries, gallery
    got = gradients(kernels.smooth_chamfer, sides, weights, None)
    plain = gradients(spec, sides, weights, torch.float32)
    exact = gradients(spec, [x.double() for x in sides], weights, torch.float64)
    for result, reference32, reference64 in zip(got, plain, exact, strict=True):
        largest = reference64.abs().max().item()
        assert_close_to_float64(result, reference32, reference64, largest)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_of_weights_add_up(monkeypatch, dtype, lengths):
    """A workspace of 16 KiB: several chunks along both sides, the last ones smaller."""
    monkeypatch.setattr(products, "WORKSPACE", 1 << 14)
    queries, gallery = unit(70, 3, 40, dtype=dtype), unit(45, 4, 40, dtype=dtype, seed=1)
    generator = torch.Generator().manual_seed(0)
    sizes = [torch.randint(1, n + 1, (b,), generator=generator) for b, n in ((70, 3), (45, 4))]
    before = kernels.launches["score_weights"]
    check(
        queries, gallery, 16.0, lengths=[n.to(DEVICE) for n in sizes] if lengths else (None, None)
    )
    assert kernels.launches["score_weights"] - before >= 6


@pytest.mark.parametrize(("rows", "columns"), [(1, 10**7), (10**7, 1), (10**6, 10**6), (3, 5)])
def test_chunks_are_wide_and_fit(rows, columns):
    height, width = products.chunk_sides(rows, columns, 1 << 20)
    assert height * width <= 1 << 20
    assert height * width > (1 << 19) or (height, width) == (rows, columns)
    assert height == rows or width == columns or min(height, width) >= 1024


def nearly_equal(count, size, dims, dtype, seed):
    """Sets whose elements are one vector but for a hundredth."""
    generator = torch.Generator().manual_seed(seed)
    apart = torch.randn(count, size, dims, generator=generator, dtype=torch.float64) / dims**0.5
    one = torch.nn.functional.normalize(torch.arange(dims).double().cos(), dim=0)
    return torch.nn.functional.normalize(one + 0.01 * apart, dim=-1).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ragged", [False, True])
def test_weights_that_cancel_over_nearly_equal_sets(monkeypatch, dtype, ragged):
    """Rounding the weights does more than the gradient is, but for what they lose in sum."""
    monkeypatch.setattr(products, "WORKSPACE", 1 << 15)  # several chunks
    q, g = nearly_equal(40, 4, 64, dtype, 1), nearly_equal(50, 3, 64, dtype, 2)
    lengths = (None, None)
    if ragged:
        drawn = torch.Generator().manual_seed(3)
        drawn = [torch.randint(1, 1 + k, (n,), generator=drawn) for k, n in ((4, 40), (3, 50))]
        lengths = tuple(x.to(DEVICE) for x in drawn)
    weights = torch.randn(40, 50, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    weights -= weights.mean(0)
    weights -= weights.mean(1, keepdim=True)

    def ours(q, g):
        return kernels.smooth_chamfer(q, g, 16.0, False, *lengths)

    def spec(q, g):
        return specified(q, g, 16.0, False, *lengths)

    plain = gradients(spec, (q, g), weights, torch.float32)
    exact = gradients(spec, (q.double(), g.double()), weights, torch.float64)
    got = gradients(ours, (q, g), weights, None)
    for result, reference32, reference64 in zip(got, plain, exact, strict=True):
        assert_close_to_float64(result, reference32, reference64, reference64.abs().max().item())
    monkeypatch.setattr(products.Gradient, "mean", lambda self: self.elements[0].float() * 0)
    without = gradients(ours, (q, g), weights, None)
    for result, alone, reference64 in zip(got, without, exact, strict=True):
        errors = [(x.double() - reference64).abs().max() for x in (result, alone)]
        assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("upcast", [1, 1 << 12, 1 << 30])
def test_products_of_halves_where_torch_has_no_wide_output(monkeypatch, upcast):
    """In one part and in several, of transposed operands too, as exact as float32."""
    monkeypatch.setattr(products, "UPCAST", upcast)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(37, 50, generator=generator).half().to(DEVICE)
    b = torch.randn(37, 24, generator=generator).half().to(DEVICE)
    got = products.product_of_upcast(a.mT, b)
    assert got.dtype == torch.float32
    exact = a.double().mT @ b.double()
    assert_close_to_float64(got, a.float().mT @ b.float(), exact, exact.abs().max().item())
    assert products.product_of_upcast(a[:0], b[:, :1].expand(37, 50).mT).shape == (0, 37)


@pytest.mark.parametrize("wide", [False, True])
def test_a_gpu_multiplies_halves_by_what_torch_offers(monkeypatch, wide):
    """torch.mm(out_dtype=) came with torch 2.8."""
    monkeypatch.setattr(products, "WIDE_OUTPUT", wide)
    taken = []
    monkeypatch.setattr(torch, "mm", lambda *a, **options: taken.append(options))
    monkeypatch.setattr(products, "product_of_upcast", lambda a, b: taken.append("upcast"))
    half = type("Half", (), {"dtype": torch.float16, "device": torch.device("cuda")})
    products.multiply(half, half)
    assert taken == [{"out_dtype": torch.float32} if wide else "upcast"]


def test_torch_says_whether_it_has_wide_output():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert (version >= (2, 8)) == products.WIDE_OUTPUT


def test_only_the_gradients_asked_for_are_computed():
    queries, gallery = unit(2, 4, 32), unit(3, 4, 32, seed=1).requires_grad_()
    before = kernels.launches["score_weights"]
    kernels.smooth_chamfer(queries, gallery).sum().backward()
    assert kernels.launches["score_weights"] == before + 1
    assert queries.grad is None and gallery.grad is not None


def test_gradient_of_no_pairs_is_zero():
    queries = unit(2, 4, 32).requires_grad_()
    kernels.smooth_chamfer(queries, unit(0, 4, 32)).sum().backward()
    assert queries.grad.eq(0).all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators(learned, ragged):
    queries, gallery = unit(2, 4, 32).requires_grad_(), unit(3, 3, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True) if learned else None
    lengths = (torch.tensor([4, 2]), torch.tensor([1, 3, 2])) if ragged else (None, None)
    lengths = [x if x is None else x.to(DEVICE) for x in lengths]
    common = (queries, gallery, 16.0, alpha)
    torch.library.opcheck(torch.ops.divse.smooth_chamfer.default, (*common, True, *lengths))
    queries, gallery, number, alpha = (
        x.detach() if isinstance(x, torch.Tensor) else x for x in common
    )
    for wanted in ((True, True, learned), (False, True, False)):
        torch.library.opcheck(
            torch.ops.divse.scores_backward.default,
            (
                torch.randn(2, 3, device=DEVICE),
                queries,
                gallery,
                "smooth_chamfer",
                number,
                alpha,
                *lengths,
                *wanted,
            ),
        )


@pytest.mark.parametrize("learned", [False, True])
def test_compiles_as_one_graph(learned):
    def loss(queries, gallery, alpha):
        scores = kernels.smooth_chamfer(
            torch.nn.functional.normalize(queries, dim=-1), gallery, alpha
        )
        return (scores.diagonal() - scores.amax(1)).square().sum()

    queries, gallery = unit(3, 4, 32).requires_grad_(), unit(3, 4, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True) if learned else 16.0
    leaves = [queries, gallery] + [alpha] * learned
    expected = torch.autograd.grad(loss(queries, gallery, alpha), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(queries, gallery, alpha), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
