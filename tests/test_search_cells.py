"""Sketches in cells: which sets lie in them, what a search that looks into some of them finds."""

import numpy as np
import pytest
import torch
from searcher_cases import clustered, recall

from divse.search import cells, sketching, tune
from divse.search.gallery import Gallery
from divse.search.index_files import open_index
from divse.search.proposal import Effort
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.search.sketch_files import open_shard
from divse.search.sketching import Sketching
from divse.sets import EmbeddingSets
from divse.similarity import dispatch, score


def around(topics, sets, seed=0, k=4, dim=32):
    """Sets near to those of so many topics, topic by topic in turn."""
    random = np.random.default_rng(seed)
    centres = clustered(topics, k, dim, seed=9)
    noise = random.standard_normal((sets, k, dim)).astype(np.float32) / dim**0.5
    return centres[np.arange(sets) % topics] + 0.4 * noise


@pytest.fixture(scope="module", params=["uniform", "ragged"])
def celled(request, tmp_path_factory):
    """3,000 sets of 30 topics in two segments, 900 removed, in 40 cells; 30 queries."""
    values = around(30, 3030)
    lengths = None
    if request.param == "ragged":
        lengths = np.random.default_rng(1).integers(2, 5, 3030)
    sets = EmbeddingSets.of(values, lengths)
    gallery = Gallery.create(tmp_path_factory.mktemp("cells") / "g", sets[:2000])
    gallery = gallery.build_index("Cells40,Sketch16").add(sets[2000:3000])
    return gallery.remove(range(0, 2700, 3)), sets[3000:]


def cells_and_scores(index, shard):
    """The cell of each set of a segment as it lies there, and scores with all leaders (n, C)."""
    lanes, begins = shard.sets.lanes, shard.sets.cells.begins
    own = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    (sets,) = lanes.decode(shard.sets.codes, shard.sets.scales, shard.sets.dims, 1 << 30)
    scores = score(sets.torch(), index.sketching.leaders.torch(), impl="reference").numpy()
    back = np.argsort(lanes.order)
    return own[back], scores[back]


def test_every_set_lies_with_its_most_similar_leader(celled):
    index = open_index(celled[0])
    assert index.spec == "Cells40,Sketch16" and index.lists == 40
    assert [len(shard.sets) for shard in index.shards] == [2000, 1000]
    for shard in index.shards:
        own, scores = cells_and_scores(index, shard)
        assert np.bincount(own, minlength=40).max() < len(own) / 4
        # the kernel rounds to int8: the leader is the best up to that
        chosen = np.take_along_axis(scores, own[:, None], 1)[:, 0]
        assert (chosen >= scores.max(axis=1) - 0.02).all()


def test_leaders_come_nearer_to_their_sets(celled, monkeypatch):
    stored = celled[0].sets()
    gallery = Gallery.create(celled[0].path.parent / "moved", stored, overwrite=True)

    def similarity():
        index = open_index(gallery.build_index("Cells40,Sketch16"))
        return np.mean([cells_and_scores(index, s)[1].max(axis=1).mean() for s in index.shards])

    moved = similarity()
    monkeypatch.setattr(cells, "ROUNDS", 0)
    assert moved > similarity() + 0.02


def test_more_cells_find_more_and_all_of_them_what_a_scan_finds(celled):
    gallery, queries = celled
    search = Searcher(gallery)
    truth = search.search(queries, 10, "exact").ids
    found = {
        probe: search.search(queries, 10, "prefilter", 300, probe=probe).ids
        for probe in (1, 4, 40, 99)
    }
    recalls = [recall(found[probe], truth) for probe in (1, 4, 40)]
    assert recalls == sorted(recalls) and recalls[0] > 0.3 and recalls[1] > 0.9
    np.testing.assert_array_equal(found[40], search.search(queries, 10, "prefilter", 300).ids)
    np.testing.assert_array_equal(found[40], found[99])
    search.search(queries, 10, "prefilter", 300)
    everything = search.last.bytes_read
    assert search.last.probe == 40
    search.search(queries[0], 10, "prefilter", 10, probe=2)
    assert search.last.probe == 2 and search.last.bytes_read < everything / 5
    assert not set(found[4].ravel().tolist()) & set(range(0, 2700, 3))


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "maxsim", "mp"])
def test_without_the_kernel_the_same_cells_are_looked_into(celled, similarity):
    gallery, queries = celled
    index = open_index(gallery)
    effort = Effort(100, 2, 1)
    shares, seen = [], []
    for row in range(9):
        kinds = Scoring(similarity), Scoring(similarity, impl="reference")
        fast, plain = (index.propose(queries[row], kind, effort, None) for kind in kinds)
        assert fast.bytes_read == plain.bytes_read
        a, b = (found.candidates[0][found.candidates[0] >= 0].tolist() for found in (fast, plain))
        assert len(set(b)) == len(b)
        # the kernel looks at whole groups of 16, so its candidates may be others here and there
        shares.append(len(set(a) & set(b)) / max(1, len(b)))
        seen.append(len(b))
    assert np.mean(shares) > 0.8 and np.mean(seen) > 50
    together = index.propose(queries[:9], kinds[1], effort, None).candidates
    assert (together >= 0).sum(axis=1).min() >= min(seen)


def test_filters_hold_and_leave_no_holes(celled, monkeypatch):
    gallery, queries = celled
    monkeypatch.setattr("divse.search.plans.BRUTE_FORCE", 0)
    search = Searcher(gallery)
    allowed = np.arange(2701, 2999, 20)
    truth = search.search(queries, 10, "exact", allowed=allowed).ids
    found = search.search(queries, 10, "prefilter", 50, probe=1, allowed=allowed).ids
    assert set(found.ravel().tolist()) <= set(allowed.tolist()) and found.min() >= 0
    assert search.last.plan == "prefilter" and search.last.rounds > 1  # one cell has too few
    assert recall(found, truth) > 0.9


def test_files_say_what_was_made(celled):
    """Opened again, and made again in memory: the same cells, leaders and order, byte for byte."""
    gallery, _ = celled
    files = {path.name for path in gallery.path.glob("index-*/*")}
    assert files == {"trained.npy", "leaders.npy", "leader_offsets.npy"}
    stored = open_index(Gallery.open(gallery.path))
    for segment, shard in zip(gallery.segments, stored.shards, strict=True):
        made = open_shard(None, stored.sketching, segment, None)
        for name in ("codes", "scales"):
            np.testing.assert_array_equal(getattr(made.sets, name), getattr(shard.sets, name))
        np.testing.assert_array_equal(made.sets.lanes.order, shard.sets.lanes.order)
        np.testing.assert_array_equal(made.sets.cells.begins, shard.sets.cells.begins)
    gallery.verify()


def test_compaction_finds_cells_anew(tmp_path):
    gallery = Gallery.create(tmp_path / "g", around(10, 200)).build_index("Cells300,Sketch8")
    assert gallery.manifest.index.spec == "Cells200,Sketch8"  # no more than there are sets
    whole = gallery.add(around(10, 300, seed=1)).compact()
    assert (whole.manifest.index.spec, whole.manifest.index.asked) == (
        "Cells300,Sketch8",
        "Cells300,Sketch8",
    )
    whole.verify()
    few = gallery.build_index("Cells,Sketch8")
    assert (few.manifest.index.spec, few.manifest.index.asked) == ("Sketch8", "Cells,Sketch8")
    with pytest.raises(ValueError, match="probe: got 4, but the gallery's index is Sketch8"):
        Searcher(few).search(around(10, 1), 3, probe=4)


def test_large_galleries_get_cells_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(sketching, "CELLS_FROM", 400)
    monkeypatch.setattr("divse.search.index_spec.CELLS_FROM", 400)
    monkeypatch.setattr("divse.search.index_spec.FLAT_UP_TO", 100)
    gallery = Gallery.create(tmp_path / "g", around(10, 400)).build_index()
    assert gallery.manifest.index.spec.startswith("Cells40,Sketch")
    assert gallery.manifest.index.asked is None
    heard = []
    gallery.build_index("Cells,Sketch8", progress=heard.append)
    assert sum(heard) == 400


def test_tune_measures_cells(celled, monkeypatch):
    gallery, queries = celled
    spent = {"exact": 9.0, "certified": 8.0}
    monkeypatch.setattr("divse.search.trial.TIMED", 2)
    monkeypatch.setattr(
        "divse.search.trial.Trial.milliseconds",
        lambda self, plan, depth, probe: spent.get(plan) or (depth or 1024) / 1e3 + (probe or 40),
    )
    heard = []
    found = tune(
        gallery, recall=0.9, queries=queries, store=False, progress=lambda *s: heard.append(s)
    )
    assert sum(step for _, step, _ in heard) == heard[0][2]
    assert found.best.plan == "prefilter" and found.best.probe in (1, 2, 5)
    assert found.best.lower_bound >= 0.9
    everywhere = [m for m in found.measured if m.probe is None and m.depth]
    enough = min(m.depth for m in everywhere if m.lower_bound >= 0.9)
    assert all(m.depth <= enough for m in found.measured if m.probe)
    narrower = [m for m in found.measured if m.probe and m.probe < found.best.probe]
    assert all(m.lower_bound < 0.9 for m in narrower)


def test_empty_gallery_gets_cells_by_compaction(tmp_path):
    empty = Gallery.create(tmp_path / "g", around(4, 9)).remove(range(9))
    with pytest.warns(UserWarning, match="any axes, as the gallery is empty"):
        filled = empty.build_index("Cells6,Sketch8")
    assert filled.manifest.index.spec == "Sketch8"
    assert filled.add(around(4, 60)).compact().manifest.index.spec == "Cells6,Sketch8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda begins, order: begins.__setitem__(0, 1), "its cells do not divide 200 sets"),
        (lambda begins, order: begins.__setitem__(2, 300), "its cells do not divide 200 sets"),
        (lambda begins, order: order.__setitem__(0, order[1]), "does not name each of 200 sets"),
        (lambda begins, order: order.__setitem__(0, 200), "does not name each of 200 sets"),
        (lambda begins, order: order.__setitem__(0, -1), "does not name each of 200 sets"),
        (lambda begins, order: order.__setitem__(0, 2**31 - 1), "does not name each of 200 sets"),
        (
            lambda begins, order: begins.__setitem__(slice(1, 3), [2**63 - 1, -(2**63)]),
            "its cells do not divide 200 sets",
        ),
    ],
)
def test_damaged_cells_are_named(tmp_path, change, message):
    """A shard is not read from end to end when it is opened, but what it says is checked."""
    gallery = Gallery.create(tmp_path / "g", around(5, 200)).build_index("Cells5,Sketch8")
    (path,) = gallery.path.glob("segment-*/shard_*.npy")
    array = np.load(path)
    change(array[:48].view(np.int64), array[48:848].view(np.int32))
    np.save(path, array)
    with pytest.raises(ValueError, match=rf"shard_.*\.npy is damaged: .*({message})"):
        Searcher(Gallery.open(gallery.path)).search(around(5, 1), 3, "prefilter", probe=2)


def test_damaged_leaders_are_named(tmp_path):
    gallery = Gallery.create(tmp_path / "g", around(5, 200)).build_index("Cells5,Sketch8")
    (path,) = gallery.path.glob("index-*/leaders.npy")
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 64
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"leaders\.npy is damaged"):
        Searcher(gallery).search(around(5, 1), 3, "prefilter")


def test_sets_of_a_leader_are_averaged_element_by_element():
    """However a set's elements are ordered: each goes to what it is nearest to."""
    axes = torch.eye(4, dtype=torch.float32).numpy()
    leaders = EmbeddingSets(np.stack([axes[:2], axes[2:]]))
    near = np.array([[0.9, 0.1, 0.3, 0], [0.2, 0.8, 0, 0.3]], np.float32)
    sets = EmbeddingSets(np.stack([near, near[::-1], axes[2:]]))
    moved = cells._moved(leaders, sets, np.array([0, 0, 1]))
    expected = near / np.linalg.norm(near, axis=1, keepdims=True)
    np.testing.assert_allclose(moved.values[0], expected, atol=1e-6)
    np.testing.assert_allclose(moved.values[1], axes[2:], atol=1e-6)
    lone = cells._moved(leaders, sets[:2], np.array([0, 0]))
    np.testing.assert_array_equal(lone.values[1], axes[2:])  # a cell without sets keeps its leader
    assert Sketching(axes, moved).dims == 4


def test_sketches_are_longer_where_few_cells_hold_what_is_alike(tmp_path, monkeypatch):
    """Topics are found in few cells; sets of elements that were drawn one by one in none."""
    random = np.random.default_rng(0)
    spread = np.arange(1, 65) ** -0.5
    mixed = random.standard_normal((1600, 4, 64)) * spread
    for name, values in (("alike", around(40, 1600, dim=64)), ("mixed", mixed)):
        gallery = Gallery.create(tmp_path / name, EmbeddingSets.of(values.astype(np.float32)))
        with monkeypatch.context() as patch:
            dims = [sketching.train(gallery, "Cells60,Sketch").index.dims]
            patch.setattr(sketching, "ENERGY_IN_CELLS", sketching.ENERGY)
            dims.append(sketching.train(gallery, "Cells60,Sketch").index.dims)
        assert (dims[0] > dims[1]) == (name == "alike")
        assert sketching.train(gallery, "Cells60,Sketch16").index.dims == 16


def test_large_sets_are_led_by_a_few_elements(tmp_path):
    values = around(10, 300, k=20)
    lengths = np.random.default_rng(0).integers(3, 21, 300)
    for sizes in (None, lengths):
        sets = EmbeddingSets.of(values, sizes)
        gallery = Gallery.create(tmp_path / str(sizes is None), sets)
        index = open_index(gallery.build_index("Cells12,Sketch16"))
        assert index.sketching.leaders.k == cells.LEADER_ELEMENTS
        search = Searcher(gallery.open(gallery.path))
        truth = search.search(sets[:20], 5, "exact").ids
        found = search.search(sets[:20], 5, "prefilter", 100, probe=4).ids
        assert recall(found, truth) > 0.9


def test_one_call_of_the_kernel_finds_what_two_steps_find(celled, monkeypatch):
    """A gallery of one segment, some of its sets removed and others filtered."""
    pytest.importorskip("divse_native")
    gallery, queries = celled
    whole = Gallery.create(gallery.path.parent / "whole", gallery.sets(), overwrite=True)
    whole = whole.build_index("Cells40,Sketch16").remove(range(5, 90, 5))
    search = Searcher(whole)
    calls, before = dispatch.calls, dispatch.calls["native.estimates_scored"]
    asked = [{}, {"probe": 3}, {"probe": 3, "allowed": np.arange(91, 2000, 3)}]
    monkeypatch.setattr("divse.search.plans.BRUTE_FORCE", 0)
    found = [search.search(queries, 10, "prefilter", 200, **given) for given in asked]
    reports = [search.last.candidates]
    assert calls["native.estimates_scored"] >= before + 3
    monkeypatch.setattr("divse.search.sketch_index.SketchIndex.best", lambda *_: None)
    for given, one in zip(asked, found, strict=True):
        two = search.search(queries, 10, "prefilter", 200, **given)
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.scores, two.scores)
    assert reports == [search.last.candidates]
