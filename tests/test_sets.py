import numpy as np
import pytest
import torch

import divse
from divse.sets import as_tensor


def test_of_normalises_and_keeps_kind_and_dtype():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3, 8)).astype(np.float16)
    sets = divse.EmbeddingSets.of(values)
    assert isinstance(sets.values, np.ndarray) and sets.values.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(sets.values.astype("f4"), axis=-1), 1, atol=2e-3)
    tensor = divse.EmbeddingSets.of(torch.from_numpy(values))
    assert isinstance(tensor.values, torch.Tensor) and tensor.values.dtype == torch.float16
    assert (len(sets), sets.k, sets.dim) == (5, 3, 8)


@pytest.mark.parametrize(("value", "word"), [(0.0, "zero"), (np.nan, "not finite")])
def test_of_names_the_bad_element(value, word):
    values = np.ones((4, 2, 8), np.float32)
    values[2, 1] = value
    with pytest.raises(ValueError, match=f"element 1 of set 2 is {word}"):
        divse.EmbeddingSets.of(values)
    # The same element past the set's length does not matter.
    divse.EmbeddingSets.of(values, np.array([2, 2, 1, 2]))


@pytest.mark.parametrize(
    ("values", "lengths", "error", "message"),
    [
        (np.ones((3, 4)), None, ValueError, r"got shape \(3, 4\)"),
        (np.ones((3, 2, 4), np.int64), None, TypeError, "int64"),
        (np.ones((3, 0, 4)), None, ValueError, "empty sets"),
        (np.ones((3, 2, 4)), np.array([1, 2]), ValueError, r"expected \(3,\)"),
        (np.ones((3, 2, 4)), np.array([1, 0, 2]), ValueError, "set 1 has length 0"),
        (np.ones((3, 2, 4)), np.array([1, 2, 3]), ValueError, "set 2 has length 3"),
        (np.ones((3, 2, 4)), np.array([1.0, 2, 2]), TypeError, "integers"),
        ([[1.0]], None, TypeError, "list"),
        (np.array([["a"]]), None, TypeError, "floating-point"),
    ],
)
def test_bad_sets_are_refused(values, lengths, error, message):
    with pytest.raises(error, match=message):
        divse.EmbeddingSets.of(values, lengths)


def test_indexing_and_cat():
    rng = np.random.default_rng(1)
    a = divse.EmbeddingSets.of(rng.normal(size=(3, 2, 8)).astype("f4"))
    b = divse.EmbeddingSets.of(rng.normal(size=(2, 4, 8)).astype("f4"), np.array([3, 4]))
    both = divse.EmbeddingSets.cat([a, b])
    assert both.values.shape == (5, 4, 8)
    assert both.lengths.tolist() == [2, 2, 2, 3, 4]
    np.testing.assert_array_equal(both[1].values[0, :2], a.values[1])
    np.testing.assert_array_equal(both[-1].values[0], b.values[1])
    assert both[np.array([4, 0])].lengths.tolist() == [4, 2]
    with pytest.raises(ValueError, match="nothing"):
        divse.EmbeddingSets.cat([])


def test_sets_are_iterable_and_indices_past_the_end_are_refused():
    sets = divse.EmbeddingSets.of(np.ones((3, 2, 4), np.float32))
    assert [len(one) for one in sets] == [1, 1, 1]
    with pytest.raises(IndexError):
        sets[3]


def test_read_only_memory_maps_are_viewed_without_a_copy(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tensor = as_tensor(mapped)
    assert tensor.data_ptr() == mapped.__array_interface__["data"][0]
    reversed_rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[::-1]
    np.testing.assert_array_equal(as_tensor(reversed_rows).numpy(), reversed_rows)
    swapped = np.arange(4, dtype=">f4").reshape(1, 1, 4)
    assert as_tensor(swapped).tolist() == [[[0, 1, 2, 3]]]


def test_to_numpy_and_back():
    sets = divse.EmbeddingSets.of(torch.randn(2, 3, 8), torch.tensor([1, 3]))
    there = sets.numpy()
    assert isinstance(there.values, np.ndarray) and there.lengths.tolist() == [1, 3]
    assert torch.equal(there.torch().values, sets.values)
    wide = divse.EmbeddingSets.of(torch.randn(2, 3, 8).bfloat16()).numpy()
    assert wide.values.dtype == np.float32
