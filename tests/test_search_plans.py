"""Which plan is taken and why, what a search reports, and what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pytest
import torch
from searcher_cases import clustered

from divse.search import plans, tune
from divse.search.filters import select
from divse.search.gallery import Gallery
from divse.search.prefilter import open_prefilter
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets
from divse.similarity import dispatch


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"topk": 0}, "topk: got 0, expected 1 to 600"),
        ({"topk": 601}, "topk: got 601"),
        ({"topk": 2.0}, "topk: got float"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"alpha": "16"}, "alpha: got str"),
        ({"similarity": "cosine"}, "similarity: got 'cosine'"),
        ({"similarity": "mil", "log_mean": True}, "log_mean serves smooth_chamfer"),
        ({"sharpness": 3}, "smooth_chamfer takes alpha, log_mean; got sharpness"),
        ({"similarity": "maxsim", "reduction": "max"}, "reduction: got 'max'"),
        ({"plan": "fast"}, "plan: got 'fast'"),
        ({"impl": "gpu"}, "expected auto, cuda, triton, native, reference"),
        ({"where": "colour = 1"}, "unknown column 'colour'"),
    ],
)
def test_explain_refuses_what_search_refuses(small_gallery, asked, error):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    for call in (search.explain, lambda **given: search.search(queries, **given)):
        with pytest.raises((ValueError, TypeError), match=error):
            call(**asked)


def test_auto_takes_what_explain_says(small_gallery, tmp_path, monkeypatch):
    gallery, queries, _ = small_gallery
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
    monkeypatch.setattr(plans, "is_usable", lambda spec: False)
    assert "not installed" in str(search.explain())
    assert search.search(queries, 3).certified.all()


def test_a_gallery_of_fewer_sets_than_usual_gives_all_it_has(tmp_path):
    pair = Gallery.create(tmp_path / "g", clustered(2))
    search = Searcher(pair)
    assert search.explain().sets == 2
    assert search.search(clustered(3)).ids.shape == (3, 2)
    assert search.search_positions(clustered(3)).ids.shape == (3, 2)
    assert tune(pair, store=False).topk == 2
    for asked in (search.explain, lambda topk: search.search(clustered(3), topk)):
        with pytest.raises(ValueError, match="topk: got 10, expected 1 to 2"):
            asked(topk=10)
    with pytest.raises(ValueError, match="the gallery is empty"):
        Searcher(pair.remove([0, 1])).explain()


def test_progress_is_told(small_gallery):
    gallery, queries, _ = small_gallery
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
        ({"depth": 2.5}, "depth: got float, expected an int"),
        ({"probe": True}, "probe: got bool, expected an int"),
        ({"similarity": "cosine"}, "similarity: got 'cosine'"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"impl": "gpu"}, "impl: got 'gpu'"),
        ({"similarity": "mp", "impl": "native"}, "no kernel for mp"),
    ],
)
def test_wrong_arguments(small_gallery, change, message):
    gallery, queries, _ = small_gallery
    with pytest.raises((ValueError, TypeError), match=message):
        Searcher(gallery).search(**{"queries": queries, **change})


def test_auto_takes_codes_where_a_plain_scan_is_long(small_gallery, monkeypatch):
    pytest.importorskip("divse_native")
    gallery, queries, _ = small_gallery
    monkeypatch.setattr(plans, "CERTIFIED_FROM", 40_000)
    search = Searcher(gallery, device="cpu")
    assert search.explain().plan == "certified" and "codes are stored" in search.explain().why
    assert "int8 codes of 600 sets are read" in str(search.explain())
    assert search.search(queries, 3).certified.all() and search.last.plan == "certified"
    assert search.explain(where="year > 2020").plan == "exact"  # so few are scanned plainly
    chosen = search.explain(similarity="mp")
    assert chosen.plan == "exact" and "do not bound mp" in chosen.why
    assert search.explain(impl="reference").plan == "exact"


@pytest.mark.parametrize("plan", ["exact", "certified", "prefilter"])
def test_a_search_reports_what_it_did(small_gallery, plan):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery, device="cpu")
    assert search.last is None
    found = search.search(queries, 5, plan, where="year >= 2000")
    report = search.last
    assert (report.plan, report.why[:8], report.device) == (plan, "as asked", "cpu")
    assert (report.queries, report.sets, report.survivors) == (20, 600, 441)
    assert 5 <= report.candidates <= 441 and report.certified == found.certified.mean() == 1
    one = gallery.dim * gallery.k
    assert report.bytes_read >= 441 * one * (1 if plan == "certified" else 2)
    assert report.seconds["filter"] > 0 and report.seconds["scan"] > 0
    assert json.loads(json.dumps(report.to_dict()))["survivors"] == 441
    for word in (plan, "20 queries", "441 of 600 sets pass", "100% certified", "scan"):
        assert word in str(report)


def test_an_explanation_is_ready_for_json(small_gallery):
    search = Searcher(small_gallery[0], device="cpu")
    chosen = search.explain("prefilter", 70, allowed=["id 3", "id 4"])
    assert json.loads(json.dumps(chosen.to_dict()))["survivors"] == 2
    assert "2 of 600 sets is scored" in str(chosen)
    plain = search.explain("prefilter", 70, probe=3)
    assert (plain.depth, plain.probe, plain.index) == (70, 3, "Flat") and not plain.certified
    assert search.explain(probe=3).plan == "prefilter"
    with pytest.raises(ValueError, match="probe is of plan='prefilter'"):
        search.explain("exact", probe=3)
    with pytest.raises(ValueError, match="probe: got 0"):
        search.explain(probe=0)


def test_a_plan_that_cannot_serve_is_refused_by_explain_too(tmp_path):
    gallery = Gallery.create(tmp_path / "g", clustered(12), codes=False)
    search = Searcher(gallery, device="cpu")
    for refused in (search.explain, lambda plan: search.search(clustered(2), 3, plan)):
        with pytest.raises(ValueError, match=r"plan='certified' cannot serve.*no int8 codes"):
            refused("certified")


def test_a_search_keeps_its_filter_when_another_thread_sets_one(small_gallery):
    pytest.importorskip("duckdb")
    gallery, queries, _ = small_gallery
    other = ("year < 2000", select(gallery, "year < 2000"))

    class Overtaken(Searcher):
        _filter = property(lambda self: other, lambda self, given: None)

    found = Overtaken(gallery).search(queries, 3, where="year >= 2000")
    np.testing.assert_array_equal(
        found.ids, Searcher(gallery).search(queries, 3, where="year >= 2000").ids
    )


def test_threads_share_one_index(small_gallery, monkeypatch):
    gallery, queries, _ = small_gallery
    opened = []

    def slowly(*arguments):
        opened.append(1)
        sleep(0.05)
        return open_prefilter(*arguments)

    monkeypatch.setattr("divse.search.searcher.open_prefilter", slowly)
    search = Searcher(gallery, device="cpu")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: search.search(queries, 3, "prefilter"), range(4)))
    assert opened == [1]
    assert all((each.ids == found[0].ids).all() for each in found)


@pytest.mark.parametrize("plan", ["exact", "certified", "prefilter"])
def test_float64_queries_are_searched_by_the_same_kernels(small_gallery, plan):
    """numpy makes them unasked; no gallery stores as much."""
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    single = EmbeddingSets.of(np.asarray(queries.numpy().values, np.float32))
    found = search.search(single, 5, plan)
    wide = single.values.astype(np.float64)
    for asked in (wide, torch.from_numpy(wide)):
        before = dispatch.calls.copy()
        again = search.search(EmbeddingSets(asked), 5, plan)
        np.testing.assert_array_equal(again.ids, found.ids)
        np.testing.assert_array_equal(again.scores, found.scores)
        assert not any("reference" in name for name in dispatch.calls - before)
