"""Sets for tests of galleries."""

import numpy as np

from divse.sets import EmbeddingSets


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def sets(n: int = 20, k: int = 4, d: int = 8, seed: int = 0) -> EmbeddingSets:
    return EmbeddingSets(vectors(n, k, d, seed=seed))


def ragged(n: int = 20, k: int = 5, d: int = 8, seed: int = 0) -> EmbeddingSets:
    lengths = np.random.default_rng(seed + 1).integers(1, k + 1, n)
    values = vectors(n, k, d, seed=seed)
    values[np.arange(k) >= lengths[:, None]] = np.nan  # padding may hold anything
    return EmbeddingSets(values, lengths)


def assert_same(stored: EmbeddingSets, given: EmbeddingSets, dtype: str) -> None:
    lengths = np.full(len(given), given.k) if given.lengths is None else given.lengths
    for row, length in enumerate(np.asarray(lengths)):
        expected = np.asarray(given.values[row, :length]).astype(dtype)
        np.testing.assert_array_equal(stored.values[row, :length], expected)
        if stored.lengths is not None:
            assert stored.lengths[row] == length
