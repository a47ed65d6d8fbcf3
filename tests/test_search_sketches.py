"""Sketches: candidates by whole sets in few dimensions, by the kernel and without it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from searcher_cases import clustered, recall

from divse.search import sketch_index, tune, tuning
from divse.search.gallery import Gallery
from divse.search.index_files import open_index
from divse.search.index_spec import automatic_spec, is_sketch, is_usable
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets
from divse.similarity import dispatch, score


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """3,000 sets in two segments, some removed, with 40 queries near its sets."""
    values = clustered(3040, seed=2)
    gallery = Gallery.create(tmp_path_factory.mktemp("sketches") / "g", values[:2000])
    gallery = gallery.build_index("Sketch16").add(values[2000:3000]).remove(range(0, 300, 3))
    return gallery, EmbeddingSets.of(values[3000:])


def decoded(shard):
    """The sketched sets (n, K, d) of a segment, in its order."""
    sets = shard.sets
    (found,) = sets.lanes.decode(sets.codes, sets.scales, sets.dims, 1 << 30)
    order = sets.lanes.order
    return found.values if order is None else found.values[np.argsort(order)]


def estimates(gallery, queries, scoring):
    """Scores (B, N) by the sketches, in float64, from their definition."""
    index = open_index(gallery)
    found = []
    for shard in index.shards:
        rows = shard.segment.own(np.arange(shard.segment.sets))
        values = decoded(shard)[rows].astype(np.float64)
        asked = np.asarray(queries.values, np.float64) @ index.sketching.axes.T
        others = np.linalg.norm(asked[..., 1:], axis=-1, keepdims=True)
        asked[..., 1:] *= np.sqrt(1 - asked[..., :1] ** 2) / others
        asked = torch.from_numpy(asked)
        keywords = scoring.keywords()
        sketches = EmbeddingSets(asked), EmbeddingSets(torch.from_numpy(values))
        found.append(score(*sketches, impl="reference", **keywords))
    return torch.cat(found, 1).numpy()


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil", "mp"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_proposed_sets_are_the_best_by_their_sketches(large, similarity, impl):
    gallery, queries = large
    scoring, depth = Scoring(similarity, impl=impl), 50
    index = open_index(gallery)
    assert [len(shard.sets) for shard in index.shards] == [2000, 1000]
    before = dispatch.calls["native.estimates"]
    effort = sketch_index.Effort(depth, 1, 1)
    found = index.propose(queries, scoring, effort, None).candidates
    by_kernel = impl == "auto" and similarity != "mp" and dispatch_has_native()
    assert (dispatch.calls["native.estimates"] - before == 2) == by_kernel
    exact = estimates(gallery, queries, scoring)
    for row, scores in zip(found, exact, strict=True):
        assert len(set(row.tolist())) == depth and row.min() >= 0
        # The kernel rounds queries to int8, too: a set may be lost that is as good up to that.
        last = np.sort(scores)[-depth]
        assert (scores[row] >= last - 0.01 * max(1.0, abs(last))).all()


def dispatch_has_native():
    try:
        import divse_native  # noqa: F401
    except ImportError:
        return False
    return True


def test_answers_are_exact_scores_of_what_was_proposed(large):
    gallery, queries = large
    search = Searcher(gallery)
    truth = search.search(queries, 10, "exact")
    found = search.search(queries, 10, "prefilter")
    assert recall(found.ids, truth.ids) >= 0.99
    np.testing.assert_allclose(found.scores[:, 0], truth.scores[:, 0], rtol=0, atol=1e-6)
    assert not set(found.ids.ravel().tolist()) & set(range(0, 300, 3))
    shallow = search.search(queries, 10, depth=10)
    assert 0.3 < recall(shallow.ids, truth.ids) < recall(found.ids, truth.ids)
    assert search.search(queries, 2900, "prefilter").certified.all()  # every set was proposed
    assert not found.certified.any()


def test_filters_hold_and_leave_no_holes(large):
    gallery, queries = large
    search = Searcher(gallery)
    allowed = np.arange(1, 2999, 7)
    allowed = allowed[(allowed >= 300) | (allowed % 3 != 0)]
    truth = search.search(queries, 10, "exact", allowed=allowed).ids
    search._index = open_index(gallery)
    for depth in (5, 200):
        found = search.search(queries, 10, "prefilter", depth, allowed=allowed)
        assert set(found.ids.ravel().tolist()) <= set(allowed.tolist())
    assert recall(found.ids, truth) >= 0.99


def test_ragged_sets_and_queries(tmp_path):
    values, random = clustered(900, seed=5), np.random.default_rng(0)
    lengths = random.integers(1, 5, 900)
    queries = EmbeddingSets.of(np.where(np.isnan(values[:20]), 0, values[:20]), lengths[:20])
    stored = EmbeddingSets(values, lengths)
    gallery = Gallery.create(tmp_path / "g", stored).build_index("Sketch24")
    search = Searcher(gallery)
    truth = search.search(queries, 5, "exact").ids
    for impl in ("auto", "reference"):
        found = search.search(queries, 5, "prefilter", depth=100, impl=impl).ids
        assert recall(found, truth) >= 0.98


def test_index_follows_the_gallery(tmp_path):
    values = clustered(260, seed=3)
    queries = EmbeddingSets.of(values[:4])
    gallery = Gallery.create(tmp_path / "g", values[:200]).build_index("Sketch8")
    assert gallery.manifest.index.spec == gallery.manifest.index.asked == "Sketch8"
    assert len(list(gallery.path.glob("segment-*/shard_*.npy"))) == 1
    grown = gallery.add(values[200:])
    assert len(list(gallery.path.glob("segment-*/shard_*.npy"))) == 2
    grown.verify()
    in_memory = Gallery.create(tmp_path / "h", values).build_index("Sketch8").drop_index()
    assert in_memory.manifest.index is None
    whole = grown.remove([0]).compact()
    assert whole.manifest.index.spec == "Sketch8" and len(whole.segments) == 1
    found = Searcher(whole).search(queries, 3, "prefilter").ids
    np.testing.assert_array_equal(found, Searcher(whole).search(queries, 3, "exact").ids)


def test_axes_keep_most_of_the_elements(tmp_path):
    random = np.random.default_rng(0)
    spread = random.standard_normal((400, 4, 40)) * np.arange(1, 41) ** -1.0
    gallery = Gallery.create(tmp_path / "g", spread.astype(np.float32)).build_index("Sketch")
    index = open_index(gallery)
    assert index.spec == "Sketch16" and index.sketching.axes.shape == (16, 40)
    np.testing.assert_allclose(index.sketching.axes @ index.sketching.axes.T, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(decoded(index.shards[0]), axis=-1), 1, atol=0.02)
    elements = gallery.sets().values.reshape(-1, 40).astype(np.float64)
    along = index.sketching.axes @ elements.mean(axis=0)
    np.testing.assert_allclose(np.abs(along[0]), np.linalg.norm(along), rtol=1e-5)
    kept = np.square(elements @ index.sketching.axes.T).sum() / np.square(elements).sum()
    best = np.sort(np.linalg.eigvalsh(elements.T @ elements))[::-1]
    assert kept == pytest.approx(best[:16].sum() / best.sum(), abs=1e-4) and kept > 0.75
    with pytest.raises(ValueError, match="at most D=40"):
        gallery.build_index("Sketch41")
    for wrong in ("Sketch0", "sketch16", "Sketch 16"):
        with pytest.raises(ValueError, match=f"index '{wrong}': expected Sketch, or Sketch<d>"):
            gallery.build_index(wrong)


@pytest.mark.parametrize(("asked", "then"), [("Sketch", "Sketch32"), ("Sketch16", "Sketch16")])
def test_compaction_chooses_the_number_of_axes_as_it_was_asked(tmp_path, asked, then):
    values = np.random.default_rng(0).standard_normal((300, 4, 40)).astype(np.float32)
    flat = values[:60] * (np.arange(40) < 12)  # in few dimensions
    gallery = Gallery.create(tmp_path / "g", flat).build_index(asked)
    assert gallery.manifest.index.spec == "Sketch16"
    grown = gallery.add(values)
    assert Gallery.open(grown.path).manifest.index.spec == "Sketch16"
    whole = Gallery.open(grown.compact().path)
    assert (whole.manifest.index.spec, whole.manifest.index.asked) == (then, asked)
    assert open_index(whole).sketching.axes.shape == (int(then.removeprefix("Sketch")), 40)
    again = whole.remove(range(60, 360)).compact()
    assert again.manifest.index.spec == "Sketch16"


def test_axes_of_an_empty_gallery_are_named(tmp_path):
    values = clustered(60)
    empty = Gallery.create(tmp_path / "g", values[:9]).remove(range(9))
    with pytest.warns(UserWarning, match="any axes, as the gallery is empty"):
        filled = empty.build_index("Sketch8").add(values)
    axes = open_index(filled.compact()).sketching.axes
    elements = filled.sets().values.reshape(-1, 32).astype(np.float64)
    best = np.sort(np.linalg.eigvalsh(elements.T @ elements))[::-1][:8].sum()
    assert np.square(elements @ axes.T).sum() == pytest.approx(best, rel=1e-3)


def test_one_scan_proposes_as_many_sets_as_are_asked_for(large):
    gallery, queries = large
    search = Searcher(gallery)
    found = search.search(queries, 20, "prefilter", depth=3)
    assert found.ids.shape == (40, 20) and search.last.candidates == 20
    assert (search.last.rounds, search.last.depth) == (1, 20)
    search.search(queries, 20, "prefilter", depth=5000)
    assert (search.last.rounds, search.last.depth) == (1, 2900)  # sets, of 11,600 elements


def test_clusters_of_sketches_without_cells_are_refused(large):
    gallery, queries = large
    search = Searcher(gallery)
    for asked in ({}, {"plan": "prefilter", "depth": 9}, {"allowed": [1, 2]}):
        for call in (search.explain, lambda **given: search.search(queries, **given)):
            with pytest.raises(ValueError, match=r"probe: got 4, but the .* is Sketch16"):
                call(probe=4, **asked)


def test_cells_of_an_index_that_is_not_built_yet(large):
    """What explain says of them is what the search does, and the next one."""
    gallery, queries = large
    unbuilt = Searcher(Gallery.create(gallery.path.parent / "unbuilt", gallery.sets(range(90))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divse.search.index_spec.FLAT_UP_TO", 10)  # it would be built of sketches
        for call in (unbuilt.explain, lambda **given: unbuilt.search(queries, **given)):
            with pytest.raises(ValueError, match="index is Sketch, which has no clusters"):
                call(topk=3, probe=4)
        patch.setattr("divse.search.index_spec.CELLS_FROM", 50)
        patch.setattr("divse.search.sketching.CELLS_FROM", 50)
        assert unbuilt.explain("prefilter", topk=3, probe=4).probe == 4
        for _ in range(2):
            unbuilt.search(queries, 3, probe=4)
            assert unbuilt.last.probe == 4


def test_tune_looks_for_the_least_depth_of_sketches(large, monkeypatch):
    monkeypatch.setattr("divse.search.tuning.QUERIES", 8)
    monkeypatch.setattr("divse.search.trial.TIMED", 2)
    monkeypatch.setattr("divse.search.trial.Trial.milliseconds", lambda self, *_: 1.0)
    heard = []
    found = tune(large[0], recall=0.9, store=False, progress=lambda *step: heard.append(step))
    recalls = {m.depth: m.lower_bound for m in found.measured if m.plan == "prefilter"}
    recalls.pop(None)
    assert sum(step for _, step, _ in heard) == heard[0][2]
    known = [depth for depth in tuning.SKETCH_DEPTHS if depth < 2900]
    assert set(recalls) <= set(known) and 3 <= len(recalls) <= 5 < len(known)
    enough = min(depth for depth, recall in recalls.items() if recall >= 0.9)
    lower = known[known.index(enough) - 1] if enough > known[0] else None
    assert lower is None or recalls[lower] < 0.9
    best = replace(found.best, plan="prefilter", depth=64, probe=None)
    assert str(replace(found, best=best)).startswith("prefilter depth=64: recall@10")


def test_specifications(monkeypatch):
    assert is_sketch("Sketch") and is_sketch("Sketch96")
    assert all(map(is_sketch, ("Cells,Sketch", "Cells500,Sketch", "Cells,Sketch96")))
    wrong = ("Sketch0", "Sketch-1", "sketch", "Flat", "Sketch9,Flat", "Cells0,Sketch", "Cells")
    assert not any(map(is_sketch, wrong))
    assert automatic_spec(10**6, 10**5) == "Cells,Sketch" and is_usable("Sketch")
    monkeypatch.setattr("divse.search.index_spec.has_faiss", lambda: False)
    assert automatic_spec(10, 9) == "Sketch" and is_usable("Sketch12") and not is_usable("Flat")


def test_damaged_axes_are_named(tmp_path):
    gallery = Gallery.create(tmp_path / "g", clustered(50)).build_index("Sketch8")
    path = next(gallery.path.glob("index-*/trained.npy"))
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 64
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"trained\.npy is damaged"):
        Searcher(gallery).search(clustered(2), 3, "prefilter")
