"""Proofs of the prefilter: no unseen set scores above its bound; what is proven is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searcher_cases import clustered, full_sort, unit

import divse
from divse.search import adaptive, element_index, plans, proposal
from divse.search.bounds import bounds_unseen, unseen_bound
from divse.search.gallery import Gallery
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

SCORINGS = [
    Scoring(),
    Scoring(alpha=0.3),
    Scoring(alpha=200.0),
    Scoring(log_mean=True),
    Scoring("chamfer"),
    Scoring("maxsim"),
    Scoring("maxsim", parameters={"reduction": "mean"}),
    Scoring("mil"),
]


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 60))
def test_no_unseen_set_scores_above_its_bound(scoring, seed, depth):
    """Against brute force: all cosines, all owners of the nearest elements, all scores."""
    random = np.random.default_rng(seed)
    k, most = random.integers(1, 5, 2)
    values = unit(random.standard_normal((60, most, 6)) + 0.7).astype(np.float32)
    lengths = random.integers(1, most + 1, 60)
    queries = unit(random.standard_normal((3, k, 6)) + 0.7).astype(np.float32)
    sizes = random.integers(1, k + 1, 3)
    owners = np.repeat(np.arange(60), lengths)
    elements = np.concatenate([row[:n] for row, n in zip(values, lengths, strict=True)])
    scores = divse.score(
        EmbeddingSets(queries, sizes),
        EmbeddingSets(values, lengths),
        impl="reference",
        **scoring.keywords(),
    )
    limits = np.full((3, k), -np.inf, np.float32)
    seen = np.zeros((3, 60), dtype=bool)
    for row in range(3):
        for element in range(sizes[row]):
            cosines = elements @ queries[row, element]
            nearest = np.argsort(-cosines)[:depth]
            seen[row, owners[nearest]] = True
            limits[row, element] = cosines[nearest[-1]] if len(nearest) == depth else -np.inf
    bound = unseen_bound(limits, sizes, int(lengths.max()), 6, scoring)
    assert (np.where(seen, -np.inf, scores).max(axis=1) <= bound).all()
    all_returned = (np.isneginf(limits) & (np.arange(k) < sizes[:, None])).any(axis=1)
    assert seen[all_returned].all() and np.isneginf(bound[all_returned]).all()


def test_the_bound_is_the_formula_of_its_page():
    limits = np.array([[0.5, 0.2, -0.1]], dtype=np.float32)
    t, alpha, size = limits[0].astype(np.float64), 16.0, 4
    smooth = np.log(np.exp(alpha * t).sum()) / (2 * alpha)
    expected = [
        (Scoring(), t.mean() / 2 + np.log(size) / (2 * alpha) + smooth),
        (Scoring(log_mean=True), t.mean() / 2 + smooth - np.log(3) / (2 * alpha)),
        (Scoring("chamfer"), (t.mean() + t.max()) / 2),
        (Scoring("maxsim"), t.sum()),
        (Scoring("mil"), t.max()),
    ]
    for scoring, value in expected:
        bound = unseen_bound(limits, None, size, 256, scoring)[0]
        assert value < bound < value + 4e-4, scoring.similarity
        assert bounds_unseen(scoring)
    assert not bounds_unseen(Scoring("mp"))


def test_the_bound_is_reached():
    """A set whose elements have just the least cosine that was returned scores just below it."""
    query = torch.eye(8)[:2]
    t = torch.tensor([0.6, 0.3])
    rest = (1 - t.square().sum()).sqrt()
    element = torch.cat([t, torch.zeros(5), rest[None]])
    sets = element.expand(1, 4, 8)
    for scoring in SCORINGS:
        score = divse.score(
            query[None], sets, unit_norm=False, impl="reference", **scoring.keywords()
        )
        bound = unseen_bound(t[None].numpy(), None, 4, 8, scoring)[0]
        assert float(score) <= bound <= float(score) + 1e-4, scoring


def alone(count: int, dim: int = 64) -> np.ndarray:
    """Sets far from each other: what is near to a query is near without doubt."""
    return clustered(count, k=2, d=dim, seed=7)


@pytest.mark.parametrize("spec", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil", "mp"])
def test_proven_answers_are_exact(tmp_path, spec, similarity):
    values = alone(400)
    gallery = Gallery.create(tmp_path / "g", values, dtype="float32").build_index(spec)
    random = np.random.default_rng(1)
    noise = 0.03 * random.standard_normal((30, 2, 64)).astype(np.float32)
    queries = EmbeddingSets.of(values[:30] + noise)
    search = Searcher(gallery)
    found = search.search(queries, 1, "prefilter", depth=9, probe=8, similarity=similarity)
    assert search.last.rounds == 1 and search.last.certified == found.certified.mean()
    scores, order = full_sort(queries, values, 1, similarity=similarity)
    assert (found.ids[found.certified] == order[found.certified]).all()
    assert found.certified.any() == (similarity != "mp")
    few = search.search(queries, 1, "prefilter", depth=9, probe=2, similarity=similarity)
    assert few.certified.any() == (similarity != "mp" and spec == "Flat")


@pytest.mark.parametrize("spec", ["IVF8,PQ16x4fs", "IVF8,RaBitQ", "SQ8", "HNSW16", "PCA32,Flat"])
def test_codes_prove_nothing_but_that_everything_was_scored(tmp_path, spec):
    gallery = Gallery.create(tmp_path / "g", alone(60)).build_index(spec)
    queries = gallery.sets(np.arange(5))
    search = Searcher(gallery)
    assert not search.search(queries, 1, "prefilter", depth=3, probe=8).certified.any()
    found = search.search(queries, 60, "prefilter", depth=120, probe=8)
    assert found.certified.all() and found.ids.shape == (5, 60)


def test_near_ties_are_not_called_proven(tmp_path):
    """Two equal sets: the one of lower position comes first in the exact order."""
    values = np.repeat(alone(1), 2, axis=0)
    gallery = Gallery.create(tmp_path / "g", values).build_index("Flat")
    found = Searcher(gallery).search(values[:1], 1, "prefilter", depth=1)
    assert not found.certified.any()


def test_it_looks_deeper_until_the_answer_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive, "SCANNED_FROM", 1)
    gallery = Gallery.create(tmp_path / "g", clustered(500)).build_index("IVF8,PQ8x4fs")
    search, queries = Searcher(gallery), EmbeddingSets(clustered(12))
    search.search(queries, 10, "prefilter")
    report = search.last
    assert 2 <= report.rounds <= element_index.MOST_ROUNDS
    assert report.depth == element_index.DEPTH * proposal.DEEPER ** (report.rounds - 1)
    assert {"prefilter", "rerank"} <= report.seconds.keys() and report.candidates > 10
    one = search.search(queries, 10, "prefilter", depth=100)
    assert search.last.rounds == 1 and search.last.depth == 100 and one.ids.shape == (12, 10)


def test_the_fewer_pass_a_filter_the_wider_it_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "BRUTE_FORCE", 0)
    monkeypatch.setattr(element_index, "LEAST_PROBED", 1)
    gallery = Gallery.create(tmp_path / "g", clustered(500)).build_index("IVF32,Flat")
    search, queries = Searcher(gallery), clustered(3)
    probed = []
    for left in (500, 125):
        search.search(queries, 1, "prefilter", depth=20, allowed=range(left))
        probed.append(search.last.probe)
    assert probed == [2, 8]


def test_a_scan_answers_what_would_look_at_everything(small_gallery):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    found = search.search(queries, 550, "prefilter")
    np.testing.assert_array_equal(found.ids, search.search(queries, 550, "exact").ids)
    assert found.certified.all()
