"""Which plan is taken and why, what a search reports, and what it refuses."""

import numpy as np
import pytest
from searcher_cases import clustered

from divse.search import plans
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher


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
    monkeypatch.setattr(plans, "has_faiss", lambda: False)
    assert "not installed" in str(search.explain())
    assert search.search(queries, 3).certified.all()


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
        ({"similarity": "cosine"}, "similarity: got 'cosine'"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"impl": "cuda"}, "impl: got 'cuda'"),
        ({"similarity": "mp", "impl": "native"}, "no kernel for mp"),
    ],
)
def test_wrong_arguments(small_gallery, change, message):
    gallery, queries, _ = small_gallery
    with pytest.raises((ValueError, TypeError), match=message):
        Searcher(gallery).search(**{"queries": queries, **change})
