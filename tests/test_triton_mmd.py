"""The mean of an RBF kernel over all pairs, and its gradients, against float64."""

import pytest
import torch
from tolerance import EPS32, assert_close_to_float64

kernels = pytest.importorskip("divse_kernels")
products = pytest.importorskip("divse_kernels.products")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    elements = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(elements, dim=-1).to(DEVICE, dtype)


def specified(x, y=None):
    """Distances by differences, where equal elements are exactly so."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.exp(-0.5 * torch.cdist(x, x if y is None else y, compute_mode=exact)).mean()


def results(function, inputs, dtype=None):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*(x.to(dtype) if dtype else x for x in leaves))
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def check(*inputs, scale=1.0):
    """Compare the mean and the gradients of x, or of x and y; those of one element are `scale`."""
    got = results(kernels.rbf_mean, inputs)
    plain = results(specified, inputs, torch.float32)
    exact = results(specified, [x.double() for x in inputs], torch.float64)
    assert_close_to_float64(got[0], plain[0], exact[0])
    half = 0.0 if inputs[0].dtype == torch.float32 else torch.finfo(inputs[0].dtype).eps
    for a, b, c, x in zip(got[1:], plain[1:], exact[1:], inputs, strict=True):
        assert a.dtype == x.dtype and a.shape == x.shape
        # Terms of this size, whose distances have twice the relative error of their squares.
        largest = scale / len(x)
        assert_close_to_float64(a, b, c, scale=largest * (1 + half / (8 * EPS32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("p", "q", "dims"), [(1, 2, 32), (70, 33, 72), (33, 300, 40), (300, 5, 136)]
)
def test_two_lots(p, q, dims, dtype):
    check(unit(p, dims, dtype=dtype), unit(q, dims, dtype=dtype, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 30, 300])
def test_one_lot(count, dtype):
    check(unit(count, 40, dtype=dtype))


def test_one_lot_may_be_given_twice():
    x = unit(30, 40).requires_grad_()
    (once,) = torch.autograd.grad(kernels.rbf_mean(x), x)
    (twice,) = torch.autograd.grad(kernels.rbf_mean(x, x), x)
    (copied,) = torch.autograd.grad(kernels.rbf_mean(x, x * 1.0), x)
    assert torch.equal(once, twice)
    torch.testing.assert_close(copied, once, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_elements_have_no_gradient(dtype):
    """As in torch.cdist; a half of x is in y, some elements twice, and one is of zeros."""
    x, y = unit(40, 64, dtype=dtype), unit(50, 64, dtype=dtype, seed=1)
    x[3], y[7] = 0.0, 0.0
    y[:20], y[20:25] = x[20:], x[20]
    check(x, y)
    same = unit(1, 64, dtype=dtype).expand(9, 64).clone().requires_grad_()
    mean = kernels.rbf_mean(same)
    mean.backward()
    assert mean == 1 and same.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [0.05, 0.3])
def test_near_elements(apart, dtype):
    """Sums of weights times elements cancel: what is left is smaller by the distance."""
    middle = unit(1, 64).double()
    x, y = (
        torch.nn.functional.normalize(middle + apart * unit(30, 64, seed=seed).double(), dim=-1)
        for seed in (1, 2)
    )
    check(x.to(dtype), y.to(dtype), scale=1 / apart**2)


@pytest.mark.parametrize("scale", [0.02, 30.0])
def test_elements_of_any_norm(scale):
    check(scale * unit(30, 40), scale * unit(20, 40, seed=1), scale=max(1.0, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("same", [False, True])
def test_chunks_of_weights_add_up(monkeypatch, dtype, same):
    monkeypatch.setattr(products, "WORKSPACE", 1 << 14)
    before = kernels.launches["rbf_weights"]
    lots = [unit(150, 32, dtype=dtype), unit(210, 32, dtype=dtype, seed=1)]
    check(*lots[: 1 if same else 2])
    assert kernels.launches["rbf_weights"] - before > 2


def test_repeats_bit_for_bit():
    lots = unit(300, 32), unit(70, 32, seed=1)
    first, second = (results(kernels.rbf_mean, lots) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_the_gradient_asked_for_is_computed():
    x, y = unit(5, 32), unit(6, 32, seed=1).requires_grad_()
    kernels.rbf_mean(x, y).backward()
    assert x.grad is None and y.grad is not None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="y must be .* not empty"):
        kernels.rbf_mean(unit(3, 32), unit(3, 32)[:0])
    with pytest.raises(ValueError, match="x must be"):
        kernels.rbf_mean(unit(3, 2, 32))
    with pytest.raises(ValueError, match="D must be a multiple of 8"):
        kernels.rbf_mean(unit(3, 36), unit(3, 36))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators(same):
    x = unit(5, 32).requires_grad_()
    y = None if same else unit(4, 32, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.divse.rbf_mean.default, (x, y))
    given = (
        torch.ones((), device=DEVICE),
        x.detach(),
        None if same else y.detach(),
        True,
        not same,
    )
    torch.library.opcheck(torch.ops.divse.rbf_mean_backward.default, given)


def test_compiles_as_one_graph():
    def loss(x, y):
        return kernels.rbf_mean(x * 1.0) - 2 * kernels.rbf_mean(x * 1.0, y) + kernels.rbf_mean(y)

    lots = [unit(5, 32).requires_grad_(), unit(6, 32, seed=1).requires_grad_()]
    expected = torch.autograd.grad(loss(*lots), lots)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*lots), lots)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
