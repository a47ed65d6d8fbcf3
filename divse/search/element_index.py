"""A FAISS index over the elements of a gallery: one shard for each segment, trained in common.

A shard numbers the elements of its segment as they lie in the file, so it stays right when sets are
removed (they are left out of a search) and when other segments come. faiss is imported where it is
used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from divse.search.filters import Selection
from divse.search.proposal import Effort, Proposal
from divse.search.request import Request
from divse.search.scan import Scoring
from divse.search.segment import Segment
from divse.search.shard import Shard, import_faiss, lists, naming, reason, search_parameters
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, unpad_elements

DEPTH = 100  # nearest elements of each query element, in the first round
MOST_ROUNDS = 3  # each deeper and wider than the one before
PROBED_SHARE = 16  # one in so many clusters is looked into at first
LEAST_PROBED = 8  # clusters
TRAIN_PER_LIST = 64  # sampled elements for each cluster; faiss asks for 39 at least
MOST_CODES = 256  # centroids of a product quantiser, which are trained as well
TRIED = 64  # elements, before an index is filled in earnest
BLOCK_BYTES = 1 << 25

Progress = Callable[[int], object]


@dataclass(frozen=True)
class ElementIndex:
    """The shards of all segments of one state of a gallery."""

    shards: tuple[Shard, ...]
    spec: str

    @cached_property
    def lists(self) -> int:
        """Clusters of the inverted file, 1 if it has none."""
        return max(lists(shard.index) for shard in self.shards)

    def nearest(
        self, vectors: np.ndarray, count: int, probe: int, selection: Selection | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return inner products (n, count) of the nearest elements and their owners' positions.

        In no order; -inf and -1 where there are no more. `probe` clusters are looked into.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        with naming(self.spec):
            parts = [shard.nearest(vectors, count, probe, selection) for shard in self.shards]
        products = np.concatenate([part[0] for part in parts], axis=1)
        owners = np.concatenate([part[1] for part in parts], axis=1)
        if len(parts) == 1:
            return products, owners
        best = np.argpartition(-products, count - 1, axis=1)[:, :count]
        return np.take_along_axis(products, best, 1), np.take_along_axis(owners, best, 1)

    def fit(self, depth: int, topk: int) -> int:
        """At most all elements; how many sets own them is not known."""
        return min(depth, sum(shard.segment.entry.live_elements for shard in self.shards))

    def is_exhaustive(self, probe: int) -> bool:
        """Whether no element is nearer than those returned: see `bounds`."""
        return all(shard.is_exhaustive(probe) for shard in self.shards)

    def bytes_read(self, probe: int) -> int:
        """About how many bytes of codes a search for one element looks at."""
        return sum(shard.bytes_read(probe) for shard in self.shards)

    def first_effort(self, topk: int, passing: float) -> Effort:
        """The fewer sets pass the filter, the wider they lie apart."""
        probe = max(LEAST_PROBED, int(self.lists / PROBED_SHARE / passing))
        return Effort(DEPTH, probe, MOST_ROUNDS)

    def propose(
        self, queries: EmbeddingSets, scoring: Scoring, effort: Effort, selection: Selection | None
    ) -> Proposal:
        """Propose the sets that own the `depth` nearest elements of a query element.

        `probe` clusters are looked into; how sets are scored does not matter.
        """
        values = np.asarray(queries.numpy().values, dtype=np.float32)
        real = np.ones(values.shape[:2], dtype=bool)
        if queries.lengths is not None:
            real = np.arange(queries.k) < np.asarray(queries.lengths)[:, None]
        depth = self.fit(effort.depth, 1)
        products, found = self.nearest(values[real], depth, effort.probe, selection)
        limits = np.full(real.shape, -np.inf, dtype=np.float32)
        limits[real] = products.min(axis=1)
        owners = np.full((*real.shape, found.shape[1]), -1, dtype=np.int64)
        owners[real] = found
        candidates = np.sort(owners.reshape(len(values), -1), axis=1)
        candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1
        lookups = int(np.isfinite(limits).sum())
        return Proposal(candidates, limits, lookups * self.bytes_read(effort.probe))

    def best(self, request: Request, effort: Effort) -> None:
        """Nothing: FAISS proposes, and others score."""


class Trained(NamedTuple):
    """What a kind of index learns from elements, and what it then is."""

    index: Any
    spec: str


def train(snapshot: Snapshot, spec: str) -> Trained:
    """Train the index of a FAISS factory string.

    Where the elements are too few to train it, it is "Flat", with a warning.
    """
    index = _new_index(snapshot.dim, spec)
    sample = sample_elements(snapshot, TRAIN_PER_LIST * max(MOST_CODES, lists(index)))
    if index.is_trained or not (problem := _train(index, sample)):
        _try_out(index, spec, sample[:TRIED])
        return Trained(index, spec)
    warnings.warn(
        f"the index {spec!r} cannot be trained on {len(sample)} elements ({problem}): the "
        "gallery has the index 'Flat' until it is compacted with more, or gets another one",
        stacklevel=2,
    )
    return Trained(_new_index(snapshot.dim, "Flat"), "Flat")


def _new_index(dim: int, spec: str) -> Any:
    faiss = import_faiss()
    if "NSG" in spec:
        raise ValueError(f"index {spec!r}: FAISS cannot add to NSG graphs; choose HNSW32, or IVF")
    with naming(spec):
        return faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)


def _train(index: Any, sample: np.ndarray) -> str:
    """Train an index; return why that is not possible, or nothing."""
    if not len(sample):
        return "the gallery is empty"
    try:
        _cluster_on_gpu(import_faiss(), index)
        index.train(sample)
    except RuntimeError as error:
        return reason(error)
    return ""


def _try_out(index: Any, spec: str, sample: np.ndarray) -> None:
    """Do once on a few elements what will be done: FAISS has indexes that lack some of it."""
    if not len(sample):
        return
    faiss = import_faiss()
    with naming(spec):
        filled = faiss.clone_index(index)
        filled.add(sample[:1])
        filled.add(sample)
        again = faiss.deserialize_index(faiss.serialize_index(filled))
        again.search(sample[:1], 1, params=search_parameters(again, 1))


def _cluster_on_gpu(faiss: ModuleType, index: Any) -> None:
    """Let GPUs find the clusters, where faiss has any."""
    gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
    inverted = faiss.try_extract_index_ivf(index)
    if gpus and inverted is not None:
        flat = faiss.IndexFlat(inverted.d, inverted.metric_type)
        inverted.clustering_index = faiss.index_cpu_to_all_gpus(flat)


def fill(trained: Any, segment: Segment, progress: Progress | None = None) -> Any:
    """Return a copy of a trained index that holds every element of a segment, removed ones too."""
    index = import_faiss().clone_index(trained)
    elements = segment.embeddings.reshape(-1, segment.embeddings.shape[-1])
    step = max(1, BLOCK_BYTES // (4 * elements.shape[1]))
    done = 0
    for first in range(0, len(elements), step):
        part = np.ascontiguousarray(elements[first : first + step], dtype=np.float32)
        index.add(part)
        if progress is not None:
            sets = segment.sets * (first + len(part)) // len(elements)
            progress(sets - done)
            done = sets
    return index


def sample_elements(snapshot: Snapshot, count: int) -> np.ndarray:
    """About `count` elements of sets drawn without repetition; the same ones at every build."""
    manifest = snapshot.manifest
    if not len(snapshot):
        return np.empty((0, snapshot.dim), dtype=np.float32)
    sets = min(len(snapshot), max(1, math.ceil(count * len(snapshot) / manifest.elements)))
    drawn = np.random.default_rng(0).choice(len(snapshot), size=sets, replace=False)
    block = snapshot.sets(np.sort(drawn))
    return np.ascontiguousarray(unpad_elements(block)[0], dtype=np.float32)
