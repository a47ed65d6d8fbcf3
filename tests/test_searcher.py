"""Searching a gallery: exact equals a full sort, the prefilter finds what exact finds."""

import numpy as np
import pytest
import torch

import divse
from divse.search import element_index, plans, scan
from divse.search.gallery import Gallery
from divse.search.prefilter import open_prefilter, propose
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def clustered(n: int, k: int = 4, d: int = 32, seed: int = 0) -> np.ndarray:
    """Sets around topics, each element on its own way from the topic."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((max(4, n // 40), 1, d))[
        random.integers(max(4, n // 40), size=n)
    ]
    own = 0.8 * random.standard_normal((n, 1, d)) + 0.8 * random.standard_normal((n, k, d))
    return unit(topics + own).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A gallery of 600 sets in two segments, 20 queries near its sets, and the stored values."""
    values = clustered(620)
    folder = tmp_path_factory.mktemp("searcher")
    gallery = Gallery.create(folder / "g", values[:400], [f"id {row}" for row in range(400)])
    gallery = gallery.add(values[400:600], [f"id {row}" for row in range(400, 600)])
    return gallery, EmbeddingSets.of(values[600:]), gallery.sets().values.astype(np.float32)


def full_sort(queries, values, topk, **options):
    scores = divse.score(queries.values, values, unit_norm=False, impl="reference", **options)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
    return np.take_along_axis(scores, order, 1), order


def assert_same_order(found, scores, ids, names):
    """Equal ids, but that scores within fp32 rounding of each other may change places."""
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    for row in range(len(scores)):
        for place in np.flatnonzero(found.ids[row] != names[ids[row]]):
            assert np.sort(np.abs(scores[row] - scores[row, place]))[1] < 2e-6


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
def test_plans_equal_a_full_sort(data, similarity, options, plan):
    gallery, queries, values = data
    found = Searcher(gallery).search(queries, 10, plan, similarity=similarity, **options)
    asked = {name: value for name, value in options.items() if name != "impl"}
    scores, order = full_sort(queries, values, 10, similarity=similarity, **asked)
    assert_same_order(found, scores, order, gallery.ids)
    assert found.certified.all()  # the index is flat: all is proven


def test_whole_gallery_in_order(data):
    gallery, queries, values = data
    found = Searcher(gallery).search(queries[:2], len(gallery))
    scores, _ = full_sort(queries[:2], values, len(gallery))
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    assert sorted(found.ids[0]) == sorted(gallery.ids)


def test_blocks_equal_whole(data, monkeypatch):
    gallery, queries, _ = data
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


def test_plain_and_torch_queries(data):
    gallery, queries, _ = data
    expected = Searcher(gallery).search(queries, 3)
    for given in (7 * queries.values, torch.from_numpy(queries.values)):
        found = Searcher(gallery).search(given, 3)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert isinstance(found.scores, np.ndarray)


def test_native_serves_the_scan(data):
    pytest.importorskip("divse_native")
    gallery, queries, _ = data
    before = divse.calls["native.search"]
    Searcher(gallery, device="cpu").search(queries, 3)
    assert divse.calls["native.search"] == before + 2  # one call for each segment
    assert Searcher(gallery, device="cpu").explain().impl == "native"


def test_triton_serves_the_scan_when_told_to(data, tmp_path):
    kernels = pytest.importorskip("divse_kernels")
    queries = data[1]
    some = Gallery.create(tmp_path / "g", clustered(12))
    before = sum(kernels.launches.values())
    found = Searcher(some).search(queries[:2], 3, impl="triton")
    assert sum(kernels.launches.values()) > before
    expected = Searcher(some).search(queries[:2], 3, impl="reference")
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)


# --- prefilter


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """4,500 sets: enough for an inverted file of RaBitQ codes."""
    values = clustered(4540, seed=1)
    gallery = Gallery.create(tmp_path_factory.mktemp("large") / "g", values[:4500])
    return gallery, EmbeddingSets.of(values[4500:])


def recall(found, truth) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)])
    )


def test_prefilter_recall_with_quantised_index(large):
    gallery, queries = large
    assert element_index.index_spec(gallery.manifest.elements, 32) == "IVF256,PQ8x4fs"
    search = Searcher(gallery)
    truth = search.search(queries, 10, "exact").ids
    found = search.search(queries, 10, "prefilter")
    assert recall(found.ids, truth) >= 0.99
    shallow = search.search(queries, 10, depth=20).ids
    deep = search.search(queries, 10, depth=2000).ids
    assert recall(shallow, truth) <= recall(deep, truth) >= 0.99


def test_prefilter_finds_enough_even_where_neighbours_are_few(data):
    gallery, queries, _ = data
    found = Searcher(gallery).search_positions(queries, 50, "prefilter", depth=1)
    assert (found.ids >= 0).all()
    for proposed in propose(open_prefilter(gallery), queries, 3, 1).candidates:
        own = proposed[proposed >= 0]
        assert len(own) >= 3 and (np.diff(own) > 0).all()


def test_index_is_stored_and_kept_up_to_date(data, tmp_path, monkeypatch):
    monkeypatch.setattr("divse.search.prefilter.STORED_FROM", 1)
    gallery, queries, _ = data
    own = Gallery.create(tmp_path / "g", gallery.sets())
    expected = Searcher(own).search(queries, 5, "prefilter")
    stored = Gallery.open(own.path)
    assert stored.manifest.index.spec == "Flat"
    monkeypatch.setattr("divse.search.index_files.fill", None)  # from here on it is loaded
    monkeypatch.setattr("divse.search.changes.train", None)
    found = Searcher(stored).search(queries, 5, "prefilter")
    np.testing.assert_array_equal(found.ids, expected.ids)
    monkeypatch.undo()
    later = stored.add(queries)
    assert Searcher(later).search(queries, 1, "prefilter").ids[:, 0].tolist() == list(
        range(600, 620)
    )
    fewer = later.remove(range(600, 610))
    left = Searcher(fewer).search(queries, 5, "prefilter")
    assert not set(left.ids.ravel().tolist()) & set(range(600, 610))
    np.testing.assert_array_equal(left.ids, Searcher(fewer).search(queries, 5, "exact").ids)
    whole = fewer.compact()
    assert len(whole.segments) == 1
    np.testing.assert_array_equal(Searcher(whole).search(queries, 5, "prefilter").ids, left.ids)
    whole.verify()
    assert whole.drop_index().manifest.index is None


def test_damaged_index_is_named(data, tmp_path):
    gallery, queries, _ = data
    own = Gallery.create(tmp_path / "g", gallery.sets()).build_index()
    path = next(own.path.glob("segment-*/shard_*.faiss"))
    damaged = bytearray(path.read_bytes())
    damaged[50] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="shard_.*is damaged"):
        Searcher(own).search(queries, 5, "prefilter")
    own = own.build_index()
    assert Searcher(own).search(queries, 5, "prefilter").ids.shape == (20, 5)


@pytest.mark.parametrize("spec", ["HNSW8", "IVF4,PQ4x4", "SQ8", "IVF8,Flat"])
def test_any_factory_string(data, tmp_path, spec):
    gallery, queries, _ = data
    own = Gallery.create(tmp_path / "g", gallery.sets()).build_index(spec)
    own = own.add(queries).remove([0, 7, 601])
    search = Searcher(own)
    assert search.explain("prefilter").index == spec
    truth = search.search(queries, 5, "exact").ids
    assert recall(search.search(queries, 5, "prefilter").ids, truth) >= 0.9


def test_ragged_galleries_have_an_index_too(tmp_path):
    values = clustered(300)
    lengths = np.random.default_rng(0).integers(1, 5, 300)
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths)).build_index(
        "IVF4,Flat"
    )
    gallery = gallery.add(EmbeddingSets(values[:20], lengths[:20])).remove(range(100, 150))
    queries = EmbeddingSets.of(values[100:120])
    search = Searcher(gallery)
    truth = search.search(queries, 5, "exact").ids
    assert recall(search.search(queries, 5, "prefilter", depth=300).ids, truth) == 1.0


def test_folder_that_cannot_be_written_keeps_the_index_in_memory(data, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("divse.search.prefilter.STORED_FROM", 1)
    monkeypatch.setattr("divse.search.changes.build_index", refuse)
    gallery, queries, _ = data
    with pytest.warns(UserWarning, match="index is not stored"):
        assert Searcher(gallery).search(queries, 2, "prefilter").ids.shape == (20, 2)


# --- the files as they are


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil"])
@pytest.mark.parametrize("uneven", [False, True])
def test_certified_and_exact_scans_agree_bit_for_bit(tmp_path, monkeypatch, similarity, uneven):
    monkeypatch.setattr("divse.search.stored_scan.PART_BYTES", 1 << 14)  # several parts
    values = clustered(300)
    lengths = np.random.default_rng(0).integers(1, 5, 300) if uneven else None
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths))
    more = EmbeddingSets(values[:40], None if lengths is None else lengths[:40])
    gallery = gallery.add(more).remove([*range(100, 140), 305])  # equal sets in two segments
    queries = EmbeddingSets.of(clustered(6, seed=2))
    search = Searcher(gallery)
    exact = search.search(queries, 30, "exact", similarity=similarity)
    assert divse.calls["native.search"]
    certified = search.search(queries, 30, "certified", similarity=similarity)
    assert certified.certified.all() and search.explain("certified").certified
    np.testing.assert_array_equal(certified.ids, exact.ids)
    np.testing.assert_array_equal(certified.scores, exact.scores)
    padded = scan.exact_scan(queries.torch(), gallery.blocks(), 30, scan.Scoring(similarity))
    np.testing.assert_array_equal(gallery.take_ids(padded.positions.numpy()), exact.ids)
    every = search.search(queries, len(gallery), "certified", similarity=similarity)
    assert sorted(every.ids[0].tolist()) == sorted(gallery.ids.tolist())


def test_certified_plan_says_what_it_lacks(data, tmp_path):
    gallery, queries, _ = data
    plain = Gallery.create(tmp_path / "p", gallery.sets(), codes=False)
    with pytest.raises(ValueError, match="has no int8 codes"):
        Searcher(plain).search(queries, 3, "certified")
    with pytest.raises(ValueError, match="int8 codes do not bound mp"):
        Searcher(gallery).search(queries, 3, "certified", similarity="mp")


# --- plans and errors


def test_auto_takes_what_explain_says(data, tmp_path, monkeypatch):
    gallery, queries, _ = data
    search = Searcher(gallery)
    assert search.explain().plan == "exact" and search.explain().certified
    assert search.explain(depth=50).plan == "prefilter"
    assert "every one of 600 sets" in str(search.explain())
    monkeypatch.setattr(plans, "EXACT_UP_TO", 100)
    assert "no index is stored" in str(search.explain())
    search = Searcher(Gallery.create(tmp_path / "g", gallery.sets()).build_index())
    assert search.explain().plan == "prefilter"
    assert "more and more nearest elements of 2400" in str(search.explain())
    assert search.search(queries, 3, depth=5).ids.shape == (20, 3)
    assert search.last.plan == "prefilter"
    monkeypatch.setattr(plans, "has_faiss", lambda: False)
    assert "not installed" in str(search.explain())
    assert search.search(queries, 3).certified.all()


def test_named_plan_never_falls_back(data, monkeypatch):
    gallery, queries, _ = data
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"divse\[cpu\]"):
        Searcher(gallery).search(queries, 3, "prefilter")


def test_progress_is_told(data):
    gallery, queries, _ = data
    steps = []
    Searcher(gallery, progress=lambda *step: steps.append(step)).search(queries, 3)
    assert steps == [("scan", 400, 600), ("scan", 200, 600)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": clustered(2, d=16)}, "queries have D=16, the gallery has D=32"),
        ({"queries": np.zeros((1, 4, 32), np.float32)}, "is zero"),
        ({"queries": np.full((1, 4, 32), np.nan, np.float32)}, "not finite"),
        ({"queries": np.ones((4, 32), np.float32)}, "x\\[:, None, :\\]"),
        ({"queries": clustered(4)[:0]}, "no queries"),
        ({"topk": 601}, "topk: got 601, expected 1 to 600"),
        ({"topk": 0}, "topk: got 0"),
        ({"topk": 2.5}, "topk: got float"),
        ({"plan": "fast"}, "plan: got 'fast', expected one of auto, exact, certified, prefilter"),
        ({"plan": "exact", "depth": 10}, "depth is of plan='prefilter'"),
        ({"depth": 0}, "depth: got 0"),
        ({"similarity": "cosine"}, "similarity: got 'cosine'"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"impl": "cuda"}, "impl: got 'cuda'"),
        ({"similarity": "mp", "impl": "native"}, "no kernel for mp"),
    ],
)
def test_wrong_arguments(data, change, message):
    gallery, queries, _ = data
    with pytest.raises((ValueError, TypeError), match=message):
        Searcher(gallery).search(**{"queries": queries, **change})


def test_scan_of_nothing_is_refused(data):
    with pytest.raises(ValueError, match="nothing to search"):
        scan.exact_scan(data[1], [], 3, scan.Scoring())
