"""Chamfer, MaxSim and MIL, bfloat16 and packed galleries, excluded sets: against float64."""

import numpy as np
import pytest
from native_cases import (
    SHAPES,
    SIZES,
    as_bfloat16,
    check_scores,
    every_isa,
    every_similarity,
    full_sort,
    make_lengths,
    make_sets,
    of_maxima,
    packed,
    with_nan_padding,
)

import divse_native


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@every_isa
@of_maxima
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_sets_with_nan_in_the_padding(isa, similarity, shape, rng):
    k, length, dim = shape
    gallery, gallery_lengths = make_sets(rng, 18, length, dim), make_lengths(rng, 18, length)
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
            query_lengths=query_lengths,
            gallery_lengths=gallery_lengths,
            **similarity,
        )


@every_isa
@of_maxima
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_sets(isa, similarity, size, rng):
    gallery = make_sets(rng, size, 3, 9)
    for queries in (1, 4, 18):
        check_scores(make_sets(rng, queries, 5, 9), gallery, isa, **similarity)


@every_isa
@every_similarity
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_sets(isa, similarity, shape, rng):
    k, length, dim = shape
    gallery, gallery_lengths = make_sets(rng, 19, length, dim), make_lengths(rng, 19, length)
    values, offsets = packed(gallery, gallery_lengths)
    for count in (1, 18):
        queries, query_lengths = make_sets(rng, count, k, dim), make_lengths(rng, count, k)
        query_values, query_offsets = packed(queries, query_lengths)
        check_scores(
            queries,
            gallery,
            isa,
            given=(query_values, values),
            layout={"query_offsets": query_offsets, "gallery_offsets": offsets},
            query_lengths=query_lengths,
            gallery_lengths=gallery_lengths,
            **similarity,
        )


@every_isa
@pytest.mark.parametrize("dim", SIZES)
def test_bfloat16_of_any_dim(isa, dim, rng):
    bits, gallery = as_bfloat16(make_sets(rng, 18, 3, dim))
    for count in (1, 3, 16):
        queries = make_sets(rng, count, 4, dim)
        check_scores(
            queries,
            gallery,
            isa,
            given=(queries, bits),
            layout={"gallery_type": "bfloat16"},
            alpha=16.0,
        )


@every_isa
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_packed_sets_in_any_strides(isa, dtype, rng):
    sets, lengths = make_sets(rng, 20, 3, 31), make_lengths(rng, 20, 3)
    values, offsets = packed(sets, lengths)
    values = as_bfloat16(values)[0] if dtype == "bfloat16" else values.astype(dtype)
    options = {"gallery_offsets": offsets, "gallery_type": dtype, "isa": isa}
    wide = np.zeros((len(values), 40), values.dtype)
    wide[:, 5:36] = values
    unaligned = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(values.dtype)
    for count in (1, 9, 17):
        queries = make_sets(rng, count, 4, 31)
        expected = divse_native.scores(queries, values, **options)
        for same in (wide[:, 5:36], values[::-1].copy()[::-1], unaligned.reshape(values.shape)):
            assert (divse_native.scores(queries, same, **options) == expected).all()


@every_isa
def test_every_bfloat16_is_read_exactly(isa):
    """The only cosine of one-element sets is their product with one, without rounding."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    normal = np.isfinite(values) & ((np.abs(values) >= np.finfo(np.float32).tiny) | (values == 0))
    for count in (1, 16):
        scores = divse_native.scores(
            np.ones((count, 1, 1), np.float32),
            bits[normal].reshape(-1, 1, 1),
            similarity="mil",
            gallery_type="bfloat16",
            isa=isa,
        )
        assert (scores == values[normal]).all()


@every_isa
@every_similarity
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_leaves_excluded_sets_out(isa, similarity, dtype, rng):
    size, topk = 500, 40
    gallery = make_sets(rng, size, 3, 17, dtype)[rng.integers(0, size, size)]  # with duplicates
    excluded = rng.random(size) < 0.5
    excluded[:256] = np.arange(256) >= 128  # none and all of a block
    excluded[[5, 497]] = True
    bits = np.packbits(excluded, bitorder="little")
    for count in (1, 3, 21):
        queries = make_sets(rng, count, 2, 17)
        scores = divse_native.scores(queries, gallery, isa=isa, **similarity)
        scores[:, excluded] = -np.inf
        best, ids = divse_native.search(
            queries, gallery, topk, excluded=bits, isa=isa, threads=3, **similarity
        )
        expected, positions = full_sort(scores, topk)
        assert (ids == positions).all() and (best == expected).all()


def test_search_with_fewer_sets_than_asked(rng):
    gallery, excluded = make_sets(rng, 9, 2, 8), np.array([0xFF, 0b0], np.uint8)
    best, ids = divse_native.search(make_sets(rng, 2, 2, 8), gallery, 3, excluded=excluded)
    assert (ids == [8, -1, -1]).all()
    assert np.isfinite(best[:, 0]).all() and (best[:, 1:] == -np.inf).all()


@every_isa
@every_similarity
def test_nan_in_a_set_makes_its_scores_nan(isa, similarity, rng):
    gallery, queries = make_sets(rng, 20, 3, 8), make_sets(rng, 19, 4, 8)
    gallery[4, 0, 2] = gallery[7, 2, 5] = queries[3, 1, 1] = np.nan
    lengths = np.full(20, 3)
    lengths[7] = 2
    for count in (5, 19):
        scores = divse_native.scores(
            queries[:count], gallery, gallery_lengths=lengths, isa=isa, **similarity
        )
        expected = np.zeros((count, 20), bool)
        expected[:, 4] = expected[3] = True
        assert (np.isnan(scores) == expected).all()


def test_memory_map_is_read_in_place(tmp_path, rng):
    """Through offsets and strides of a read-only map: nothing of its size is allocated."""
    gallery = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float16, (6000, 4, 64))
    gallery[:] = make_sets(rng, 6000, 4, 64, "float16")
    gallery.flush()
    queries = make_sets(rng, 2, 4, 64)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    best, ids = divse_native.search(queries, mapped, 5)
    offsets = np.arange(0, 24001, 4)
    same = divse_native.search(queries, mapped.reshape(-1, 64), 5, gallery_offsets=offsets)
    assert (ids == same[1]).all() and (best == same[0]).all()
    assert (divse_native.search(queries, np.array(gallery), 5)[1] == ids).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "mp"}, "similarity: got mp, expected smooth_chamfer, chamfer, maxsim or"),
        ({"reduction": "max"}, "reduction: got max, expected sum or mean"),
        ({"gallery": np.zeros((5, 2, 8), np.uint16)}, "got dtype uint16, expected float32"),
        ({"gallery_type": "bfloat16"}, "got dtype float32 as bfloat16"),
        ({"gallery_offsets": np.array([0, 2])}, r"got shape \(5, 2, 8\), expected \(all elements"),
    ],
)
def test_wrong_input_is_refused(change, message, rng):
    arguments = {"queries": make_sets(rng, 3, 2, 8), "gallery": make_sets(rng, 5, 2, 8)} | change
    with pytest.raises(ValueError, match=message):
        divse_native.scores(**arguments)


@pytest.mark.parametrize(
    "offsets", [[0, 2, 2], [0, 2, 11], [-1, 2], [0, 3, 2], np.zeros(3), []], ids=str
)
def test_wrong_offsets_are_refused(offsets, rng):
    offsets = np.asarray(offsets) if len(offsets) else np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="gallery offsets: "):
        divse_native.scores(
            make_sets(rng, 3, 2, 8), make_sets(rng, 10, 1, 8)[:, 0], gallery_offsets=offsets
        )


def test_wrong_bitmap_and_unknown_options_are_refused(rng):
    queries, gallery = make_sets(rng, 3, 2, 8), make_sets(rng, 9, 2, 8)
    for wrong in (np.zeros(1, np.uint8), np.zeros(2, bool), np.zeros((2, 1), np.uint8)):
        with pytest.raises(ValueError, match=r"excluded: got .* expected uint8 \(2,\)"):
            divse_native.search(queries, gallery, 2, excluded=wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        divse_native.scores(queries, gallery, depth=3)
    with pytest.raises(TypeError, match="threads: got str"):
        divse_native.scores(queries, gallery, threads="all")
