"""A FAISS index over the elements of a gallery: one shard for each segment, trained in common.

A shard numbers the elements of its segment as they lie in the file, so it stays right when sets are
removed (they are left out of a search) and when other segments come. faiss is imported where it is
used.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from divse.search.segment import Segment
from divse.search.snapshot import Snapshot

FLAT_UP_TO = 1 << 14  # elements; below, comparing with all of them costs less than clusters would
TRAIN_PER_LIST = 64  # sampled elements for each cluster; faiss asks for 39 at least
BLOCK_BYTES = 1 << 25

Progress = Callable[[int], object]


def index_spec(elements: int) -> str:
    """Return the FAISS factory string for so many elements.

    One-bit RaBitQ codes in an inverted file: measured (reference of the project) recall@10 of 1.00
    after exact reranking at a tenth of a plain scan's time for K=4, D=256. The number of lists
    grows with the root of the size, in powers of two.
    """
    if elements <= FLAT_UP_TO:
        return "Flat"
    lists = 1 << round(math.log2(math.sqrt(elements)))
    return f"IVF{lists},RaBitQ"


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def import_faiss() -> ModuleType:
    """Import faiss, or say how to get it."""
    try:
        with warnings.catch_warnings():  # its SWIG layer warns about itself on new Pythons
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise ImportError(
            f"the prefilter needs faiss ({error}): pip install 'divse[cpu]', or plan='exact'"
        ) from None
    module: ModuleType = faiss
    return module


@dataclass(frozen=True)
class Shard:
    """A filled FAISS index over one segment, whose element e is the e-th in the segment's file."""

    index: Any
    segment: Segment

    def nearest(self, vectors: np.ndarray, count: int, probe: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inner products (n, count) and the gallery's positions of the elements' owners.

        -inf and -1 where no more were found; removed sets are never found.
        """
        faiss = import_faiss()
        options: dict[str, Any] = {}
        if self.segment.live is not None:
            options["sel"] = faiss.IDSelectorBitmap(self._live_elements())
        if lists(self.index) > 1:
            rabitq = isinstance(self.index, faiss.IndexIVFRaBitQ)
            kind = faiss.IVFRaBitQSearchParameters if rabitq else faiss.SearchParametersIVF
            parameters = kind(nprobe=min(probe, lists(self.index)), **options)
        else:
            parameters = faiss.SearchParameters(**options) if options else None
        products, elements = self.index.search(vectors, count, params=parameters)
        found = elements >= 0
        owners = np.where(found, self.segment.owners(np.maximum(elements, 0)), -1)
        return np.where(found, products, -np.inf), owners

    def _live_elements(self) -> np.ndarray:
        mask = np.zeros(self.segment.entry.elements, dtype=bool)
        mask[self.segment.element_index(np.arange(self.segment.sets))] = True
        return np.packbits(mask, bitorder="little")


@dataclass(frozen=True)
class ElementIndex:
    """The shards of all segments of one state of a gallery."""

    shards: tuple[Shard, ...]
    spec: str

    @property
    def lists(self) -> int:
        """Clusters of the inverted file, 1 if it has none."""
        return max(lists(shard.index) for shard in self.shards)

    def owners(self, vectors: np.ndarray, count: int, probe: int) -> np.ndarray:
        """Return the positions (n, count) of the sets that own the nearest elements, -1 = none.

        `probe` clusters are looked into.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        parts = [shard.nearest(vectors, count, probe) for shard in self.shards]
        products = np.concatenate([part[0] for part in parts], axis=1)
        owners = np.concatenate([part[1] for part in parts], axis=1)
        if len(parts) == 1:
            return owners
        best = np.argpartition(-products, count - 1, axis=1)[:, :count]
        return np.take_along_axis(owners, best, axis=1)


def lists(index: Any) -> int:
    """Clusters of an index, 1 if it has none."""
    return int(getattr(index, "nlist", 1))


def train(snapshot: Snapshot, spec: str | None = None) -> tuple[Any, str]:
    """Return a trained index without elements, and its factory string."""
    faiss = import_faiss()
    spec = spec or index_spec(snapshot.manifest.elements)
    index = faiss.index_factory(snapshot.dim, spec, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        _cluster_on_gpu(faiss, index)
        index.train(_sample(snapshot, TRAIN_PER_LIST * int(getattr(index, "nlist", 1024))))
    return index, spec


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


def _sample(snapshot: Snapshot, count: int) -> np.ndarray:
    """About `count` elements of sets drawn without repetition; the same ones at every build."""
    manifest = snapshot.manifest
    sets = min(len(snapshot), max(1, math.ceil(count * len(snapshot) / manifest.elements)))
    drawn = np.random.default_rng(0).choice(len(snapshot), size=sets, replace=False)
    block = snapshot.sets(np.sort(drawn))
    values = np.asarray(block.values)
    if block.lengths is None:
        values = values.reshape(-1, values.shape[-1])
    else:
        values = values[np.arange(block.k) < np.asarray(block.lengths)[:, None]]
    return np.ascontiguousarray(values, dtype=np.float32)
