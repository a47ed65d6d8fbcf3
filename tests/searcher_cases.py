"""Galleries, queries and the full sort that the tests of searching share."""

import numpy as np
import pytest

import divse
from divse.search.gallery import Gallery
from divse.sets import EmbeddingSets

PARTS = (slice(0, 400), slice(400, 600))  # the segments of small_gallery


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def clustered(n: int, k: int = 4, d: int = 32, seed: int = 0) -> np.ndarray:
    """Sets around topics, each element on its own way from the topic."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((max(4, n // 40), 1, d))[
        random.integers(max(4, n // 40), size=n)
    ]
    own = 0.8 * random.standard_normal((n, 1, d)) + 0.8 * random.standard_normal((n, k, d))
    return unit(topics + own).astype(np.float32)


@pytest.fixture(scope="session")
def small_gallery(tmp_path_factory):
    """A gallery of 600 sets in two segments, 20 queries near its sets, and the stored values."""
    values = clustered(620)
    folder = tmp_path_factory.mktemp("searcher")
    names = [f"id {row}" for row in range(600)]
    years = [None if row % 50 == 7 else 1990 + row % 40 for row in range(600)]
    columns = {"year": years, "label": [("cat", "dog", "owl")[row % 3] for row in range(600)]}
    part = [{name: column[rows] for name, column in columns.items()} for rows in PARTS]
    gallery = Gallery.create(folder / "g", values[:400], names[:400], part[0])
    gallery = gallery.add(values[400:600], names[400:], part[1])
    return gallery, EmbeddingSets.of(values[600:]), gallery.sets().values.astype(np.float32)


def full_sort(queries, values, topk, **options):
    scores = divse.score(queries.values, values, unit_norm=False, impl="reference", **options)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
    return np.take_along_axis(scores, order, 1), order


def assert_same_order(found, scores, ids, names):
    """Equal ids, but that scores within fp32 rounding of each other may change places."""
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    for row in range(len(scores)):
        for place in np.flatnonzero(found.ids[row] != names[ids[row]]):
            assert np.sort(np.abs(scores[row] - scores[row, place]))[1] < 2e-6


def recall(found, truth) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)])
    )
