"""The Triton kernels as they ship: tensor cores, inline assembly, tuned tiles, large shapes."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")

pytestmark = pytest.mark.gpu


def unit(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, device="cuda")
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


def specified(queries, gallery, dtype, alpha=16.0):
    cosines = torch.einsum("bkd,nld->bnkl", queries.to(dtype), gallery.to(dtype))
    return reference.smooth_chamfer(cosines, alpha=alpha)


@pytest.fixture(autouse=True)
def plain_float32():
    """The fp32 reference must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("b", "n", "k", "size", "dims"),
    [
        (1024, 4096, 4, 4, 1024),  # the largest tile
        (128, 640, 4, 4, 1024),
        (32, 160, 6, 6, 256),
        (1, 20_000, 4, 4, 1024),  # the narrow tiles
        (7, 5_000, 4, 4, 512),
        (20_000, 3, 4, 8, 256),
        (100, 700, 32, 32, 128),
        (9, 1000, 5, 17, 520),
        (64, 64, 1, 1, 2048),
    ],
)
def test_scores_of_every_tile(b, n, k, size, dims, dtype):
    queries, gallery = unit(b, k, dims, dtype=dtype), unit(n, size, dims, dtype=dtype, seed=1)
    scores = kernels.smooth_chamfer(queries, gallery)
    some = slice(None, None, max(1, b // 16)), slice(None, None, max(1, n // 512))
    q, g = queries[some[0]], gallery[some[1]]
    plain, exact = (specified(q, g, dtype) for dtype in (torch.float32, torch.float64))
    assert_close_to_float64(scores[some], plain, exact, scale=exact.abs().max().item())


@pytest.mark.parametrize("alpha", [0.1, 1.0, 16.0, 18.0, 19.0, 40.0, 41.0, 80.0, 81.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "opposite"])
@pytest.mark.parametrize("size", [4, 32])
def test_alpha_walk_with_hardware_functions(alpha, kind, size):
    queries, gallery = unit(64, size, 128), unit(64, size, 128, seed=1)
    if kind == "peaked":
        gallery[:, : size // 2] = queries[:, : size // 2]
    if kind in ("flat", "opposite"):
        queries = unit(1, 1, 128).expand(64, size, 128)
        gallery = queries if kind == "flat" else -queries
    plain, exact = (specified(queries, gallery, t, alpha) for t in (torch.float32, torch.float64))
    scores = kernels.smooth_chamfer(queries, gallery, alpha)
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("b", "n", "k", "size", "dims", "alpha"),
    [
        (128, 640, 4, 4, 1024, 16.0),
        (256, 256, 4, 4, 256, 200.0),
        (3, 3000, 4, 4, 512, 16.0),
        (40, 50, 32, 17, 128, 16.0),
        (33, 65, 6, 3, 2048, 50.0),
    ],
)
def test_gradients(b, n, k, size, dims, alpha, dtype):
    queries, gallery = unit(b, k, dims, dtype=dtype), unit(n, size, dims, dtype=dtype, seed=1)
    weights = torch.randn(b, n, device="cuda")

    def gradients(score, inputs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        scores = score(*leaves)
        return torch.autograd.grad(scores, leaves, weights.to(scores.dtype))

    got = gradients(lambda q, g: kernels.smooth_chamfer(q, g, alpha), (queries, gallery))
    plain = gradients(lambda q, g: specified(q, g, torch.float32, alpha), (queries, gallery))
    exact = gradients(
        lambda q, g: specified(q, g, torch.float64, alpha), (queries.double(), gallery.double())
    )
    for result, reference32, reference64 in zip(got, plain, exact, strict=True):
        scale = reference64.abs().max().item()
        assert_close_to_float64(result, reference32, reference64, scale)


def test_gradients_repeat_bit_for_bit():
    queries, gallery = unit(64, 4, 1024).requires_grad_(), unit(5000, 4, 1024).requires_grad_()
    weights = torch.randn(64, 5000, device="cuda")
    first, second = (
        torch.autograd.grad(kernels.smooth_chamfer(queries, gallery), [queries, gallery], weights)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_memory_never_holds_the_cosines(monkeypatch):
    """1024 x 8192 sets of 4: 512 MiB of fp32 cosines; inputs, scores and gradients are 112 MiB."""
    monkeypatch.setattr("divse_kernels.products.WORKSPACE", 32 << 20)
    queries, gallery = unit(1024, 4, 256).requires_grad_(), unit(8192, 4, 256).requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.smooth_chamfer(queries, gallery).sum().backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 256 << 20


def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    queries = unit(2, 4, 1024)
    gallery = queries.repeat(300_000, 1, 1)  # 2.4e9 elements
    scores = kernels.smooth_chamfer(queries, gallery)
    expected = kernels.smooth_chamfer(queries, queries)
    assert torch.equal(scores[:, -2:], expected)
    assert torch.equal(scores.view(2, -1, 2), expected[:, None].expand(2, 300_000, 2))


def test_runs_on_the_current_stream_without_waiting():
    queries, gallery = unit(64, 4, 256), unit(64, 4, 256, seed=1)
    expected = kernels.smooth_chamfer(queries, gallery)
    alpha = torch.tensor(16.0, device="cuda", requires_grad=True)
    kernels.smooth_chamfer(queries, gallery, alpha).sum().backward()  # compiled before
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda.set_sync_debug_mode("error")
        try:
            late = torch.zeros_like(queries)
            torch.cuda._sleep(100_000_000)
            late.copy_(queries)
            scores = kernels.smooth_chamfer(late, gallery)
            kernels.smooth_chamfer(late, gallery, alpha).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(scores, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors():
    queries, gallery = unit(8, 4, 64), unit(9, 4, 64, seed=1)
    there = kernels.smooth_chamfer(queries.to("cuda:1"), gallery.to("cuda:1"))
    assert there.device.index == 1
    assert torch.equal(there.to("cuda:0"), kernels.smooth_chamfer(queries, gallery))
    assert "move one" in kernels.supports(queries, gallery.to("cuda:1"))


def test_compiles_with_the_default_backend():
    def loss(queries, gallery):
        unit_queries = torch.nn.functional.normalize(queries.float(), dim=-1).bfloat16()
        return kernels.smooth_chamfer(unit_queries, gallery).square().sum()

    queries, gallery = unit(32, 4, 256).requires_grad_(), unit(48, 4, 256, seed=1)
    (expected,) = torch.autograd.grad(loss(queries, gallery), queries)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(queries, gallery), queries)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-4)


def test_cpu_tensors_are_refused_with_advice():
    reason = kernels.supports(torch.zeros(1, 4, 32), torch.zeros(1, 4, 32))
    assert "TRITON_INTERPRET=1" in reason
