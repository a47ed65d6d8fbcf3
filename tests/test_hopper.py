"""The CUDA kernel for Hopper: its source run by an emulated machine, its glue, its choice."""

import math

import pytest
import torch
from hopper_cases import build
from tolerance import assert_close_to_float64

import divse
from divse.similarity import reference

hopper = pytest.importorskip("divse_kernels.hopper")
from divse_kernels import autotune, tile_cache  # noqa: E402


def unit(*shape, dtype=torch.float16, seed=0):
    sets = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


def specified(queries, gallery, dtype, **kind):
    cosines = torch.einsum("bkd,nld->bnkl", queries.to(dtype), gallery.to(dtype))
    return reference.smooth_chamfer(cosines, **kind)


def assert_right(scores, queries, gallery, **kind):
    exact = specified(queries, gallery, torch.float64, **kind)
    plain = specified(queries, gallery, torch.float32, **kind)
    if queries.is_cuda:
        # Tensor cores sum in fp32 but truncate: so does this product, which the rule is held to.
        sides = queries.flatten(0, 1), gallery.flatten(0, 1).mT
        cosines = torch.mm(*sides, out_dtype=torch.float32)
        shape = len(queries), queries.shape[1], len(gallery), gallery.shape[1]
        plain = reference.smooth_chamfer(cosines.view(shape).transpose(1, 2), **kind)
    assert_close_to_float64(scores, plain, exact, scale=exact.abs().max().item())


@pytest.fixture
def on_cpu(emulated, monkeypatch):
    """The emulated machine in the compiled module's place."""
    monkeypatch.setattr(hopper, "module", lambda: emulated)
    monkeypatch.setattr(hopper, "_device_refusal", lambda device: None)
    return emulated


@pytest.mark.parametrize(
    ("alpha", "dtype"),
    [(0.1, torch.float16), (16.0, torch.bfloat16), (18.0, torch.float16)]
    + [(19.0, torch.float16), (80.0, torch.bfloat16)],
)
@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_scores_of_every_size(on_cpu, size, alpha, dtype):
    """Several tiles both ways, the last ones not full, D no multiple of a stage's."""
    queries, gallery = unit(130 // size + 1, size, 72, dtype=dtype), unit(260 // size + 3, size, 72)
    gallery = gallery.to(dtype)
    log_mean = size == 8
    scores = hopper.smooth_chamfer(queries, gallery, alpha, log_mean)
    assert_right(scores, queries, gallery, alpha=alpha, log_mean=log_mean)


@pytest.mark.parametrize("kind", ["peaked", "flat", "opposite"])
def test_extreme_cosines(on_cpu, kind):
    queries = unit(5, 4, 64)
    gallery = {"peaked": queries, "flat": queries[:, :1].expand(-1, 4, -1), "opposite": -queries}
    for alpha in (18.0, 80.0):
        scores = hopper.smooth_chamfer(queries, gallery[kind], alpha)
        assert_right(scores, queries, gallery[kind], alpha=alpha)


@pytest.mark.parametrize(("b", "n"), [(1, 1), (1, 31), (32, 33), (33, 64), (65, 2), (3, 200)])
@pytest.mark.parametrize("dims", [32, 65 * 8])
def test_odd_counts_and_more_stages_than_fit(on_cpu, b, n, dims):
    queries, gallery = unit(b, 4, dims), unit(n, 4, dims, seed=1)
    assert_right(hopper.smooth_chamfer(queries, gallery), queries, gallery, alpha=16.0)


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_clusters_share_the_tiles(on_cpu, clusters):
    """Whatever their number is, and also where one has an odd number of tiles, or none."""
    on_cpu.clusters = clusters
    queries, gallery = unit(70, 4, 128), unit(200, 4, 128, seed=1)
    assert_right(hopper.smooth_chamfer(queries, gallery), queries, gallery, alpha=16.0)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_that_the_machine_may_choose(on_cpu, seed):
    on_cpu.seed = seed
    queries, gallery = unit(40, 4, 456), unit(140, 4, 456, seed=1)
    scores = hopper.smooth_chamfer(queries, gallery)
    assert_right(scores, queries, gallery, alpha=16.0)
    on_cpu.seed = 1000 + seed
    assert torch.equal(scores, hopper.smooth_chamfer(queries, gallery))


FAULTS = {
    "a stage is released too early": {
        "                from.release(step - 1);\n": "                from.release(step);\n"
    },
    "a copy does not wait for its stage": {"to.wait_until_empty(step);": ""},
    "sums are read before they are ready": {"wait_for_products<0>();": ""},
    "a group of products is forgotten": {"wait_for_products<1>();": "wait_for_products<2>();"},
    "a block leaves too early": {"    meet_cluster();  // no block": "    // no block"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulated_machine_notices(tmp_path, emulated, fault):
    """What would be a race on a GPU is a wrong score or an error here."""
    broken = build(tmp_path, FAULTS[fault])
    queries, gallery = unit(53, 4, 200), unit(80, 4, 200, seed=1)
    expected = specified(queries, gallery, torch.float64, alpha=16.0)
    noticed = 0
    for broken.seed in range(3):
        found = torch.full((80, 53), math.nan)
        sides = [(x.data_ptr(), *x.shape, *x.stride()[:2]) for x in (gallery, queries)]
        try:
            broken.smooth_chamfer(*sides, True, found.data_ptr(), found.stride(), 16.0, False, 0)
        except RuntimeError:
            noticed += 1
        else:
            noticed += not torch.allclose(found.T.double(), expected, atol=1e-5)
    assert noticed == 3


def test_nothing_but_the_scores_is_written(emulated):
    queries, gallery = unit(33, 8, 64), unit(37, 8, 64, seed=1)
    room = torch.full((40, 48), math.nan)
    inner = room[2:35, 3:40]  # (33, 37) with strides of its own
    sides = [(x.data_ptr(), *x.shape, *x.stride()[:2]) for x in (gallery, queries)]
    strides = inner.stride()[::-1]
    emulated.smooth_chamfer(*sides, True, inner.data_ptr(), strides, 16.0, False, 0)
    assert_right(inner, queries, gallery, alpha=16.0)
    inner.fill_(math.nan)
    assert room.isnan().all()


def test_sets_of_any_strides(on_cpu):
    wide = unit(20, 8, 160)
    queries = wide[::2, ::2, 16:80]  # strides are multiples of 8: taken as it is
    gallery = unit(64, 4, 30, seed=1).transpose(0, 2)  # (30, 4, 64): copied
    assert_right(hopper.smooth_chamfer(queries, gallery), queries, gallery, alpha=16.0)


def test_as_an_implementation(on_cpu):
    queries, gallery = unit(6, 4, 64), unit(9, 4, 64, seed=1)
    before = divse.calls["cuda.scores"]
    scores = divse.smooth_chamfer(queries, gallery, unit_norm=False, impl="cuda")
    assert divse.calls["cuda.scores"] == before + 1 and on_cpu.calls > 0
    assert_right(scores, queries, gallery, alpha=16.0)
    assert divse.explain(queries, gallery, impl="cuda").impl == "cuda"


def test_gradient_is_that_of_the_specification(on_cpu):
    queries, gallery = unit(6, 4, 64), unit(9, 4, 64, seed=1)
    weights = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    found = []
    for cast in (None, torch.float32, torch.float64):
        q, g = (x.clone() if cast is None else x.to(cast) for x in (queries, gallery))
        q, g = q.requires_grad_(), g.requires_grad_()
        scores = hopper.smooth_chamfer(q, g) if cast is None else specified(q, g, cast, alpha=16.0)
        found.append(torch.autograd.grad((scores * weights.to(scores.dtype)).sum(), (q, g)))
    for got, plain, exact in zip(*found, strict=True):
        rounding = exact.abs().max().item() * torch.finfo(torch.float16).eps
        assert (got.double() - exact).abs().max() <= rounding
        assert (plain.double() - exact).abs().max() <= rounding
    torch.library.opcheck(
        torch.ops.divse.smooth_chamfer_hopper, (queries, gallery, 16.0, False), test_utils=OPCHECKS
    )


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("queries", "gallery", "kind", "reason"),
    [
        (unit(2, 4, 64).float(), unit(3, 4, 64).float(), {}, "float16 or bfloat16"),
        (unit(2, 4, 64), unit(3, 8, 64), {}, "sets of one size"),
        (unit(2, 3, 64), unit(3, 3, 64), {}, "2, 4, 8, 16, 32, got 3 and 3"),
        (unit(2, 4, 60), unit(3, 4, 60), {}, "multiple of 8"),
        (unit(2, 4, 64), unit(3, 4, 64), {"alpha": 81.0}, r"alpha in \(0, 80\], got 81"),
        (unit(2, 4, 64), unit(3, 4, 64), {"alpha": torch.tensor(16.0)}, "alpha as a number"),
        (unit(2, 4, 64), unit(3, 4, 64), {"query_lengths": [4, 2]}, "got lengths"),
        (unit(2, 4, 64), unit(3, 4, 64), {"similarity": "maxsim"}, "no kernel for scores by max"),
    ],
)
def test_what_it_does_not_serve_is_said(on_cpu, queries, gallery, kind, reason):
    with pytest.raises(ValueError, match=f'impl="cuda" cannot serve this call: .*{reason}'):
        divse.score(queries, gallery, unit_norm=False, impl="cuda", **kind)


def test_other_devices_and_operations_are_refused(monkeypatch):
    queries, gallery = unit(2, 4, 64), unit(3, 4, 64)
    with pytest.raises(ValueError, match="needs CUDA tensors, got a tensor on cpu"):
        divse.score(queries, gallery, impl="cuda", unit_norm=False)
    with pytest.raises(ValueError, match="no kernel for search"):
        divse.search(queries, gallery, 2, impl="cuda")
    gpu = torch.device("cuda")
    for capability, text in (((8, 0), "compute capability 9.0"), ((9, 0), "was not built")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(hopper, "module", lambda: None)
        assert text in hopper._device_refusal(gpu)


def test_measuring_decides_what_auto_takes(on_cpu, tmp_path, monkeypatch):
    from functools import partial

    from divse_kernels import smooth_chamfer

    monkeypatch.setenv("DIVSE_CACHE", str(tmp_path))
    tile_cache.forget()
    queries, gallery = unit(6, 4, 64), unit(9, 4, 64, seed=1)
    call = partial(smooth_chamfer, queries, gallery)
    times = iter([1.0, 2.0])
    assert not hopper.faster(queries, gallery, 16.0)
    found = autotune.choose(call, lambda _: next(times))
    assert found["faster"] and found["error"] < 1e-6
    assert hopper.faster(queries, gallery, 16.0) and hopper.faster(queries[:5], gallery, 17.0)
    assert not hopper.faster(queries, gallery, 30.0)
    tile_cache.forget()
    assert hopper.faster(queries, gallery, 16.0)  # from the file
    # a wrong kernel is never chosen, however fast it is
    times = iter([1.0, 2.0])
    monkeypatch.setattr(hopper, "smooth_chamfer", lambda q, g: call() + 1e-3)
    assert not autotune.choose(call, lambda _: next(times))["faster"]
    assert not hopper.faster(queries, gallery, 16.0)
    assert autotune.choose(partial(smooth_chamfer, queries.float(), gallery.float())) is None
    tile_cache.forget()


def test_auto_on_a_gpu_asks_what_was_measured(monkeypatch):
    """Without a GPU: sets that say they are on one."""
    from divse.similarity import cuda, dispatch, triton
    from divse.similarity.inputs import Sets
    from divse.similarity.table import get_similarity

    sets = Sets(torch.empty(2, 4, 64, dtype=torch.float16, device="meta"), None)
    asked = "scores", "auto", sets, sets, get_similarity("smooth_chamfer")
    monkeypatch.setattr(triton, "why_not", lambda *asked: None)
    monkeypatch.setattr(cuda, "why_not", lambda *asked: None)
    for faster, chosen in ((False, "triton"), (True, "cuda")):
        monkeypatch.setattr(hopper, "faster", lambda *sets, f=faster: f)
        found = dispatch.choose(*asked)
        assert found.impl == chosen
        assert ("not measured to be faster" in str(found)) is not faster
    monkeypatch.setattr(cuda, "why_not", lambda *asked: "no such device")
    assert dispatch.choose(*asked).passed_over == {"cuda": "no such device"}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "n", "size", "dims"),
    [
        (1024, 4096, 4, 1024),
        (1000, 5001, 4, 256),
        (129, 3001, 32, 128),
        (64, 4097, 16, 264),
        (3, 7000, 8, 512),
        (300, 3001, 2, 64),
        (1, 1, 2, 64),
    ],
)
@pytest.mark.parametrize("alpha", [0.1, 16.0, 18.0, 19.0, 60.0, 80.0])
def test_on_a_hopper_gpu(b, n, size, dims, alpha, dtype):
    queries, gallery = unit(b, size, dims, dtype=dtype).cuda(), unit(n, size, dims, seed=1).cuda()
    gallery = gallery.to(dtype)
    if torch.cuda.get_device_capability() != hopper.CAPABILITY:
        pytest.skip("the CUDA kernel is for compute capability 9.0")
    scores = hopper.smooth_chamfer(queries, gallery, alpha)
    # Odd steps meet every place within a tile.
    rows, columns = (slice(None, None, max(1, c // m) | 1) for c, m in ((b, 64), (n, 512)))
    assert_right(scores[rows, columns], queries[rows], gallery[columns], alpha=alpha)
    assert scores.isfinite().all()
    assert torch.equal(scores, hopper.smooth_chamfer(queries, gallery, alpha))
