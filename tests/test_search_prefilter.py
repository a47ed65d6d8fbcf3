"""The prefilter: finds what exact finds, never too few, by any index, stored or not."""

import sys

import numpy as np
import pytest
from searcher_cases import clustered, recall

from divse.search.adaptive import Effort
from divse.search.gallery import Gallery
from divse.search.index_spec import automatic_spec, has_faiss
from divse.search.prefilter import open_prefilter
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """4,500 sets in an inverted file of 4-bit codes."""
    values = clustered(4540, seed=1)
    gallery = Gallery.create(tmp_path_factory.mktemp("large") / "g", values[:4500])
    return gallery.build_index("IVF128,PQ8x4fs"), EmbeddingSets.of(values[4500:])


def test_prefilter_recall_with_quantised_index(large):
    gallery, queries = large
    search = Searcher(gallery)
    truth = search.search(queries, 10, "exact").ids
    found = search.search(queries, 10, "prefilter")
    assert recall(found.ids, truth) >= 0.99
    shallow = search.search(queries, 10, depth=20).ids
    deep = search.search(queries, 10, depth=2000).ids
    assert recall(shallow, truth) <= recall(deep, truth) >= 0.99


def test_prefilter_finds_enough_even_where_neighbours_are_few(small_gallery):
    gallery, queries, _ = small_gallery
    found = Searcher(gallery).search_positions(queries, 50, "prefilter", depth=1)
    assert (found.ids >= 0).all()
    effort = Effort(depth=3, probe=1, rounds=1)
    index = open_prefilter(gallery)
    for proposed in index.propose(queries, Scoring(), effort, None).candidates:
        own = proposed[proposed >= 0]
        assert len(own) >= 3 and (np.diff(own) > 0).all()


def test_index_is_stored_and_kept_up_to_date(small_gallery, tmp_path, monkeypatch):
    monkeypatch.setattr("divse.search.prefilter.STORED_FROM", 1)
    gallery, queries, _ = small_gallery
    own = Gallery.create(tmp_path / "g", gallery.sets())
    expected = Searcher(own).search(queries, 5, "prefilter")
    stored = Gallery.open(own.path)
    assert stored.manifest.index.spec == "Flat"
    monkeypatch.setattr("divse.search.faiss_files.fill", None)  # from here on it is loaded
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


def test_damaged_index_is_named(small_gallery, tmp_path):
    gallery, queries, _ = small_gallery
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
def test_any_factory_string(small_gallery, tmp_path, spec):
    gallery, queries, _ = small_gallery
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


def test_folder_that_cannot_be_written_keeps_the_index_in_memory(small_gallery, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("divse.search.prefilter.STORED_FROM", 1)
    monkeypatch.setattr("divse.search.changes.build_index", refuse)
    gallery, queries, _ = small_gallery
    with pytest.warns(UserWarning, match="index is not stored"):
        assert Searcher(gallery).search(queries, 2, "prefilter").ids.shape == (20, 2)


def test_a_folder_that_is_called_faiss_is_none(tmp_path, monkeypatch):
    """Python takes any folder for a package, and puts the working directory first."""
    assert has_faiss()
    gallery = Gallery.create(tmp_path / "g", clustered(20)).build_index("Flat")
    (tmp_path / "faiss").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "path", [str(tmp_path)])
        patched.delitem(sys.modules, "faiss")
        assert not has_faiss() and automatic_spec(10, 9) == "Sketch"
        assert "faiss" not in sys.modules
        with pytest.raises(ImportError, match=r"another thing of that name\): pip install"):
            Searcher(gallery).search(clustered(2), 3, "prefilter")
        patched.delitem(sys.modules, "faiss")
    assert has_faiss()


def test_named_plan_never_falls_back(small_gallery, tmp_path, monkeypatch):
    gallery, queries, _ = small_gallery
    gallery = Gallery.create(tmp_path / "g", gallery.sets()).build_index("Flat")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"divse\[cpu\]"):
        Searcher(gallery).search(queries, 3, "prefilter")
