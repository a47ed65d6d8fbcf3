"""Certified int8 search: codes, bounds and results against the specification and the exact scan."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    ALPHAS,
    SIZES,
    every_isa,
    every_similarity,
    make_lengths,
    make_sets,
    plain_scores,
    with_nan_padding,
)

import divse_native
from divse.similarity import certified
from divse.similarity.quantise import UNIT_BOUND, quantise


def clustered(rng, n, k, d, dtype):
    """A few directions with little noise: most sets are close to the best."""
    centres = make_sets(rng, 3, k, d)[rng.integers(0, 3, n)]
    sets = centres + 0.05 * rng.standard_normal((n, k, d)) / d**0.5
    return (sets / np.linalg.norm(sets, axis=-1, keepdims=True)).astype("float32").astype(dtype)


def duplicated(rng, n, k, d, dtype):
    return make_sets(rng, 4, k, d, dtype)[rng.integers(0, 4, n)]


KINDS = {
    "random": make_sets,
    "clustered": clustered,
    "duplicated": duplicated,
    "peaked": lambda rng, n, k, d, dtype: make_sets(rng, n, k, d, dtype, peaked=True),
    "identical": lambda rng, n, k, d, dtype: np.repeat(make_sets(rng, 1, k, d, dtype), n, axis=0),
}


def assert_equal_to_exact(queries, gallery, topk, excluded=None, **options):
    """Certified search gives exactly what search gives; returns the survivors."""
    coded = {key: value for key, value in options.items() if key in ("gallery_lengths", "isa")}
    codes = divse_native.quantise(gallery, **coded)
    exact = divse_native.search(queries, gallery, topk, excluded=excluded, **options)
    found = divse_native.certified_search(
        queries, gallery, *codes, topk, excluded=excluded, **options
    )
    assert np.array_equal(found[1], exact[1])
    assert np.array_equal(found[0], exact[0], equal_nan=True)
    assert found[2].dtype == bool and found[2].shape == (len(queries),) and found[2].all()
    return found[3]


def assert_bounds(queries, gallery, isa, **options):
    """Bounds are above float64, those of both parts nearer; returns those of the first part."""
    exact = plain_scores(
        torch.from_numpy(queries).double(), torch.from_numpy(gallery).double(), **options
    ).numpy()
    codes = divse_native.quantise(gallery, gallery_lengths=options.get("gallery_lengths"))
    first, both = (
        divse_native.int8_bounds(queries, gallery, *codes, parts, isa=isa, **options)
        for parts in (1, 2)
    )
    assert (first >= exact).all() and (both >= exact).all()
    assert (both - exact).mean() < (first - exact).mean()
    return first


@every_isa
@pytest.mark.parametrize("d", SIZES)
def test_codes_are_the_specification(isa, d):
    rng = np.random.default_rng(d)
    for dtype in ("float32", "float16"):
        gallery = make_sets(rng, 7, 3, d, dtype)
        lengths = make_lengths(rng, 7, 3)
        given_values = with_nan_padding(gallery, lengths)
        codes, scales, residuals = divse_native.quantise(
            given_values, gallery_lengths=lengths, isa=isa, threads=2
        )
        expected = quantise(torch.from_numpy(gallery), torch.from_numpy(lengths))
        assert np.array_equal(codes, expected.codes.numpy())
        assert np.array_equal(scales, expected.scales.numpy())
        np.testing.assert_array_max_ulp(residuals, expected.residuals.numpy(), maxulp=1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        real = np.arange(3) < lengths[:, None]
        packed = divse_native.quantise(gallery[real], gallery_offsets=offsets, isa=isa)
        assert np.array_equal(packed[0], codes[real]) and np.array_equal(packed[1], scales[real])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_what_is_no_unit_vector_is_refused(bad):
    gallery = make_sets(np.random.default_rng(0), 600, 2, 9)
    gallery[300, 1, 4] = bad
    with pytest.raises(ValueError, match="set 300 is not finite or longer"):
        divse_native.quantise(gallery, threads=2)


@every_isa
@every_similarity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 4, 64), (3, 5, 33), (1, 1, 17), (6, 50, 8)])
def test_bounds_are_above_float64(isa, similarity, kind, shape):
    k, size, d = shape
    rng = np.random.default_rng(1)
    gallery = KINDS[kind](rng, 21, size, d, "float16")
    queries = make_sets(rng, 3, k, d)
    queries[0] = gallery[0, np.arange(k) % size]
    lengths = {"query_lengths": make_lengths(rng, 3, k)}
    lengths["gallery_lengths"] = make_lengths(rng, 21, size)
    assert_bounds(queries, gallery, isa, **lengths, **similarity)


FULL = [(4, 4, 64), (8, 4, 33), (4, 8, 100), (8, 16, 17), (4, 1, 70), (16, 4, 600)]
ANY_SIMILARITY = [{"similarity": name} for name in certified.SIMILARITIES]
ANY_SIMILARITY += [{"alpha": alpha} for alpha in (0.5, 60.0, 81.0, 200.0)]
ANY_SIMILARITY += [{"similarity": "maxsim", "reduction": "mean"}, {"log_mean": True}]


@every_isa
@pytest.mark.parametrize("similarity", ANY_SIMILARITY, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", FULL)
def test_bounds_of_full_sets_are_above_float64(isa, similarity, kind, shape):
    """Full lanes of sets of one size go a way of their own; the last lanes are not full."""
    k, size, d = shape
    rng = np.random.default_rng(3)
    gallery = KINDS[kind](rng, 53, size, d, "float16")
    queries = make_sets(rng, 3, k, d)
    queries[0] = gallery[0, np.arange(k) % size]
    first = assert_bounds(queries, gallery, isa, **similarity)
    # The same sets in lanes that are told their lengths go the other way.
    told = {"gallery_lengths": np.full(53, size)}
    again = assert_bounds(queries, gallery, isa, **told, **similarity)
    np.testing.assert_allclose(first, again, rtol=0, atol=2e-6 * max(1, k))
    for some in (queries, queries[:1]):
        assert_equal_to_exact(some, gallery, 5, isa=isa, **similarity)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("log_mean", [False, True])
def test_bounds_hold_for_every_alpha(alpha, log_mean):
    rng = np.random.default_rng(2)
    queries, gallery = make_sets(rng, 2, 4, 32), make_sets(rng, 40, 6, 32, peaked=True)
    options = {"alpha": alpha, "log_mean": log_mean}
    exact = plain_scores(
        torch.from_numpy(queries).double(), torch.from_numpy(gallery).double(), **options
    ).numpy()
    codes = divse_native.quantise(gallery)
    for parts in (1, 2):
        bounds = divse_native.int8_bounds(queries, gallery, *codes, parts, **options)
        assert (bounds >= exact).all() and (bounds < exact + 0.5).all()
    assert_equal_to_exact(queries, gallery, 5, **options)


@every_isa
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(*(st.sampled_from((*SIZES[:6], 4, 8)),) * 2),
    d=st.sampled_from((1, 8, 31, 64, 97)),
    count=st.integers(1, 80),
    batch=st.sampled_from((1, 2, 11, 17)),
    ragged=st.booleans(),
    parameters=st.sampled_from(
        [{"similarity": name} for name in certified.SIMILARITIES]
        + [{"alpha": 200.0}, {"similarity": "maxsim", "reduction": "mean"}]
    ),
)
def test_certified_is_exact(isa, seed, kind, sizes, d, count, batch, ragged, parameters):
    rng = np.random.default_rng(seed)
    gallery = KINDS[kind](rng, count, sizes[1], d, "float16")
    queries = make_sets(rng, batch, sizes[0], d)
    options = {"isa": isa, "threads": 2} | parameters
    if ragged:
        options["query_lengths"] = make_lengths(rng, batch, sizes[0])
        options["gallery_lengths"] = make_lengths(rng, count, sizes[1])
    excluded = rng.integers(0, 256, (count + 7) // 8).astype(np.uint8) if seed % 3 == 0 else None
    topk = min(count, 1 + seed % 12)
    survivors = assert_equal_to_exact(queries, gallery, topk, excluded, **options)
    assert (survivors <= count).all()


@every_isa
def test_few_sets_of_a_random_gallery_survive(isa):
    rng = np.random.default_rng(3)
    gallery, queries = make_sets(rng, 4000, 4, 256, "float16"), make_sets(rng, 2, 4, 256)
    assert (assert_equal_to_exact(queries, gallery, 10, isa=isa) < 800).all()


def test_where_everything_survives_the_result_stays_exact():
    rng = np.random.default_rng(4)
    gallery = np.repeat(make_sets(rng, 1, 3, 40), 700, axis=0)
    gallery += 1e-7 * rng.standard_normal(gallery.shape).astype("float32")
    assert (assert_equal_to_exact(gallery[:2].copy(), gallery, 20, threads=2) == 700).all()


@every_isa
@pytest.mark.parametrize(("k", "size"), [(3, 2), (4, 4), (8, 4)])
def test_queries_of_any_norm_even_nan(isa, k, size):
    rng = np.random.default_rng(5)
    gallery, queries = make_sets(rng, 90, size, 16), make_sets(rng, 4, k, 16)
    queries *= np.float32([1e-3, 50, 1, 1])[:, None, None]
    queries[2, 1, 3] = np.nan
    for name in certified.SIMILARITIES:
        assert_equal_to_exact(queries, gallery, 7, similarity=name, isa=isa)


def test_packed_bfloat16_and_misaligned_codes():
    rng = np.random.default_rng(6)
    lengths = make_lengths(rng, 120, 9)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    wide = make_sets(rng, 1, int(offsets[-1]), 48)[0]
    gallery = (wide.view(np.uint32) >> 16).astype(np.uint16)
    queries = make_sets(rng, 3, 4, 48)
    layout = {"gallery_offsets": offsets, "gallery_type": "bfloat16"}
    codes, scales, residuals = divse_native.quantise(gallery, **layout)
    shifted = np.zeros(codes.size + 1, np.int8)[1:].reshape(codes.shape)
    shifted[:] = codes
    found = divse_native.certified_search(queries, gallery, shifted, scales, residuals, 8, **layout)
    exact = divse_native.search(queries, gallery, 8, **layout)
    assert np.array_equal(found[0], exact[0]) and np.array_equal(found[1], exact[1])


def test_wrong_codes_are_refused():
    rng = np.random.default_rng(7)
    gallery, queries = make_sets(rng, 9, 2, 8), make_sets(rng, 1, 2, 8)
    codes, scales, residuals = divse_native.quantise(gallery)
    for wrong in (codes[:8], codes.astype(np.int16), codes[:, :, ::-1]):
        with pytest.raises(ValueError, match="codes: got"):
            divse_native.certified_search(queries, gallery, wrong, scales, residuals, 3)
    with pytest.raises(ValueError, match="residuals: got"):
        divse_native.certified_search(queries, gallery, codes, scales, residuals.T, 3)
    with pytest.raises(ValueError, match="topk: got 10"):
        divse_native.certified_search(queries, gallery, codes, scales, residuals, 10)


def test_python_layer_takes_tensors_arrays_and_memory_maps(tmp_path):
    rng = np.random.default_rng(8)
    values, queries = make_sets(rng, 50, 3, 24, "float16"), make_sets(rng, 2, 3, 24)
    np.save(tmp_path / "gallery.npy", values)
    gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    codes = certified.encode(gallery)
    exact = divse_native.search(queries, values, 5)
    found = certified.search(queries, gallery, codes, 5)
    assert isinstance(found.scores, np.ndarray) and np.array_equal(found.ids, exact[1])
    assert np.array_equal(found.scores, exact[0]) and found.certified.all()
    torches = certified.search(torch.from_numpy(queries), torch.from_numpy(values), codes, 5, "mil")
    assert torches.certified.dtype == torch.bool and torches.survivors.shape == (2,)
    with pytest.raises(ValueError, match="certified search: got mp"):
        certified.search(queries, gallery, codes, 5, "mp")
    with pytest.raises(TypeError, match="takes no parameters"):
        certified.search(queries, gallery, codes, 5, "mil", reduction="sum")
    assert UNIT_BOUND == 1 + 2**-7
