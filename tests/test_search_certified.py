"""The certified scan: the exact answer, bit for bit, out of int8 codes."""

import numpy as np
import pytest
from searcher_cases import clustered

import divse
from divse.search import scan
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets


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


def test_certified_plan_says_what_it_lacks(small_gallery, tmp_path):
    gallery, queries, _ = small_gallery
    plain = Gallery.create(tmp_path / "p", gallery.sets(), codes=False)
    with pytest.raises(ValueError, match="has no int8 codes"):
        Searcher(plain).search(queries, 3, "certified")
    with pytest.raises(ValueError, match="int8 codes do not bound mp"):
        Searcher(gallery).search(queries, 3, "certified", similarity="mp")
