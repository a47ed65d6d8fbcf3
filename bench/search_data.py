"""Sets and queries that bench_search.py searches, and the true best of every query.

Clustered sets: a topic has 3 K centres, a set belongs to one topic and draws each of its K elements
around one of the topic's centres; noise is as long as the centre, so that two elements of a centre
have a cosine near 0.5. There is a topic for every 50 sets. Centres and noise vary most in few
directions (not the axes), the i-th with a variance of 1/i, about as trained sets do. Of the
queries every second one is a member of the gallery, perturbed (noise half as long as the element),
the others are unrelated: their elements are drawn around centres of different topics.

Embeddings of a trained model: RUN/gallery, its captions encoded by the model as queries; others of
them are a sample for who tunes by one (sample.npy). A size
beyond the gallery's is reached by copies of random sets with noise half as long as an element and
of the covariance of the elements, and the name of the data says "+noise".

Everything is drawn from seeds, block by block, into .npy files that are kept in a work folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent / "peers"))
from plain import SIMILARITIES, all_scores, best  # noqa: E402

Array = np.ndarray[Any, Any]
TOPK, DEEPER = 10, 64  # so many of the best by fp32 are scored in float64
SETS_A_TOPIC, CENTRES = 50, 3  # centres of a topic, times K
BLOCK = 20_000
SAMPLED = 256  # captions of a sample
TIE = 1e-6  # scores this near to the tenth best are as good: fp32 cannot tell them apart


def unit(x: Array) -> Array:
    """Unit vectors along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def drawn(rng: np.random.Generator, size: tuple[int, ...], spread: Array) -> Array:
    """Random unit vectors (*size, D): `spread` (D,) or (D, D) shapes normal ones."""
    normal = rng.standard_normal((*size, spread.shape[-1]), dtype=np.float32)
    return unit(normal * spread if spread.ndim == 1 else normal @ spread)


def noisy(rng: np.random.Generator, x: Array, length: float, spread: Array) -> Array:
    """Vectors moved by noise of a length relative to theirs, as unit vectors."""
    return unit(x + np.float32(length) * drawn(rng, x.shape[:-1], spread))


@dataclass(frozen=True)
class Data:
    """A gallery (N, K, D) and queries (B, K, D) in files, float32."""

    name: str
    folder: Path

    @property
    def gallery(self) -> Path:
        """File of the sets."""
        return self.folder / "gallery.npy"

    @property
    def queries(self) -> Path:
        """File of the queries."""
        return self.folder / "queries.npy"

    @cached_property
    def sets(self) -> Array:
        """The gallery, mapped."""
        return np.load(self.gallery, mmap_mode="r")

    @cached_property
    def asked(self) -> Array:
        """The queries."""
        return np.load(self.queries)

    def scores(self, similarity: str, ids: Array, kind: type = np.float64, stored: Any = None):
        """Scores (b, topk) of the first b queries with these sets; NaN where there is none.

        `stored` rounds the sets first to the precision that a peer keeps; `kind` computes.
        """
        found = np.full(ids.shape, np.nan, dtype=kind)
        for row, places in enumerate(ids):
            real = (places >= 0) & (places < len(self.sets))
            sets = self.sets[places[real]].astype(stored or np.float32).astype(kind)
            query = self.asked[row, None].astype(kind)
            if len(sets):
                found[row, real] = SIMILARITIES[similarity](query, sets)[0]
        return found

    def tenth(self, similarity: str) -> Array:
        """Score (B,) of each query's tenth best set, in float64; computed once and kept."""
        path = self.folder / f"tenth-{similarity}.npy"
        if not path.exists():
            scores = all_scores(similarity, self.asked, self.sets)
            places = best(scores, min(DEEPER, len(self.sets)))[1]
            exact = -np.sort(-self.scores(similarity, places), axis=1)
            np.save(path, exact[:, TOPK - 1])
        return np.load(path)

    def recall(self, similarity: str, ids: Array) -> float:
        """Mean share of the best ten among the found, each found set counted once."""
        exact = self.scores(similarity, ids)
        good = exact >= self.tenth(similarity)[: len(ids), None] - TIE
        counts = [len(set(row[ok])) for row, ok in zip(ids, good, strict=True)]
        return float(np.mean(np.minimum(counts, TOPK))) / TOPK


def write(folder: Path, name: str, size: tuple[int, ...], blocks: Iterator[Array], asked: Array):
    """Write a data set, unless a whole one is there already."""
    data = Data(name, folder)
    array = np.lib.format.open_memmap(data.gallery, "w+", np.float32, size)
    first = 0
    for block in blocks:
        array[first : first + len(block)] = block
        first += len(block)
    array.flush()
    del array
    np.save(data.queries, asked.astype(np.float32))
    (folder / "whole").write_text(json.dumps({"name": name, "size": size}))
    return data


def clustered(work: Path, sets: int, k: int, dim: int, queries: int, seed: int = 0) -> Data:
    """Clustered sets, see above."""
    folder = work / f"clustered-{sets}-{k}-{dim}-rotated-{queries}-{seed}"
    if (folder / "whole").exists():
        return Data("clustered", folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 0))
    topics = max(4, sets // SETS_A_TOPIC)
    rotation = np.linalg.qr(np.random.default_rng((seed, 2)).standard_normal((dim, dim)))[0]
    spread = (np.arange(1, dim + 1)[:, None] ** -0.5 * rotation).astype(np.float32)
    centres = drawn(rng, (topics, CENTRES * k), spread)

    def block(number: int) -> Array:
        own = np.random.default_rng((seed, 1, number))
        count = min(BLOCK, sets - number * BLOCK)
        topic = own.integers(0, topics, (count, 1))
        return noisy(own, centres[topic, own.integers(0, CENTRES * k, (count, k))], 1.0, spread)

    members = np.sort(rng.choice(sets, queries - queries // 2, replace=sets < queries))
    blocks = range(-(-sets // BLOCK))
    asked = np.empty((queries, k, dim), dtype=np.float32)
    asked[::2] = noisy(rng, _take(block, members), 0.5, spread)
    crossed = (queries // 2, k)
    topic = rng.integers(0, topics, crossed)
    asked[1::2] = noisy(rng, centres[topic, rng.integers(0, CENTRES * k, crossed)], 1.0, spread)
    return write(folder, "clustered", (sets, k, dim), map(block, blocks), asked)


def _take(block: Any, places: Array) -> Array:
    """Sets at ascending places of a gallery that is drawn in blocks."""
    parts = []
    for number in np.unique(places // BLOCK):
        inside = places[places // BLOCK == number] - number * BLOCK
        parts.append(block(int(number))[inside])
    return np.concatenate(parts)


def of_run(work: Path, run: Path, sets: int, queries: int) -> Data:
    """Embeddings of a trained model, see above; `sets` of them."""
    from divse.encoder import DivSE
    from divse.search import Gallery

    gallery = Gallery.open(run / "gallery")
    name = run.name + ("+noise" if sets > len(gallery) else "")
    folder = work / f"run-{name}-unit-{sets}-{queries}-{gallery.manifest.checksum[:8]}"
    if (folder / "whole").exists():
        return Data(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A gallery keeps fp16, whose rounding leaves lengths a little off 1.
    stored = gallery.sets(np.arange(min(sets, len(gallery)))).values
    known = unit(np.asarray(stored, dtype=np.float32))
    rng = np.random.default_rng(0)
    elements = known.reshape(-1, known.shape[-1])
    covariance = np.cov(elements.T) + 1e-6 * np.eye(elements.shape[1])
    spread = np.linalg.cholesky(covariance).T.astype(np.float32)
    captions = [str(texts).split(" | ") for texts in gallery.rows["caption"].to_pylist()]
    words = [rng.choice(captions[i]) for i in rng.permutation(len(captions))]
    model = DivSE.from_pretrained(run)

    def of_texts(texts: list[str]) -> Array:
        return unit(np.asarray(model.encode_texts(texts).numpy().values, dtype=np.float32))

    asked = of_texts((words * queries)[:queries])
    others = sorted({text for texts in captions for text in texts} - set(words[:queries]))
    if others:
        chosen = np.random.default_rng(3).permutation(others)[:SAMPLED]
        np.save(folder / "sample.npy", of_texts(list(map(str, chosen))))

    def blocks() -> Iterator[Array]:
        yield known
        for first in range(len(known), sets, BLOCK):
            chosen = rng.integers(0, len(known), min(BLOCK, sets - first))
            yield noisy(rng, known[chosen], 0.5, spread)

    return write(folder, name, (sets, *known.shape[1:]), blocks(), asked)
