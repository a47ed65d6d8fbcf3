"""Galleries in a device's memory: the same answers by the Triton kernels, in their interpreter."""

from collections import Counter

import numpy as np
import pytest
import torch
from searcher_cases import clustered

import divse
from divse.search import resident
from divse.search.backend import Backend
from divse.search.gallery import Gallery
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

kernels = pytest.importorskip("divse_kernels")


def living(folder, uneven: bool) -> Gallery:
    """A gallery of two segments with removed sets, one segment's sets smaller than the other's."""
    values = clustered(16)
    lengths = np.random.default_rng(0).integers(1, 4, 16) if uneven else None
    if uneven:
        lengths[3] = 4
    gallery = Gallery.create(folder, EmbeddingSets(values, lengths))
    more = EmbeddingSets(values[:6, :2], np.array([1, 2] * 3)) if uneven else values[:6]
    return gallery.add(more).remove([2, 17])


@pytest.mark.parametrize("uneven", [False, True])
def test_a_resident_gallery_is_the_gallery(tmp_path, uneven):
    gallery = living(tmp_path / "g", uneven)
    heard = []
    loaded = resident.load(gallery, torch.device("cpu"), heard.append)
    assert sum(heard) == len(gallery) == len(loaded.sets) == 20
    sets = gallery.sets()
    np.testing.assert_array_equal(loaded.sets.values.numpy(), sets.values)
    sizes = gallery.set_sizes()
    if uneven:
        np.testing.assert_array_equal(loaded.sets.lengths.numpy(), sizes)
    codes, scales, residuals = loaded.codes
    values = codes.float() * scales[..., None]
    for row, size in enumerate(sizes):
        error = np.linalg.norm(values[row, :size].numpy() - sets.values[row, :size], axis=-1)
        assert (error <= residuals[row, :size].numpy() + 1e-6).all()
        assert not codes[row, size:].any()


@pytest.mark.parametrize("uneven", [False, True])
def test_certified_by_triton(tmp_path, uneven):
    gallery = living(tmp_path / "g", uneven)
    queries = EmbeddingSets.of(clustered(3, seed=2))
    search = Searcher(gallery, device="cpu")
    before = Counter(divse.calls)
    found = search.search(queries, 4, "certified", impl="triton")
    assert divse.calls["triton.certified"] == before["triton.certified"] + 1
    assert search.last.impl == "triton" and found.certified.all()
    exact = search.search(queries, 4, "exact", impl="reference")
    np.testing.assert_array_equal(found.ids, exact.ids)
    np.testing.assert_allclose(found.scores, exact.scores, atol=2e-6)
    left = gallery.ids[1::2]
    some = search.search(queries, 12, "certified", allowed=left, impl="triton")
    assert some.ids.shape == (3, len(left)) and set(some.ids.ravel()) == set(left)


def test_certified_by_triton_says_what_it_lacks(tmp_path):
    queries = clustered(2, d=40)
    odd = Searcher(Gallery.create(tmp_path / "odd", clustered(5, d=40)), device="cpu")
    with pytest.raises(ValueError, match="codes of D in steps of 16, and D is 40"):
        odd.search(queries, 2, "certified", impl="triton")
    plain = Searcher(Gallery.create(tmp_path / "p", clustered(5), codes=False), device="cpu")
    with pytest.raises(ValueError, match="has no int8 codes"):
        plain.search(clustered(2), 2, "certified", impl="triton")
    with pytest.raises(ValueError, match="impl='reference' has no certified scan"):
        odd.search(queries, 2, "certified", impl="reference")


def test_auto_and_certified_on_a_gpu(tmp_path, monkeypatch):
    """What is decided for a GPU, without one: room, residency, plans."""
    gallery = Gallery.create(tmp_path / "g", clustered(16))
    room = {"free": 1 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room["free"], 1 << 40))
    gpu = torch.device("cuda", 0)
    assert resident.fits(gallery, gpu) and not resident.fits(gallery, torch.device("cpu"))
    room["free"] = 100
    assert not resident.fits(gallery, gpu)
    streamed, held = Backend(gallery, gpu, None), Backend(gallery, gpu, True)
    assert "not in the memory of cuda:0" in streamed.why_not_certified(Scoring())
    assert held.why_not_certified(Scoring()) is None
    assert "C++ kernels run on the CPU" in held.why_not_certified(Scoring(impl="native"))


def test_candidates_are_scored_in_the_device_memory(tmp_path, monkeypatch):
    gallery = Gallery.create(tmp_path / "g", clustered(20)).build_index("Flat")
    queries = EmbeddingSets.of(clustered(2, seed=3))
    search = Searcher(gallery, device="cpu")
    expected = search.search(queries, 3, "prefilter", depth=12)
    loaded = resident.load(gallery, torch.device("cpu"))
    monkeypatch.setattr(search._backend, "resident", lambda *_: loaded)
    before = divse.calls["triton.candidates"]
    found = search.search(queries, 3, "prefilter", depth=12, impl="triton")
    assert divse.calls["triton.candidates"] == before + 1
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)
    exact = search.search(queries, 3, "exact", impl="triton", allowed=range(0, 20, 2))
    slow = search.search(queries, 3, "exact", impl="native", allowed=range(0, 20, 2))
    np.testing.assert_array_equal(exact.ids, slow.ids)
