"""int8 codes on a GPU: codes as specified, bounds that bound, a certified search that is exact."""

import math

import pytest
import torch

import divse
from divse.similarity import quantise as specification

kernels = pytest.importorskip("divse_kernels")

from divse_kernels import certified  # noqa: E402
from divse_kernels.best import Best, unpack  # noqa: E402
from divse_kernels.int8_codes import CodedQueries, encode  # noqa: E402
from divse_kernels.int8_scan import CertifiedScan  # noqa: E402
from divse_kernels.launch import Side  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_first_part(monkeypatch):
    """Thresholds after 64 sets rather than 1024, so that small galleries are scanned by codes."""
    monkeypatch.setattr(certified.CertifiedDriver, "FIRST", 64)


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def lengths(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, size + 1, (count,), generator=generator).to(DEVICE)


def crowds(count, size, dims, noise=0.5, dtype=torch.float32):
    """Sets around 40 centres, so that the best of a query stand out."""
    centres = unit(40, 1, dims)[torch.arange(count, device=DEVICE) % 40]
    sets = centres + noise * unit(count, size, dims, seed=1)
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


def exact_scores(queries, gallery, sizes=(None, None), **options):
    return divse.score(
        queries.double(),
        gallery.double(),
        unit_norm=False,
        query_lengths=sizes[0],
        gallery_lengths=sizes[1],
        impl="reference",
        **options,
    )


def bounds(queries, gallery, sizes, alpha=16.0, log_mean=False, similarity="smooth_chamfer"):
    """Upper bounds (B, N) of all pairs, out of a scan that lets all of them pass."""
    (b, _, _), (n, size, _) = queries.shape, gallery.shape
    codes, scales, residuals = kernels.quantise(gallery, sizes[1])
    level = alpha if similarity == "smooth_chamfer" else math.inf
    coded = CodedQueries.of(queries, sizes[0], size, level)
    none = torch.zeros(b, dtype=torch.int64, device=DEVICE)
    side = Side.of(queries, sizes[0])
    scan = CertifiedScan(coded, side, alpha, log_mean, None, none, similarity)
    best = Best(b, 1, gallery.device, width=1024)
    scan.launch(Side(codes, sizes[1]), scales, residuals, 0, best)
    found, positions = unpack(best.keys[:, :n])
    return torch.empty(b, n, device=DEVICE).scatter_(1, positions, found)


def search(queries, gallery, topk, sizes=(None, None), **options):
    codes = kernels.quantise(gallery, sizes[1])
    return kernels.certified_search(
        queries,
        gallery,
        *codes,
        topk,
        query_lengths=sizes[0],
        gallery_lengths=sizes[1],
        **options,
    )


def check_search(queries, gallery, topk, sizes=(None, None), excluded=None, **options):
    """Scores are those of the best, and every position has the score that stands beside it."""
    scores, ids, survivors = search(queries, gallery, topk, sizes, excluded=excluded, **options)
    exact = exact_scores(queries, gallery, sizes, **options)
    if excluded is not None:
        n = torch.arange(len(gallery), device=DEVICE)
        exact[:, ((excluded[n >> 3] >> (n & 7)) & 1).bool()] = -torch.inf
    expected = exact.sort(dim=1, descending=True).values[:, :topk].float()
    torch.testing.assert_close(scores, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(exact.gather(1, ids).float(), expected, rtol=2e-6, atol=2e-6)
    assert all(len(set(row)) == topk for row in ids.tolist())
    assert (survivors >= topk).all()
    return scores, ids, survivors


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dims", [32, 136])
@pytest.mark.parametrize("ragged", [False, True])
def test_codes_are_those_of_the_specification(dtype, dims, ragged):
    values = unit(7, 5, dims, dtype=dtype)
    values[2, 3] = 0
    sizes = lengths(7, 5, 1) if ragged else None
    codes, scales, residuals = kernels.quantise(values, sizes)
    expected = specification.quantise(values, sizes)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scales, expected.scales)
    torch.testing.assert_close(residuals, expected.residuals, rtol=3e-7, atol=0)
    parts, part_scales, rests, _ = encode(values, sizes, parts=2)
    two = specification.two_parts(values, sizes)
    assert torch.equal(parts, torch.stack([two.codes1, two.codes2]))
    assert torch.equal(part_scales, torch.stack([two.scales1, two.scales2]))
    torch.testing.assert_close(rests, torch.stack([two.rest1, two.rest]), rtol=3e-7, atol=0)


def test_only_unit_vectors_have_codes():
    for value, norm in ((2.0, "2"), (math.nan, "nan")):
        values = unit(3, 2, 32)
        values[1, 1] = 0
        values[1, 1, 5] = value
        with pytest.raises(ValueError, match=f"element 1 of set 1 has norm {norm}"):
            kernels.quantise(values)
    assert kernels.quantise(values, torch.tensor([2, 1, 2], device=DEVICE))[0].shape == (3, 2, 32)


@pytest.mark.parametrize("alpha", [0.1, 16.0, 18.0, 40.0, 80.0, 1000.0])
@pytest.mark.parametrize(
    ("k", "size", "dims", "dtype"),
    [(4, 4, 64, torch.float32), (3, 5, 144, torch.bfloat16), (5, 9, 32, torch.float16)],
)
def test_bounds_bound(k, size, dims, dtype, alpha):
    queries, gallery = unit(3, k, dims), unit(12, size, dims, dtype=dtype, seed=1)
    gallery[5, 0], gallery[6] = queries[1, 0].to(dtype), queries[2, :1].to(dtype)
    gallery[7] = -gallery[6]
    for sizes in ((None, None), (lengths(3, k, 2), lengths(12, size, 3))):
        above = bounds(queries, gallery, sizes, alpha) - exact_scores(
            queries, gallery, sizes, alpha=alpha
        )
        assert above.min() > 0
        assert above.max() < 0.04, "and closely"


@pytest.mark.parametrize("similarity", ["chamfer", "mil", "maxsim"])
def test_bounds_of_other_similarities(similarity):
    queries, gallery = unit(3, 5, 64), unit(40, 3, 64, seed=1)
    sizes = lengths(3, 5, 2), lengths(40, 3, 3)
    exact = exact_scores(queries, gallery, sizes, similarity=similarity)
    above = bounds(queries, gallery, sizes, similarity=similarity) - exact
    assert above.min() > 0
    assert above.max() < 0.02 * (5 if similarity == "maxsim" else 1)


def test_bounds_of_spiky_elements():
    """One large coordinate makes coarse codes: their residuals must tell."""
    queries, gallery = unit(3, 4, 64), unit(40, 4, 64, seed=1)
    gallery[..., 7] += 20.0
    gallery = torch.nn.functional.normalize(gallery, dim=-1)
    queries[1] = gallery[9]
    above = bounds(queries, gallery, (None, None)) - exact_scores(queries, gallery)
    assert above.min() > 0


def test_what_is_exact_in_codes_is_bounded_by_little():
    """Elements of one non-zero coordinate have codes without error: the rest is rounding."""
    queries = torch.eye(32, device=DEVICE)[:12].view(3, 4, 32)
    above = bounds(queries, queries.clone(), (None, None)) - exact_scores(queries, queries)
    assert 0 < above.min() <= above.max() < 1e-4


@pytest.mark.parametrize("dtype", TYPES)
def test_certified_search_is_exact(dtype):
    queries, gallery = unit(3, 4, 32), crowds(300, 4, 32, dtype=dtype)
    queries[0] = gallery[280].float()
    _, ids, survivors = check_search(queries, gallery, 5)
    assert ids[0, 0] == 280
    assert survivors.max() < 300, "some sets were ruled out by their bounds"


def test_few_survive_where_few_are_close():
    gallery = crowds(500, 2, 64, noise=0.2)
    queries = gallery[[7, 490]]
    _, ids, survivors = check_search(queries, gallery, 3, alpha=40.0)
    assert ids[:, 0].tolist() == [7, 490]
    assert survivors.max() < 64 + 20  # what is scored before there is a threshold, and a crowd


@pytest.mark.parametrize("log_mean", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_ragged_and_padding(log_mean):
    queries, gallery = unit(2, 3, 32), crowds(200, 3, 32)
    sizes = lengths(2, 3, 1), lengths(200, 3, 2)
    before = check_search(queries, gallery, 5, sizes, log_mean=log_mean)
    queries[torch.arange(3, device=DEVICE) >= sizes[0][:, None]] = torch.nan
    gallery[torch.arange(3, device=DEVICE) >= sizes[1][:, None]] = torch.inf
    after = search(queries, gallery, 5, sizes, log_mean=log_mean)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_ties_go_to_the_lower_position():
    """Coordinates of 1/8: sums are exact in any order, so that equal sets have equal scores."""
    signs = unit(20, 2, 64, seed=3).sign() / 8
    gallery = signs.repeat(15, 1, 1)  # set n is set n % 20
    scores, ids, _ = check_search(signs[:2], gallery, 20)
    assert ids[:, :15].tolist() == [list(range(b, 300, 20)) for b in (0, 1)]
    assert (scores[:, :15] == scores[:, :1]).all()


def test_ascending_scores_are_scanned_again_in_halves(monkeypatch):
    """All of a part beats the threshold: rows are too short, and the outcome is the same."""
    monkeypatch.setattr(certified, "CertifiedDriver", SmallDriver)
    monkeypatch.setattr(certified, "row_width", lambda *_: 128)
    queries = unit(2, 1, 32)
    gallery = crowds(400, 1, 32)
    order = exact_scores(queries, gallery)[0].argsort()
    before = kernels.launches["int8_scan"]
    check_search(queries, gallery[order].contiguous(), 4)
    assert kernels.launches["int8_scan"] > before + 3  # of 64, 256 and 80 sets


class SmallDriver(certified.CertifiedDriver):
    """Parts that grow faster than rows have room for."""

    GROWTH = 4

    def _next_size(self):
        return max(self.FIRST, self.GROWTH * self._seen)


def test_excluded_sets_are_not_found():
    queries, gallery = unit(2, 2, 32), crowds(203, 2, 32)
    excluded = torch.zeros(26, dtype=torch.uint8, device=DEVICE)
    best = exact_scores(queries, gallery).argmax(1)
    for n in best.tolist():
        excluded[n >> 3] |= 1 << (n & 7)
    _, ids, _ = check_search(queries, gallery, 5, excluded=excluded)
    assert not torch.isin(ids, best).any()


@pytest.mark.parametrize("similarity", ["chamfer", "maxsim"])
def test_search_by_other_similarities(similarity):
    check_search(unit(2, 3, 32), crowds(200, 2, 32), 4, similarity=similarity)


def test_small_galleries():
    queries, gallery = unit(2, 4, 32), unit(5, 4, 32, seed=1)
    check_search(queries, gallery, 5)
    scores, ids, survivors = search(queries, gallery[:3], 5)
    assert (scores[:, 3:] == -torch.inf).all() and (ids[:, 3:] == -1).all()
    assert survivors.tolist() == [3, 3]
    assert search(queries[:0], gallery, 2)[0].shape == (0, 2)
    scores, ids, survivors = search(queries, gallery[:0], 2)
    assert (ids == -1).all() and (scores == -torch.inf).all() and (survivors == 0).all()


def test_refusals():
    queries, gallery = unit(2, 4, 48), unit(5, 4, 48)
    codes, scales, residuals = kernels.quantise(gallery)
    with pytest.raises(ValueError, match="codes must be torch.int8"):
        kernels.certified_search(queries, gallery, codes[:4], scales, residuals, 2)
    with pytest.raises(ValueError, match="scales must be"):
        kernels.certified_search(queries, gallery, codes, scales[..., None], residuals, 2)
    with pytest.raises(ValueError, match="multiple of 16"):
        search(unit(2, 4, 40), unit(5, 4, 40), 2)
    with pytest.raises(ValueError, match="topk"):
        search(queries, gallery, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("b", "n", "k", "dims"), [(1, 100_000, 4, 256), (16, 30_000, 4, 1024), (200, 40_000, 8, 128)]
)
def test_large_galleries(b, n, k, dims, dtype, monkeypatch):
    """The tuned tiles, integer tensor cores and asynchronous scans; crowds, so that few survive."""
    monkeypatch.undo()
    gallery = crowds(n, k, dims, noise=0.7, dtype=dtype)
    noise = unit(b, k, dims, seed=5)
    queries = torch.nn.functional.normalize(gallery[-b:].float() + 0.3 * noise, dim=-1)
    scores, ids, survivors = search(queries, gallery, 10)
    exact, found = kernels.search(queries, gallery, 10)
    torch.testing.assert_close(scores, exact, rtol=0, atol=2e-6)
    apart = exact.diff(dim=1).abs().amin(1) > 4e-6
    assert torch.equal(ids[apart], found[apart])
    assert survivors.max() < n / 4


@pytest.mark.gpu
def test_queries_are_searched_without_waiting():
    """Until the end, where the host asks whether all rows were long enough."""
    queries, gallery = unit(4, 4, 64), crowds(5000, 4, 64, dtype=torch.float16)
    codes = kernels.quantise(gallery)
    part = (*codes, gallery, None)
    coded = CodedQueries.of(queries, None, 4, 16.0)
    survivors = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    scan = CertifiedScan(coded, Side.of(queries, None), 16.0, False, None, survivors)

    def queued():
        driver = certified.CertifiedDriver(scan, Best(4, 10, queries.device))
        driver.feed(part, 0)
        return driver

    queued().settle()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        driver = queued()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    driver.settle()
    assert torch.equal(driver.best.results()[1], search(queries, gallery, 10)[1])
