"""Tuning: the cheapest setting that reaches the recall is stored, and used where it belongs."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from searcher_cases import clustered

from divse.search import trial, tune, tuned_file, tuning
from divse.search.durable import replace_file
from divse.search.gallery import Gallery
from divse.search.manifest import TUNED, GalleryError
from divse.search.plans import Asked, Setting, choose
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.search.trial import Trial, drawn, found_share, lower_bound
from divse.search.tuned_file import read_tuned
from divse.sets import EmbeddingSets

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    values = clustered(300, k=2, d=16)
    columns = {"n": list(range(300))}
    folder = tmp_path_factory.mktemp("tuning") / "g"
    return Gallery.create(folder, values, columns=columns).build_index("IVF8,PQ8x4fs")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tuning, "QUERIES", 12)
    monkeypatch.setattr(trial, "TIMED", 2)
    monkeypatch.setattr(tuning, "DEPTHS", (2, 60))
    monkeypatch.setattr(tuning, "SHARES", (8, 1))


@pytest.fixture
def favour(monkeypatch):
    """Pretend that one setting is by far the fastest."""

    def call(plan, depth=None, probe=None):
        def milliseconds(self, *setting):
            return 0.01 if setting == (plan, depth, probe) else 1.0

        monkeypatch.setattr(trial.Trial, "milliseconds", milliseconds)

    return call


def test_the_cheapest_that_reaches_the_recall(indexed, quick, favour, tmp_path):
    heard = []
    favour("prefilter", 60, 8)
    found = tune(indexed, recall=0.95, topk=5, progress=lambda *step: heard.append(step))
    assert found.best == max(found.measured, key=lambda m: (m.milliseconds < 1, m.recall))
    assert (found.best.depth, found.best.probe) == (60, 8) and found.best.recall >= 0.95
    assert {m.plan for m in found.measured} == {"exact", "certified", "prefilter"}
    assert heard == [("tune", 1, 7)] * 7
    assert "recall@5" in str(found) and found.sampled and found.queries == 24
    search = Searcher(Gallery.open(indexed.path))
    chosen = search.explain(topk=5)
    assert (chosen.plan, chosen.depth, chosen.probe) == ("prefilter", 60, 8)
    assert "measured" in chosen.why and chosen.note is None
    search.search(clustered(2, k=2, d=16), 5)
    assert (search.last.plan, search.last.depth, search.last.probe) == ("prefilter", 60, 8)
    indexed.verify()


def test_what_does_not_reach_the_recall_is_not_taken(indexed, quick, favour):
    favour("prefilter", 2, 1)
    found = tune(indexed, recall=0.99, store=False)
    cheap = next(m for m in found.measured if (m.depth, m.probe) == (2, 1))
    assert cheap.milliseconds < found.best.milliseconds and cheap.recall < 0.99
    assert found.best.recall >= 0.99


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"topk": 6}, "up to 5 results"),
        ({"alpha": 8.0}, r"measured for smooth_chamfer\(alpha=16.0, log_mean=False\)"),
        ({"similarity": "mil"}, "measured for smooth_chamfer"),
        ({"where": "n < 100"}, "measured without a filter"),
    ],
)
def test_it_is_not_used_for_anything_else(indexed, quick, favour, asked, reason):
    favour("certified")
    tune(indexed, topk=5)
    search = Searcher(indexed)
    assert search.explain(topk=5, where="n < 200").plan == "certified"
    chosen = search.explain(**{"topk": 5, **asked})
    assert chosen.plan == "exact"
    assert re.search(reason, chosen.note) and reason.split("\\")[0] in str(chosen)


def test_stale_foreign_and_damaged_files_are_ignored_with_a_reason(tmp_path, quick, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", clustered(60, k=2, d=16))
    tune(gallery)
    assert Searcher(gallery).explain().why.startswith("measured")
    later = gallery.add(clustered(3, k=2, d=16))
    search = Searcher(later)
    assert "another state of the gallery" in search.explain().note
    search.search(clustered(2, k=2, d=16), 5)
    assert "another state of the gallery" in search.last.note
    assert search.last.note in str(search.last)
    assert (later.path / TUNED).exists()  # whoever opened the state before may use it
    assert Searcher(gallery).explain().why.startswith("measured")
    later.verify()
    with pytest.raises(GalleryError, match="was changed while it was measured"):
        tune(gallery)
    tune(later)
    assert [entry.state for entry in read_tuned(later.path / TUNED)] == [later.manifest.checksum]
    with monkeypatch.context() as other:
        other.setattr(tuned_file, "machine_name", lambda device: "an abacus")
        assert "another machine" in Searcher(later).explain().note
    search = Searcher(later)
    whole = (later.path / TUNED).read_bytes()
    content = json.loads(whole)
    content["entries"][0]["best"]["plan"] = "rm -rf"
    for bad in (b"", b"[]", b"\xff", b'{"format": 1}', json.dumps(content).encode(), b"[" * 10**5):
        replace_file(later.path / TUNED, bad)
        assert TUNED in search.explain().note and search.explain().plan == "exact"
    replace_file(later.path / TUNED, whole)
    assert search.explain().why.startswith("measured")


def test_entries_for_other_uses_stay(indexed, quick):
    tune(indexed, topk=5)
    tune(indexed, topk=3)
    tune(indexed, topk=5, similarity="maxsim")
    tune(indexed, topk=5)
    entries = read_tuned(indexed.path / TUNED)
    assert sorted((entry.topk, entry.scoring[:6]) for entry in entries) == [
        (3, "smooth"),
        (5, "maxsim"),
        (5, "smooth"),
    ]


def test_what_a_killed_writer_of_it_left_is_swept(tmp_path):
    gallery = Gallery.create(tmp_path / "g", clustered(5))
    rest, stored = gallery.path / f".{TUNED}.123.new", gallery.path / TUNED
    for path in (rest, stored):
        path.write_text("{")
    gallery.add(clustered(2))
    assert stored.exists() and not rest.exists()


def test_own_queries_and_few_sets(tmp_path, quick):
    gallery = Gallery.create(tmp_path / "g", clustered(4, k=2, d=16), codes=False)
    found = tune(gallery, queries=clustered(3, k=2, d=16, seed=1), topk=2)
    assert not found.sampled and found.queries == 3 and found.topk == 2
    assert [m.plan for m in found.measured] == ["exact"]
    with pytest.raises(ValueError, match="recall: got 1.5"):
        tune(gallery, recall=1.5)
    with pytest.raises(ValueError, match="topk: got 9"):
        tune(gallery, topk=9, queries=clustered(3, k=2, d=16))


def cosines(queries, gallery, positions):
    """Cosines (B, K) of the elements of queries with those at the same place of some sets."""
    places = np.arange(gallery.k)[None, :]
    stored = gallery.sets().values.astype(np.float32)
    return (stored[positions, places] * queries.values).sum(-1)


def test_drawn_queries_are_moved_and_mixed_and_left_out(indexed):
    moved, mixed = drawn(indexed, 20)
    assert (moved.kind, mixed.kind) == ("moved", "mixed") and len(set(moved.own[:, 0])) == 20
    length = {"moved": trial.MOVED, "mixed": trial.MIXED}
    for sample, lowest, highest in ((moved, 0.8, 0.98), (mixed, 0.4, 0.93)):
        near = cosines(sample.queries, indexed, sample.own)
        assert lowest < near.min() and near.max() < highest
        assert near.mean() == pytest.approx(1 / np.hypot(1, length[sample.kind]), abs=0.03)
    assert (mixed.own[:, 0] != mixed.own[:, 1]).all()  # elements of different sets,
    assert {*mixed.own.ravel()} == {*moved.own.ravel()}  # of the same ones
    sampled = Trial(Searcher(indexed), [moved, mixed], Scoring(), 5)
    assert (sampled.topk, sampled.queries, sampled.sampled) == (5, 40, True)
    assert sampled.search("exact").recalls == {"moved": 1.0, "mixed": 1.0}
    best = Searcher(indexed).search_positions(mixed.queries, 1, "exact").ids
    found = (best == mixed.own).any(1).mean()
    assert found > 0.2  # of 300 sets: they would be found if they were not left out


def test_elements_of_uneven_sets_are_mixed_where_there_are_any(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 5, 40)
    values = clustered(40, k=4, d=16)
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths))
    moved, mixed = drawn(gallery, 30)
    for sample, least in ((moved, 0.8), (mixed, 0.4)):
        sizes = np.asarray(sample.queries.lengths)
        np.testing.assert_array_equal(sizes, lengths[moved.own[:, 0]])
        real = np.arange(sample.queries.k) < sizes[:, None]
        assert cosines(sample.queries, gallery, sample.own + 0 * real)[real].min() > least
    assert Trial(Searcher(gallery), [moved, mixed], Scoring(), 5).search("exact").recall == 1.0


def test_the_recall_is_that_of_the_harder_kind(indexed, quick, favour):
    """What is good enough for moved sets alone is not taken."""
    samples = drawn(indexed, tuning.QUERIES)
    setting = ("prefilter", 60, 1)
    outcome = Trial(Searcher(indexed), samples, Scoring(), 10).search(*setting)
    moved, mixed = (lower_bound(outcome.shares[kind], 10) for kind in ("moved", "mixed"))
    assert mixed < moved and outcome.recalls["mixed"] < outcome.recalls["moved"]
    favour(*setting)
    goal = (mixed + moved) / 2
    found = tune(indexed, recall=goal, store=False)
    measured = next(m for m in found.measured if (m.plan, m.depth, m.probe) == setting)
    assert measured.recall == outcome.recalls["mixed"] and found.best != measured
    alone = tune(indexed, recall=goal, queries=samples[0].queries, store=False)
    assert (alone.best.depth, alone.best.probe) == (60, 1)


def test_a_mean_that_is_only_just_enough_is_not_taken(indexed, quick, favour):
    """Another sample might have less: the bound counts, in what is taken and in what is stored."""
    setting = ("prefilter", 60, 1)
    favour(*setting)
    found = tune(indexed, recall=0.5, store=False)
    close = next(m for m in found.measured if (m.plan, m.depth, m.probe) == setting)
    assert found.best == close and close.lower_bound < close.recall < 1
    assert f"{close.lower_bound:.4f} or more" in str(found)
    found = tune(indexed, recall=close.recall, store=False)
    assert found.best.lower_bound >= close.recall and found.best != close


def test_the_bound_holds_in_most_samples():
    """Also where most find all, and few find much less: there a normal one does not."""
    random = np.random.default_rng(0)
    every = np.where(random.random(20_000) < 0.95, 1.0, random.integers(3, 10, 20_000) / 10)
    assert 0.97 < every.mean() < 0.985
    for size in (128, 512):
        samples = random.choice(every, (3000, size))
        bounds = np.array([lower_bound(sample, 10) for sample in samples])
        errors = samples.std(axis=1, ddof=1) / np.sqrt(size)
        normal = samples.mean(axis=1) - trial.ONE_SIDED * errors
        held, would = ((found <= every.mean()).mean() for found in (bounds, normal))
        assert held > 0.9 and would < held - 0.02
    assert lower_bound(np.array([0.0, 0.1]), 10) == 0


def test_a_sample_that_misses_nothing_proves_little():
    assert lower_bound(np.ones(1), 10) == pytest.approx(1 - 0.95 / 10)
    few, many = (lower_bound(np.ones(size), 10) for size in (12, 128))
    assert 0.97 < few < 0.98 and 0.997 < many < 0.998
    # With so many missing one of ten, a sample misses nothing in one of twenty.
    assert (1 - 10 * (1 - many)) ** 128 == pytest.approx(0.05)


def test_shares_of_what_is_found():
    inf = np.inf
    truth = np.array([[3, 2, 1], [3, 2, 1], [3, 2, -inf], [-inf, -inf, -inf]])
    scores = np.array([[3, 2, 1 - 1e-7], [3, 1, -inf], [3, -inf, -inf], [-inf, -inf, -inf]])
    np.testing.assert_allclose(found_share(truth, scores), [1, 2 / 3, 1 / 2, 1])


def test_a_measured_plan_that_cannot_run_is_not_taken(indexed):
    asked = Asked("auto", None, None, 5, Scoring())
    search = Searcher(indexed)
    facts = search._facts(None, asked)
    cases = {"certified": {"why_not_certified": "no"}, "prefilter": {"index": None}}
    for plan, broken in cases.items():
        tuned = Setting(plan, None, None, "measured")
        assert choose(asked, replace(facts, tuned=tuned)).plan == plan
        chosen = choose(asked, replace(facts, tuned=tuned, **broken))
        assert chosen.plan == "exact" and "cannot" in chosen.note


def test_where_few_clusters_are_looked_into_a_query_may_miss_half(tmp_path):
    """Both of sketches and of FAISS; a scan of all sketches misses one here and there."""
    assert lower_bound(np.ones(128), 10, 5) == pytest.approx(0.9884, abs=1e-4)
    gallery = Gallery.create(tmp_path / "g", clustered(300)).build_index("Cells9,Sketch16")
    sample = [trial.Sample("given", EmbeddingSets.of(clustered(300)[:40]))]
    tried = Trial(Searcher(gallery), sample, Scoring(), 10)
    whole, part, scan = (
        tried.search(*asked) for asked in (("prefilter", 200), ("prefilter", 200, 8), ("exact",))
    )
    assert (whole.missed, part.missed, scan.missed) == (1, 5, 1)
    assert whole.recall == part.recall == 1 and scan.lower_bound == 1
    assert part.lower_bound < whole.lower_bound < 1
    lists = Trial(Searcher(gallery.build_index("IVF4,Flat")), sample, Scoring(), 10)
    assert lists.search("prefilter").missed == 5
