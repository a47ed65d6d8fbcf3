"""divse_native against float64, on every instruction set that this CPU has."""

import subprocess
import sys

import numpy as np
import pytest
from native_cases import (
    ALPHAS,
    SHAPES,
    SIZES,
    check_scores,
    every_isa,
    full_sort,
    make_lengths,
    make_sets,
    packed,
    with_nan_padding,
)

import divse_native


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_scores_for_any_number_of_sets(isa, size, rng):
    gallery = make_sets(rng, size, 5, 37)
    for queries in (1, 4, 18):  # in rows, in rows, in lanes with a rest
        check_scores(make_sets(rng, queries, 3, 37), gallery, isa, alpha=16.0)
    check_scores(make_sets(rng, size, 3, 37), make_sets(rng, 3, 2, 37), isa, alpha=16.0)


@every_isa
@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_for_any_dim(isa, dim, dtype, rng):
    gallery = make_sets(rng, 6, 3, dim, dtype)
    for queries in (1, 16):
        check_scores(make_sets(rng, queries, 4, dim), gallery, isa, alpha=16.0)


@every_isa
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("peaked", [False, True])
def test_alpha_walk(isa, alpha, peaked, rng):
    gallery = make_sets(rng, 19, 6, 24, peaked=peaked)
    for queries in (2, 17):
        sets = make_sets(rng, queries, 5, 24, peaked=peaked)
        for log_mean in (False, True):
            check_scores(sets, gallery, isa, alpha=alpha, log_mean=log_mean)


@every_isa
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [0.1, 16.0, 100.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ragged_sets_with_nan_in_the_padding(isa, shape, alpha, dtype, rng):
    k, length, dim = shape
    gallery = make_sets(rng, 18, length, dim, dtype)
    gallery_lengths = make_lengths(rng, 18, length)
    for count in (2, 17):
        queries, query_lengths = make_sets(rng, count, k, dim), make_lengths(rng, count, k)
        check_scores(
            queries,
            gallery,
            isa,
            given=(
                with_nan_padding(queries, query_lengths),
                with_nan_padding(gallery, gallery_lengths),
            ),
            alpha=alpha,
            log_mean=count == 2,
            query_lengths=query_lengths,
            gallery_lengths=gallery_lengths,
        )


@every_isa
def test_every_half_is_read_exactly(isa):
    """A score of one-element sets on the shifted path is their product, without rounding."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    gallery = halves[np.isfinite(halves)].reshape(-1, 1, 1)
    for count in (1, 16):
        scores = divse_native.scores(
            np.ones((count, 1, 1), np.float32), gallery, alpha=1000.0, isa=isa
        )
        assert (scores == gallery[:, 0, 0].astype(np.float32)).all()


@every_isa
def test_largest_sets(isa, rng):
    check_scores(make_sets(rng, 1, 1024, 16), make_sets(rng, 2, 1000, 16), isa, alpha=80.0)


@every_isa
@pytest.mark.parametrize("length", [0.01, 3.0, 100.0])
def test_vectors_of_any_length_are_taken_as_they_are(isa, length, rng):
    """Exponentials leave the range that alpha promises for unit vectors; scores must not."""
    queries, gallery = length * make_sets(rng, 18, 4, 32), make_sets(rng, 21, 4, 32)
    gallery[3] *= np.float32(50.0)
    for count in (1, 18):
        check_scores(queries[:count], gallery, isa, alpha=60.0)


@every_isa
def test_equal_sets_score_equal_anywhere(isa, rng):
    gallery = make_sets(rng, 40, 4, 20)
    gallery[[0, 7, 18, 39]] = gallery[5]
    gallery[20] *= np.float32(100.0)  # out of range: its neighbours must not notice
    for count in (1, 16):
        scores = divse_native.scores(make_sets(rng, count, 4, 20), gallery, alpha=60.0, isa=isa)
        assert (scores[:, [0, 7, 18, 39]] == scores[:, [5]]).all()


@every_isa
@pytest.mark.parametrize("elements", [1, 2, 3, 4, 8, 12, 16, 20])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8])
def test_even_and_listed_sets_score_the_same(isa, elements, rows, rng):
    """Sets of one size go through a transpose, packed ones are stored cosine by cosine."""
    queries, gallery = make_sets(rng, 1, rows, 35), make_sets(rng, 37, elements, 35, "float16")
    options = {"isa": isa, "alpha": 16.0}
    even = check_scores(queries, gallery, **options)
    flat, offsets = packed(gallery, np.full(37, elements))
    listed = divse_native.scores(queries, flat, gallery_offsets=offsets, **options)
    np.testing.assert_array_equal(even, listed)


@every_isa
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_strides(isa, dtype, rng):
    queries, gallery = make_sets(rng, 5, 4, 30), make_sets(rng, 20, 3, 30, dtype)
    expected = divse_native.scores(queries, gallery, alpha=16.0, isa=isa)
    padded = np.full((20, 5, 37), np.nan, dtype)
    padded[:, 1:4, 3:33] = gallery
    unaligned = np.frombuffer(b"\0" + gallery.tobytes(), dtype=np.uint8)[1:].view(dtype)
    for same in (
        padded[:, 1:4, 3:33],
        np.asfortranarray(gallery),
        gallery[::-1].copy()[::-1],
        np.repeat(gallery, 2, axis=2)[..., ::2],
        unaligned.reshape(gallery.shape),
    ):
        assert (divse_native.scores(queries, same, alpha=16.0, isa=isa) == expected).all()
        assert (divse_native.scores(queries[:, ::-1][:, ::-1], same, alpha=16.0, isa=isa)).all()
    broadcast = np.broadcast_to(gallery[:1], gallery.shape)
    assert np.ptp(divse_native.scores(queries, broadcast, alpha=16.0, isa=isa), axis=1).max() == 0


@every_isa
@pytest.mark.parametrize("size", SIZES + (700,))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_is_a_stable_full_sort(isa, size, dtype, rng):
    gallery = make_sets(rng, size, 3, 17, dtype)[rng.integers(0, size, size)]  # with duplicates
    for count in (1, 21):
        queries = make_sets(rng, count, 2, 17)
        scores = divse_native.scores(queries, gallery, alpha=16.0, isa=isa)
        for topk in {1, min(10, size), size}:
            best, ids = divse_native.search(queries, gallery, topk, alpha=16.0, isa=isa)
            assert best.dtype == np.float32 and ids.dtype == np.int64
            expected, positions = full_sort(scores, topk)
            assert (ids == positions).all() and (best == expected).all()


def test_search_puts_nan_last(rng):
    gallery = make_sets(rng, 40, 2, 8)
    gallery[[3, 30]] = np.nan
    _, ids = divse_native.search(make_sets(rng, 2, 2, 8), gallery, 40, alpha=16.0)
    assert (ids[:, -2:] == [3, 30]).all()


def test_search_never_stores_all_scores():
    """160 MB of scores would be needed; peak memory of a fresh process shows they are not made."""
    script = """
import resource, numpy as np, divse_native
one = np.ones((2000, 1, 4), np.float32)
many = np.ones((20000, 1, 4), np.float32)
divse_native.search(one[:20], many, 1, alpha=1.0, threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
divse_native.search(one, many, 1, alpha=1.0, threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 16 * 1024  # KiB


def test_no_queries_and_no_gallery(rng):
    some, none = make_sets(rng, 3, 2, 8), np.empty((0, 2, 8), np.float32)
    assert divse_native.scores(none, some, alpha=16.0).shape == (0, 3)
    assert divse_native.scores(some, none, alpha=16.0).shape == (3, 0)
    best, ids = divse_native.search(none, some, 2, alpha=16.0)
    assert best.shape == ids.shape == (0, 2)
    grads = divse_native.backward(some, none, np.empty((3, 0), np.float32), alpha=16.0)
    assert not grads[0].any() and grads[1].shape == (0, 2, 8) and grads[2] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.zeros((3, 2, 8))}, "queries: got dtype float64, expected float32"),
        ({"queries": np.zeros((3, 2, 8), np.float16)}, "queries: got dtype float16"),
        (
            {"gallery": np.zeros((5, 2, 8), np.int8)},
            "expected float32, float16, or uint16 with gallery_type",
        ),
        ({"gallery": np.zeros((5, 8), np.float32)}, r"gallery: got shape \(5, 8\)"),
        ({"gallery": np.zeros((5, 0, 8), np.float32)}, "at least 1 element"),
        ({"gallery": np.zeros((5, 2, 9), np.float32)}, "8 dims and the gallery has 9"),
        ({"gallery": [[[1.0] * 8]]}, "gallery: got list, expected a numpy array"),
        ({"alpha": 0.0}, "alpha: got 0.0, expected above 0 and at most 1000"),
        ({"alpha": 1001.0}, "alpha: got 1001.0"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"threads": -1}, "threads: got -1"),
        ({"isa": "avx9000"}, "isa: got avx9000, expected one of auto, .*baseline"),
        ({"query_lengths": np.array([1, 2, 0])}, "got 0 for set 2, expected 1 to 2"),
        ({"gallery_lengths": np.array([1, 2, 3, 1, 1])}, "gallery lengths: got 3 for set 2"),
        ({"query_lengths": np.array([1, 2])}, "one for each of 3 sets"),
        ({"query_lengths": np.array([1, 2, 1], np.int32)}, "got dtype int32"),
    ],
)
def test_wrong_input_is_refused(change, message, rng):
    arguments = {"queries": make_sets(rng, 3, 2, 8), "gallery": make_sets(rng, 5, 2, 8)}
    arguments |= {"alpha": 16.0} | change
    with pytest.raises(ValueError, match=message):
        divse_native.scores(**arguments)


@pytest.mark.parametrize("topk", [0, 6])
def test_impossible_topk_is_refused(topk, rng):
    with pytest.raises(ValueError, match=f"topk: got {topk}, expected 1 to 5"):
        divse_native.search(make_sets(rng, 3, 2, 8), make_sets(rng, 5, 2, 8), topk, alpha=16.0)


@pytest.mark.parametrize("grads", [np.zeros((5, 3), np.float32), np.zeros((3, 5))], ids=str)
def test_wrong_gradients_are_refused(grads, rng):
    with pytest.raises(ValueError, match=r"expected float32 \(3, 5\)"):
        divse_native.backward(make_sets(rng, 3, 2, 8), make_sets(rng, 5, 2, 8), grads, alpha=16.0)
