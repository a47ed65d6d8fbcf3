"""The exact scan: equals a full sort, by every implementation, in any blocks."""

import numpy as np
import pytest
import torch
from searcher_cases import assert_same_order, clustered, full_sort

import divse
from divse.search import scan
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets


@pytest.mark.parametrize(
    ("similarity", "options"),
    [
        ("smooth_chamfer", {}),
        ("smooth_chamfer", {"alpha": 100.0}),
        ("smooth_chamfer", {"log_mean": True, "impl": "reference"}),
        ("chamfer", {}),
        ("maxsim", {}),
        ("mil", {}),
    ],
)
@pytest.mark.parametrize("plan", ["exact", "prefilter"])
def test_plans_equal_a_full_sort(small_gallery, similarity, options, plan):
    gallery, queries, values = small_gallery
    found = Searcher(gallery).search(queries, 10, plan, similarity=similarity, **options)
    asked = {name: value for name, value in options.items() if name != "impl"}
    scores, order = full_sort(queries, values, 10, similarity=similarity, **asked)
    assert_same_order(found, scores, order, gallery.ids)
    assert found.certified.all()  # the index is flat: all is proven


def test_whole_gallery_in_order(small_gallery):
    gallery, queries, values = small_gallery
    found = Searcher(gallery).search(queries[:2], len(gallery))
    scores, _ = full_sort(queries[:2], values, len(gallery))
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    assert sorted(found.ids[0]) == sorted(gallery.ids)


def test_blocks_equal_whole(small_gallery, monkeypatch):
    gallery, queries, _ = small_gallery
    whole = Searcher(gallery).search(queries, 7)
    small = gallery.blocks
    monkeypatch.setattr(Gallery, "blocks", lambda self: small(32 * 4 * 2 * 30))  # 30 sets
    blocked = Searcher(gallery).search(queries, 7)
    np.testing.assert_array_equal(blocked.ids, whole.ids)
    np.testing.assert_allclose(blocked.scores, whole.scores, atol=2e-6)


@pytest.mark.parametrize("plan", ["exact", "prefilter"])
def test_ties_come_in_the_order_of_position(tmp_path, plan):
    values = np.repeat(clustered(3), 5, axis=0)[np.random.default_rng(0).permutation(15)]
    gallery = Gallery.create(tmp_path / "g", values[:8], ids=list(range(100, 92, -1)))
    gallery = gallery.add(values[8:], ids=list(range(50, 43, -1)))
    found = Searcher(gallery).search_positions(EmbeddingSets(values[:1]), 15, plan)
    for score in np.unique(found.scores):
        positions = found.ids[found.scores == score]
        assert positions.tolist() == sorted(positions)


@pytest.mark.parametrize("plan", ["exact", "prefilter"])
def test_ragged_gallery_and_queries(tmp_path, plan):
    lengths = np.random.default_rng(0).integers(1, 6, 120)
    values = clustered(120, k=5)
    values[np.arange(5) >= lengths[:, None]] = np.nan
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths), dtype="float32")
    queries = EmbeddingSets(values[:9], lengths[:9])
    found = Searcher(gallery).search(queries, 5, plan)
    assert found.ids[:, 0].tolist() == list(range(9))
    scores = divse.score(queries, EmbeddingSets(values, lengths), impl="reference")
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], atol=2e-6)


def test_plain_and_torch_queries(small_gallery):
    gallery, queries, _ = small_gallery
    expected = Searcher(gallery).search(queries, 3)
    for given in (7 * queries.values, torch.from_numpy(queries.values)):
        found = Searcher(gallery).search(given, 3)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert isinstance(found.scores, np.ndarray)


def test_native_serves_the_scan(small_gallery):
    pytest.importorskip("divse_native")
    gallery, queries, _ = small_gallery
    before = divse.calls["native.search"]
    Searcher(gallery, device="cpu").search(queries, 3)
    assert divse.calls["native.search"] == before + 2  # one call for each segment
    assert Searcher(gallery, device="cpu").explain().impl == "native"


def test_triton_serves_the_scan_when_told_to(small_gallery, tmp_path):
    kernels = pytest.importorskip("divse_kernels")
    queries = small_gallery[1]
    some = Gallery.create(tmp_path / "g", clustered(12))
    before = sum(kernels.launches.values())
    found = Searcher(some).search(queries[:2], 3, impl="triton")
    assert sum(kernels.launches.values()) > before
    expected = Searcher(some).search(queries[:2], 3, impl="reference")
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)


def test_scan_of_nothing_is_refused(small_gallery):
    with pytest.raises(ValueError, match="nothing to search"):
        scan.exact_scan(small_gallery[1], [], 3, scan.Scoring())
