"""Element indexes of every kind: removed sets, nested indexes, specs that FAISS cannot serve."""

import numpy as np
import pytest
from searcher_cases import clustered, recall

from divse.search.gallery import Gallery
from divse.search.index_files import open_index
from divse.search.index_spec import automatic_spec
from divse.search.searcher import Searcher
from divse.search.shard import lists
from divse.sets import EmbeddingSets

pytest.importorskip("faiss")

SPECS = {  # what FAISS makes, and how much of the best ten it must find
    "Flat": 1.0,
    "RaBitQ": 0.9,
    "SQ8": 0.9,
    "PQ8x4": 0.8,
    "PQ8x4fs": 0.8,
    "PCA16,Flat": 0.8,
    "PCA16,IVF8,Flat": 0.8,
    "OPQ8,IVF8,PQ8x4": 0.8,
    "RR32,IVF8,RaBitQ": 0.9,
    "IVF8,Flat,RFlat": 0.9,
    "PQ8x4,RFlat": 0.8,
    "IVF8,PQ8x4fs": 0.8,
    "IVF8_HNSW8,Flat": 0.9,
    "HNSW16": 0.9,
}


@pytest.fixture(scope="module")
def values():
    return clustered(150, seed=3)


@pytest.mark.parametrize("spec", SPECS)
def test_removed_sets_are_never_found(values, tmp_path, spec):
    gallery = Gallery.create(tmp_path / "g", values[:120]).build_index(spec)
    gallery = gallery.add(values[120:]).remove(range(0, 110, 2))
    queries = EmbeddingSets.of(values[:10])
    for state in (gallery, Gallery.open(gallery.path), gallery.compact()):
        found = Searcher(state).search(queries, 10, "prefilter").ids
        assert set(found.ravel().tolist()) <= set(state.ids.tolist())
        truth = Searcher(state).search(queries, 10, "exact").ids
        assert recall(found, truth) >= SPECS[spec]


@pytest.mark.parametrize("spec", ["PQ8x4", "PQ8x4fs", "IVF8,Flat"])
def test_neighbours_are_found_among_many_removed(values, tmp_path, spec):
    """The nearest elements are all of removed sets: the search must go deeper."""
    gallery = Gallery.create(tmp_path / "g", np.repeat(values[:3], 40, axis=0)).build_index(spec)
    gallery = gallery.remove([row for row in range(120) if row not in (30, 70, 110)])
    found = open_index(gallery).nearest(values[0], 12, probe=8)[1]
    assert found.shape == (4, 12)
    for row in found:
        assert set(row.tolist()) <= {-1, 0, 1, 2} and 0 in row
    assert (found >= 0).all() or spec.startswith("IVF")


@pytest.mark.parametrize(
    "spec", ["IVF8,Flat", "PCA16,IVF8,Flat", "IVF8,Flat,RFlat", "OPQ8,IVF8,PQ8x4"]
)
def test_clusters_are_seen_inside_other_indexes(values, tmp_path, spec):
    index = open_index(Gallery.create(tmp_path / "g", values).build_index(spec))
    assert index.lists == lists(index.shards[0].index) == 8
    assert (index.nearest(values[0], 600, probe=1)[1] < 0).any()  # one cluster has not so many
    assert (index.nearest(values[0], 600, probe=8)[1] >= 0).all()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nonsense", "could not parse"),
        ("", "index"),
        ("LSH", "METRIC_L2"),
        ("IDMap,Flat", "add_with_ids"),
        ("L2norm,Flat", "clone"),
        ("IMI2x2,Flat", "inner prod"),
        ("NSG8", "cannot add to NSG"),
        ("PQ7x4", "multiple of the number of subquantizers"),
    ],
)
def test_specs_that_faiss_cannot_serve_are_refused_with_its_reason(values, tmp_path, spec, why):
    gallery = Gallery.create(tmp_path / "g", values)
    with pytest.raises(ValueError, match=f"index {spec!r}.*{why}"):
        gallery.build_index(spec)
    assert Gallery.open(gallery.path).manifest == gallery.manifest
    assert not list(gallery.path.glob("index-*"))


def test_too_few_elements_to_train_give_a_flat_index(values, tmp_path):
    gallery = Gallery.create(tmp_path / "g", values).build_index("IVF64,Flat")
    assert gallery.manifest.index.spec == "IVF64,Flat"
    assert gallery.manifest.index.asked == "IVF64,Flat"
    with pytest.warns(UserWarning, match=r"'IVF64,Flat' cannot be trained on 40 elements"):
        few = gallery.remove(range(10, 150)).compact()
    assert (few.manifest.index.spec, few.manifest.index.asked) == ("Flat", "IVF64,Flat")
    queries = EmbeddingSets.of(values[:4])
    np.testing.assert_array_equal(
        Searcher(few).search(queries, 5, "prefilter").ids,
        Searcher(few).search(queries, 5, "exact").ids,
    )
    assert few.add(values[10:]).compact().manifest.index.spec == "IVF64,Flat"


def test_empty_gallery_has_an_index_too(values, tmp_path):
    empty = Gallery.create(tmp_path / "g", values[:9]).remove(range(9))
    assert empty.build_index().manifest.index.spec == "Flat"
    with pytest.warns(UserWarning, match="the gallery is empty"):
        filled = empty.build_index("IVF8,Flat").add(values)
    assert (
        recall(Searcher(filled).search(values[:5], 1, "prefilter").ids, [[r + 9] for r in range(5)])
        == 1.0
    )
    filled.verify()


def test_automatic_index_is_chosen_anew_by_compaction(values, tmp_path, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", values[:20]).build_index()
    assert gallery.manifest.index.spec == "Flat" and gallery.manifest.index.asked is None
    monkeypatch.setattr("divse.search.index_spec.FLAT_UP_TO", 200)
    gallery = gallery.add(values[20:])
    assert gallery.manifest.index.spec == "Flat"
    grown = gallery.compact()
    assert automatic_spec(600, 150) == "Sketch" and automatic_spec(200, 50) == "Flat"
    assert grown.manifest.index.spec == "Sketch16"
    assert Gallery.open(grown.path).manifest.index.asked is None


def test_index_folder_that_is_gone_can_be_replaced(values, tmp_path):
    for change in (Gallery.drop_index, Gallery.build_index):
        gallery = Gallery.create(tmp_path / change.__name__, values[:20]).build_index("Flat")
        (gallery.path / gallery.manifest.index.name / "trained.faiss").unlink()
        (gallery.path / gallery.manifest.index.name).rmdir()
        with pytest.raises(ValueError, match="trained.faiss is missing"):
            gallery.add(values[20:30])
        change(gallery).add(values[20:30]).verify()


def test_gpus_search_where_they_can(tmp_path, monkeypatch):
    """With a stand-in for faiss-gpu: its copy is asked first, the index itself where it refuses."""
    import faiss

    asked = []

    class OnGpu:
        def __init__(self, index):
            self.index = index

        def search(self, vectors, count, params=None):
            asked.append(count)
            if count > 20:
                raise RuntimeError("GPU index only supports k <= 20")
            return self.index.search(vectors, count, params=params)

    gallery = Gallery.create(tmp_path / "g", clustered(30)).build_index("Flat")
    vectors = clustered(3, seed=1)[:, 0]
    expected = [open_index(gallery).nearest(vectors, n, 1)[1] for n in (5, 40)]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", OnGpu, raising=False)
    found = [open_index(gallery).nearest(vectors, n, 1)[1] for n in (5, 40)]
    assert asked == [5, 40]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
