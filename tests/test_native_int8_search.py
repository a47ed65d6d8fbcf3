"""divse_native.Int8Gallery: the best by int8 codes alone, on every instruction set."""

import numpy as np
import pytest
import torch
from searcher_cases import clustered

from divse.sets import EmbeddingSets
from divse.similarity import score
from divse.similarity.certified import encode
from divse.similarity.quantise import two_parts

divse_native = pytest.importorskip("divse_native")


def coded(queries):
    """Queries as the kernel sees them: the first part of their codes."""
    parts = two_parts(torch.from_numpy(queries))
    return parts.codes1.double() * parts.scales1.double()[..., None]


def side_by_side(values, lengths=None):
    """Codes, scales and N of sets (N, K, D) as the kernel reads them, and the values they say."""
    sets, k, dim = values.shape
    codes, scales, _ = (x.numpy() for x in encode(torch.from_numpy(values)))
    lengths = np.full(sets, k) if lengths is None else lengths
    slots = []
    for first in range(0, sets, 16):
        for j in range(lengths[first : first + 16].max()):
            slot = np.zeros((16, -(-dim // 4) * 4), np.int8), np.zeros(16, np.float32)
            for lane, n in enumerate(range(first, min(first + 16, sets))):
                if j < lengths[n]:
                    slot[0][lane, :dim], slot[1][lane] = codes[n, j], scales[n, j]
            slots.append(slot)
    laid = np.stack([slot.reshape(16, -1, 4) for slot, _ in slots]).transpose(0, 2, 1, 3)
    said = torch.from_numpy(codes).double() * torch.from_numpy(scales).double()[..., None]
    return (np.ascontiguousarray(laid), np.stack([slot for _, slot in slots]), sets), said


def search(queries, gallery, topk, lengths=None, **options):
    """Scores and ids (B, topk) of codes, scales and N."""
    made = divse_native.Int8Gallery(*gallery, queries.shape[2], lengths)
    return made.search(queries, topk, **options)


@pytest.mark.parametrize("isa", divse_native.instruction_sets())
@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (32, 4, 96, 2), (33, 3, 17, 2), (70, 8, 33, 9), (130, 5, 63, 7)]
)
def test_scores_are_those_of_the_codes(isa, similarity, shape):
    sets, k, dim, batch = shape
    values = clustered(sets + batch, k, dim, seed=sets)
    queries, topk = values[sets:], min(sets, 20)
    gallery, said = side_by_side(values[:sets])
    found, ids = search(queries, gallery, topk, similarity=similarity, isa=isa, threads=2)
    sides = EmbeddingSets(coded(queries)), EmbeddingSets(said)
    exact = score(*sides, similarity=similarity, impl="reference").numpy()
    np.testing.assert_allclose(found, -np.sort(-exact, 1)[:, :topk], atol=5e-6 * k)
    np.testing.assert_allclose(found, np.take_along_axis(exact, ids, 1), atol=5e-6 * k)


@pytest.mark.parametrize("isa", divse_native.instruction_sets())
@pytest.mark.parametrize(
    "options", [{"alpha": 500.0}, {"alpha": 3.0, "log_mean": True}, {"alpha": 0.01}]
)
@pytest.mark.parametrize("sizes", [(4, 4), (6, 4), (1, 7)])
def test_any_alpha(isa, options, sizes):
    """Sums out of range too: those are taken again from their largest terms."""
    k, asked = sizes
    values = clustered(64, 7, 20, seed=k)
    queries = values[:3, :asked].copy()
    values[20:30] *= -1
    gallery, said = side_by_side(values[:50, :k].copy())
    found, ids = search(queries, gallery, 50, isa=isa, **options)
    sides = EmbeddingSets(coded(queries)), EmbeddingSets(said)
    exact = score(*sides, impl="reference", **options).numpy()
    size = 1 + 1 / options["alpha"]
    np.testing.assert_allclose(found, np.take_along_axis(exact, ids, 1), atol=5e-6 * size)


@pytest.mark.parametrize("isa", divse_native.instruction_sets())
@pytest.mark.parametrize("similarity", ["smooth_chamfer", "maxsim"])
def test_ragged_sets(isa, similarity):
    """Sets and queries of 1 to 6 elements; nothing is read of what is padding."""
    values, random = clustered(75, 6, 24, seed=1), np.random.default_rng(0)
    lengths, asked = random.integers(1, 7, 70), np.array([6, 1, 2, 4, 5])
    lengths[32:48] = 3  # one group of equals
    gallery, said = side_by_side(values[:70], lengths)
    found, ids = search(
        values[70:], gallery, 20, lengths, query_lengths=asked,
        similarity=similarity, isa=isa,
    )  # fmt: skip
    sides = EmbeddingSets(coded(values[70:]), asked), EmbeddingSets(said, lengths)
    exact = score(*sides, similarity=similarity, impl="reference").numpy()
    np.testing.assert_allclose(found, -np.sort(-exact, 1)[:, :20], atol=3e-5)
    np.testing.assert_allclose(found, np.take_along_axis(exact, ids, 1), atol=3e-5)


def test_excluded_sets():
    values = clustered(90, 4, 24)
    out = np.zeros(96, dtype=bool)
    out[10:85] = True
    found, ids = search(
        values[:3], side_by_side(values)[0], 20, excluded=np.packbits(out, bitorder="little")
    )
    assert ids.shape == (3, 20) and (ids[:, 15:] == -1).all() and np.isinf(found[:, 15:]).all()
    assert set(ids[:, :15].ravel().tolist()) == {*range(10), *range(85, 90)}
    assert ids[:, 0].tolist() == [0, 1, 2]


def test_many_of_the_best():
    """More than a selection keeps at once, in any order of scores: as a sort has them."""
    values = clustered(3000, 2, 8, seed=4)
    gallery, _ = side_by_side(values)
    everything, order = search(values[:2], gallery, 3000)
    for topk in (1, 63, 64, 65, 700, 2999):
        found, ids = search(values[:2], gallery, topk, threads=3)
        np.testing.assert_array_equal(found, everything[:, :topk])
        np.testing.assert_array_equal(ids, order[:, :topk])
    assert (np.diff(everything) <= 0).all()


RIGHT = {
    "codes": np.zeros((2, 2, 16, 4), np.int8),
    "scales": np.ones((2, 16), np.float32),
    "sets": 5,
    "dim": 8,
}
LEADERS = divse_native.Int8Gallery(**(RIGHT | {"sets": 2}))
NARROW = divse_native.Int8Gallery(np.zeros((2, 1, 16, 4), np.int8), RIGHT["scales"], 2, 4)


class Indexed:
    """No array, though it has a length."""

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 2, 16, 3), np.int8)}, "codes"),
        ({"codes": np.zeros((2, 3, 16, 4), np.int8)}, "codes"),
        ({"codes": np.zeros((2, 2, 16, 4), np.uint8)}, "codes"),
        ({"codes": np.zeros((2, 2, 32, 4), np.int8)[:, :, ::2]}, "codes"),
        ({"scales": np.zeros((1, 16), np.float32)}, "codes"),
        ({"scales": np.zeros((2, 16))}, "scales"),
        ({"scales": Indexed()}, "scales: got dtype None"),
        ({"sets": 0}, "sets: got 0, expected at least 1"),
        ({"sets": 33}, "scales: got 2 slots, expected 3 for 33 sets"),
        ({"lengths": np.ones(5, np.int64)}, "scales: got 2 slots, expected 1 for 5 sets"),
        ({"lengths": np.array([1, 2, 0, 1, 1])}, "got 0 for set 2, expected 1 to 2"),
        ({"lengths": np.ones(4, np.int64)}, "lengths: got"),
        ({"lengths": np.ones(5)}, "lengths: got"),
        ({"lengths": np.array([1, 1, 2**62, 1, 1])}, "lengths: got .* for set 2, expected 1 to 2"),
        ({"dim": 0}, "got 0 dims, expected 1 to"),
        ({"scales": np.frombuffer(bytes(130), np.float32, 32, 2).reshape(2, 16)}, "not aligned"),
        ({"order": np.arange(5)}, "order: got dtype int64"),
        ({"begins": np.array([0, 5])}, "leaders: got .*NoneType.* expected an Int8Gallery"),
        (
            {"order": np.array([0, 1, 2, 3, 5], np.int32)},
            "order: got 5 at place 4, expected each of",
        ),
        ({"order": np.array([0, 1, 2, -3, 4], np.int32)}, "order: got -3 at place 3"),
        ({"order": np.array([0, 1, 2, 2, 4], np.int32)}, "order: got 2 at place 3"),
        ({"leaders": np.ones((1, 3, 8))}, "leaders: got .* expected an Int8Gallery"),
        ({"leaders": LEADERS}, "begins: got dtype None"),
        ({"leaders": LEADERS, "begins": np.array([0, 5])}, r"begins: got .* shape \(2,\)"),
        ({"leaders": LEADERS, "begins": np.array([0, 3, 4])}, "begins: expected numbers that"),
        ({"leaders": LEADERS, "begins": np.array([0, 6, 5])}, "begins: expected numbers that"),
        ({"leaders": LEADERS, "begins": np.array([1, 3, 5])}, "begins: expected numbers that"),
        ({"leaders": NARROW, "begins": np.array([0, 3, 5])}, "leaders: got D=4, expected 8"),
    ],
)
def test_what_makes_no_gallery_is_refused(change, message):
    assert divse_native.Int8Gallery(**RIGHT)
    with pytest.raises((ValueError, TypeError), match=message):
        divse_native.Int8Gallery(**(RIGHT | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 6}, "topk"),
        ({"similarity": "mp"}, "similarity"),
        ({"excluded": np.zeros(2, np.uint8)}, "excluded"),
        ({"nonsense": 1}, "nonsense"),
        ({"queries": np.ones((1, 3, 12), np.float32)}, "queries: got D=12, expected 8"),
        ({"probe": 2}, "probe: the gallery has no cells"),
    ],
)
def test_what_does_not_fit_a_gallery_is_refused(change, message):
    gallery = divse_native.Int8Gallery(**RIGHT)
    right = {"queries": np.ones((1, 3, 8), np.float32), "topk": 2}
    assert gallery.search(**right)[0].shape == (1, 2)
    with pytest.raises((ValueError, TypeError), match=message):
        gallery.search(**(right | change))
    celled = divse_native.Int8Gallery(**RIGHT, leaders=LEADERS, begins=np.array([0, 3, 5]))
    with pytest.raises(ValueError, match="probe: got 0, expected at least 1"):
        celled.search(**right, probe=0)


def in_cells(values, lengths, cells, dim):
    """A gallery of sets (N, K, D) by cell, led by the first sets of all."""
    order = np.argsort(cells, kind="stable").astype(np.int32)
    own = None if lengths is None else lengths[order]
    gallery, said = side_by_side(values[order], own)
    count = cells.max() + 1
    led = None if lengths is None else lengths[:count]
    leaders = divse_native.Int8Gallery(*side_by_side(values[:count], led)[0], dim, led)
    begins = np.searchsorted(cells[order], np.arange(count + 1))
    return divse_native.Int8Gallery(*gallery, dim, own, order, leaders, begins), leaders, said


@pytest.mark.parametrize("isa", divse_native.instruction_sets())
@pytest.mark.parametrize("similarity", ["smooth_chamfer", "maxsim"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_cells_that_are_looked_into(isa, similarity, ragged, batch):
    """The best of all sets of the groups of 16 that the nearest cells reach into, by their ids."""
    random = np.random.default_rng(3)
    values = clustered(400 + batch, 4, 24, seed=6)
    queries, values = values[400:], values[:400]
    lengths = random.integers(1, 5, 400) if ragged else None
    cells = random.integers(0, 9, 400)
    cells[cells == 4] = 3  # one is empty
    gallery, leaders, said = in_cells(values, lengths, cells, 24)
    options = {"similarity": similarity, "isa": isa, "threads": 2}
    sizes = None if lengths is None else lengths[np.argsort(cells, kind="stable")]
    sides = EmbeddingSets(coded(queries)), EmbeddingSets(said, sizes)
    exact = score(*sides, similarity=similarity, impl="reference").numpy()  # of the places
    order, places = np.argsort(cells, kind="stable"), np.sort(cells)
    for probe in (1, 3, 8, 9, 12):
        found, ids = gallery.search(queries, 30, probe=probe, **options)
        _, chosen = leaders.search(queries, min(probe, 9), **options)
        for q in range(batch):
            groups = np.unique(np.flatnonzero(np.isin(places, chosen[q])) // 16)
            open_to = np.isin(np.arange(400) // 16, groups)
            best = -np.sort(-exact[q, open_to])[:30]
            np.testing.assert_allclose(found[q, : len(best)], best, atol=3e-5)
            assert (ids[q, len(best) :] == -1).all() and np.isneginf(found[q, len(best) :]).all()
            own = np.argsort(order)[ids[q, : len(best)]]
            assert open_to[own].all() and len(set(own)) == len(best)
            np.testing.assert_allclose(found[q, : len(best)], exact[q, own], atol=3e-5)


def test_excluded_sets_of_cells_are_named_by_id():
    values = clustered(90, 4, 24)
    gallery, *_ = in_cells(values, None, np.arange(90) % 5, 24)
    out = np.zeros(96, dtype=bool)
    out[10:85] = True
    excluded = np.packbits(out, bitorder="little")
    for probe in (None, 5):
        found, ids = gallery.search(values[:3], 20, excluded=excluded, probe=probe)
        assert set(ids[:, :15].ravel().tolist()) == {*range(10), *range(85, 90)}
        assert (ids[:, 15:] == -1).all() and ids[:, 0].tolist() == [0, 1, 2]
        assert np.isinf(found[:, 15:]).all()


def test_many_queries_are_shared_by_threads_as_few_are():
    values = clustered(900, 4, 24, seed=8)
    gallery, *_ = in_cells(values[:500], None, np.arange(500) % 7, 24)
    for probe in (None, 3):
        many = gallery.search(values[500:], 9, probe=probe, threads=2)
        for first in (0, 160, 392):
            few = gallery.search(values[500 + first :][:8], 9, probe=probe, threads=1)
            for one, other in zip(many, few, strict=True):
                np.testing.assert_array_equal(one[first : first + 8], other)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("probe", [None, 2])
def test_exact_scores_of_the_best_by_their_codes(dtype, ragged, probe):
    """The same as candidates of the codes that are then scored, cells and all."""
    random = np.random.default_rng(2)
    sets, queries = clustered(400, 4, 40, seed=1).astype(dtype), clustered(5, 4, 40, seed=1)
    lengths = random.integers(1, 5, 400) if ragged else None
    axes = np.linalg.qr(random.standard_normal((40, 40)))[0][:, :12].astype(np.float32)
    sketches = sets.astype(np.float32) @ axes
    gallery, *_ = in_cells(sketches, lengths, np.arange(400) % 9, 12)
    out = np.packbits(np.arange(400) < 30, bitorder="little")
    asked, options = queries @ axes, {"gallery_lengths": lengths, "threads": 2}
    scores, ids, seen = gallery.search_exactly(
        asked, queries, sets, 70, 8, probe=probe, excluded=out, **options
    )
    listed = gallery.search(asked, 70, probe=probe, excluded=out)[1]
    best, own = divse_native.candidate_search(queries, sets, listed, 8, **options)
    np.testing.assert_array_equal(scores, best)
    np.testing.assert_array_equal(ids, own)
    np.testing.assert_array_equal(seen, (listed >= 0).sum(axis=1))
    assert ids.min() >= 30 and (np.diff(scores) <= 0).all()
    exact = divse_native.candidate_scores(queries, sets, ids, **options)
    np.testing.assert_array_equal(scores, exact)
    with pytest.raises(ValueError, match="gallery: got 399 sets, expected 400"):
        gallery.search_exactly(asked, queries, sets[:399], 70, 8)
    with pytest.raises(ValueError, match="sketches: got .* expected"):
        gallery.search_exactly(asked[:, :, :8], queries, sets, 70, 8)
    with pytest.raises(ValueError, match="topk: got 8, expected 1 to 7, the depth"):
        gallery.search_exactly(asked, queries, sets, 7, 8)
    with pytest.raises(ValueError, match="depth: got 0, expected 1 to 400, the number of gallery"):
        gallery.search_exactly(asked, queries, sets, 0, 8)


def test_best_candidates_where_there_are_few():
    values = clustered(20, 2, 8)
    listed = np.array([[3, -1, 7, 3], [-1, -1, -1, -1]])
    listed[0, 3] = 9
    scores, ids = divse_native.candidate_search(values[:2], values, listed, 4)
    assert set(ids[0, :3].tolist()) == {3, 7, 9} and ids[0, 3] == -1 and (ids[1] == -1).all()
    assert np.isneginf(scores[0, 3]) and np.isneginf(scores[1]).all()
    twice = np.concatenate([values[:1]] * 3)
    tied = divse_native.candidate_search(values[:1], twice, np.array([[2, 0, 1]]), 3)
    assert tied[1].tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="topk: got 5, expected 1 to 4, the number of candidates"):
        divse_native.candidate_search(values[:2], values, listed, 5)
