"""The parts of a Triton search: short rows, parts scanned again, streams, memory."""

import pytest
import torch

pytest.importorskip("divse_kernels")

from search_cases import DEVICE, bitmap, exact, expect, searched, unit

import divse_kernels as kernels
from divse_kernels import launches
from divse_kernels.best import MAX_TOPK, Best, Progress, row_width, unpack
from divse_kernels.launch import Side
from divse_kernels.rescoring import appended, rescore
from divse_kernels.search_driver import Driver
from divse_kernels.search_scan import ExactScan

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("kind", ["random", "ascending", "descending", "equal", "copies"])
def test_many_parts(kind, width):
    queries, gallery = unit(2, 2, 32), unit(45 if width == 8 else 300, 2, 32, seed=1)
    order = kernels.smooth_chamfer(queries, gallery)[0].argsort()
    if kind in ("equal", "copies"):  # equal scores, wherever in a tile they are computed
        queries, gallery = exact(2, 2, 32), exact(len(gallery), 2, 32, seed=1)
    gallery = {
        "random": gallery,
        "ascending": gallery[order],
        "descending": gallery[order.flip(0)],
        "equal": gallery[:1].expand_as(gallery),
        "copies": gallery[:15].repeat(len(gallery) // 15, 1, 1),
    }[kind].contiguous()
    expect(searched(queries, gallery, 2, width), queries, gallery, 2)


@pytest.mark.parametrize("width", [64, 512])
def test_scores_that_ascend_fail_parts_where_rows_are_short(monkeypatch, width):
    """They beat every threshold: parts are scanned again in halves, and halves of halves."""
    recover, recoveries = Best.recover, []
    monkeypatch.setattr(Best, "recover", lambda best: recoveries.append(recover(best)))
    queries, gallery = unit(1, 1, 32), unit(450, 1, 32, seed=1)
    gallery = gallery[kernels.smooth_chamfer(queries, gallery)[0].argsort()]
    before = launches["search_scan"]
    expect(searched(queries, gallery, 2, width), queries, gallery, 2)
    scans = launches["search_scan"] - before
    assert (len(recoveries) > 2 and scans > 6) if width == 64 else (not recoveries and scans == 1)


def test_equal_scores_come_by_position_across_parts():
    queries = exact(3, 4, 32)
    gallery = queries[:1].expand(50, 4, 32).contiguous()
    for width in (16, 64):
        assert (searched(queries, gallery, 6, width)[1] == torch.arange(6, device=DEVICE)).all()


def test_excluded_sets_at_the_front():
    """No threshold is known where the sets that are left begin."""
    queries, gallery = unit(3, 1, 32), unit(400, 1, 32, seed=1)
    excluded = torch.arange(400, device=DEVICE) < 300
    found = searched(queries, gallery, 2, 64, excluded=bitmap(excluded))
    expect(found, queries, gallery, 2, excluded)


@pytest.mark.parametrize("sizes", [[40], [1, 1, 38], [13, 0, 16, 11]])
def test_blocks_of_any_sizes(sizes):
    queries, gallery = unit(3, 4, 32), unit(40, 3, 32, seed=1)
    excluded = torch.arange(40, device=DEVICE) % 7 == 0
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    host = gallery.cpu()
    blocks = [(a, host[a : a + n], None) for a, n in zip(starts, sizes, strict=False)]
    found = kernels.search_blocks(queries, blocks, 11, excluded=bitmap(excluded))
    whole = kernels.search(queries, gallery, 11, excluded=bitmap(excluded))
    assert torch.equal(found.ids, whole.ids)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-6, atol=1e-6)
    parts = [(a, (sets, lengths)) for a, sets, lengths in blocks]
    expect(searched(queries, gallery, 4, 16, parts), queries, gallery, 4)


def test_blocks_of_other_shapes():
    queries, gallery = unit(2, 2, 32), unit(45, 2, 32, seed=1)
    wide = torch.cat([gallery, torch.full_like(gallery, torch.nan)], 1).cpu()
    lengths = torch.full((45,), 2)
    parts = [
        (0, (gallery[:20].cpu(), None)),
        (20, (wide[20:35], lengths[20:35])),
        (35, (gallery[35:].cpu(), lengths[35:])),
    ]
    expect(searched(queries, gallery, 3, 16, parts), queries, gallery, 3)


def test_a_part_that_failed_is_scanned_again_before_its_memory_is_reused(monkeypatch):
    """As on a GPU: marks are looked at late, and blocks take turns in two places."""
    monkeypatch.setattr(Best, "progress", lambda best: Progress(best.state.clone()))
    queries, gallery = unit(2, 1, 32), unit(700, 1, 32, seed=1)
    gallery = gallery[kernels.smooth_chamfer(queries, gallery)[1].argsort()]
    places = torch.full((2, 100, 1, 32), torch.nan, device=DEVICE)

    def blocks():
        for turn, block in enumerate(gallery.split(100)):
            yield 100 * turn, (places[turn % 2].copy_(block), None)

    recover, recoveries = Best.recover, []
    monkeypatch.setattr(Best, "recover", lambda best: recoveries.append(recover(best)))
    expect(searched(queries, gallery, 2, 64, blocks()), queries, gallery, 2)
    assert len(recoveries) > 2


def test_a_scan_by_bounds_plugs_in():
    """Bounds are appended, scored exactly, and only then merged."""
    queries, gallery = unit(3, 4, 32), unit(60, 4, 32, seed=1)
    exact = kernels.smooth_chamfer(queries, gallery)
    scored = torch.zeros(3, dtype=torch.int64, device=DEVICE)

    def scan(part, first, best):
        ExactScan(Side.of(queries, None), 1.0, False, None, 60)(part, first, best)  # looser
        chosen = appended(best, first, scored)
        rescore(best, chosen, exact.gather(1, (chosen + first).clamp_min(0)), first)

    loose = kernels.smooth_chamfer(queries, gallery, 1.0)
    assert (loose >= exact).all()
    best = Best(3, 5, queries.device, 32)
    driver = Driver(scan, best)
    driver.feed((gallery, None), 0)
    driver.settle()
    expect(best.results(), queries, gallery, 5)
    assert (scored >= 5).all()


def keys_of(scores, positions):
    """Keys (8,) as the kernels make them."""
    best = Best(1, 1, torch.device(DEVICE), 8)
    rescore(
        best, torch.tensor([positions], device=DEVICE), torch.tensor([scores], device=DEVICE), 0
    )
    return best.keys[0]


def test_keys_order_as_scores_then_positions():
    scores = [-torch.inf, -2.0, -1.0, -1e-30, 0.0, 1e-30, 3.0, torch.inf]
    positions = [7, 0, (1 << 32) - 2, 3, 4, 5, 6, 1]
    keys = keys_of(scores, positions)
    assert (keys.diff() > 0).all()
    found = unpack(keys)
    assert found[0].tolist() == torch.tensor(scores).tolist()
    assert found[1].tolist() == positions
    zeros = keys_of([0.0, -0.0, torch.nan, *scores[3:]], [1, 2, 3, *positions[3:]])
    assert zeros[0] > zeros[1]
    assert unpack(zeros)[0][2] == -torch.inf


def test_memory_is_bounded_whatever_the_gallery():
    for topk in (1, 10, 100, MAX_TOPK):
        best = Best(1024, topk, torch.device("meta"))
        assert best.keys.nbytes + best.counts.untyped_storage().nbytes() <= 33 << 20
        assert best.room >= 3 * topk
    assert row_width(1, 10) >= row_width(16, 10) >= row_width(1024, 10) >= 1024
    assert row_width(5, 10, sets=20) == 32


def test_a_scan_that_appends_too_much_is_found_out():
    best = Best(1, 2, CPU, 4)

    def scan(part, first, best):
        best.state[0] = 1

    driver = Driver(scan, best)
    driver.feed((torch.zeros(2, 1, 32), None), 0)
    with pytest.raises(RuntimeError, match="appended more than 2"):
        driver.settle()


def large(*shape, dtype=torch.float16, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, device=DEVICE)
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("b", "n", "topk"),
    [(1, 300_000, 10), (16, 100_000, 1000), (64, 100_000, 10), (700, 50_001, 100)],
)
def test_large_galleries(b, n, topk, dtype):
    queries, gallery = large(b, 4, 256, dtype=dtype), large(n, 4, 256, dtype=dtype, seed=1)
    found = kernels.search(queries, gallery, topk)
    again = kernels.search(queries, gallery, topk)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    expected = kernels.smooth_chamfer(queries, gallery).topk(topk).values
    torch.testing.assert_close(found.scores, expected, rtol=1e-6, atol=1e-6)
    assert (found.ids.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.gpu
def test_memory_beside_the_gallery():
    queries, gallery = large(1024, 4, 64), large(1000, 4, 64, seed=1)
    gallery = gallery.repeat(1000, 1, 1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.search(queries, gallery, MAX_TOPK)
    assert torch.cuda.max_memory_allocated() - before < 256 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [False, True])
def test_host_blocks_stream_on_any_stream(pinned):
    queries, gallery = large(5, 4, 256), large(60_000, 4, 256, seed=1)
    whole = kernels.search(queries, gallery, 50)
    host = gallery.cpu().pin_memory() if pinned else gallery.cpu()
    blocks = [(a, host[a : a + 7_000], None) for a in range(0, 60_000, 7_000)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = kernels.search_blocks(queries, blocks, 50)
    stream.synchronize()
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.scores, whole.scores)


@pytest.mark.gpu
def test_streamed_blocks_that_ascend_are_scanned_again_in_time():
    """A part that failed must still be in its staging memory when it is scanned again."""
    queries, gallery = large(2, 4, 64), large(50_000, 4, 64, seed=1)
    gallery = gallery[kernels.smooth_chamfer(queries, gallery)[0].argsort()].contiguous()
    host = gallery.cpu()
    blocks = [(a, host[a : a + 5_000], None) for a in range(0, 50_000, 5_000)]
    found = kernels.search_blocks(queries, blocks, 100)
    whole = kernels.search(queries, gallery, 100)
    assert torch.equal(found.ids, whole.ids)


@pytest.mark.gpu
def test_the_host_waits_once():
    """For an event at the end: nothing else reads from the device."""
    queries, gallery = large(4, 4, 64), large(100_000, 4, 64, seed=1)
    expected = kernels.search(queries, gallery, 10)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = kernels.search(queries, gallery, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.ids, expected.ids)
