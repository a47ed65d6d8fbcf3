"""What bench_cpu times: the data of a gallery and every way to find its best sets by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import divse_native
from divse.similarity import reference

TOPK, BLOCK = 10, 1 << 15
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Found = tuple[Any, ...]  # scores (B, topk), positions and what else a search returns


def unit_sets(count: int, k: int, dim: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Random unit vectors (count, K, D), made block by block."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, k, dim, dtype=dtype)
    for start in range(0, count, BLOCK):
        block = torch.randn(min(BLOCK, count - start), k, dim, generator=generator)
        out[start : start + BLOCK] = torch.nn.functional.normalize(block, dim=-1)
    return out


class Data:
    """The gallery of one shape in every precision, and 16 queries."""

    def __init__(self, sets: int, k: int, dim: int) -> None:
        half = unit_sets(sets, k, dim, 0, torch.float16)
        # Every precision holds the same sets, so that bf16 alone has values of its own.
        self.values = {"fp16": half, "fp32": half.float(), "bf16": half.to(torch.bfloat16)}
        self.codes = divse_native.quantise(half.numpy())
        self.queries = unit_sets(16, k, dim, 1, torch.float32)

    def stored(self, name: str) -> Tensor:
        """The array that a variant of this precision scans."""
        return torch.from_numpy(self.codes[0]) if name == "int8" else self.values[name]


def reduce(cosines: Tensor, similarity: str) -> Tensor:
    """Scores of cosines (..., K, L)."""
    if similarity == "maxsim":
        return cosines.amax(-1).sum(-1)
    return reference.smooth_chamfer(cosines, alpha=16.0)


def query_major(queries: Tensor, block: Tensor) -> Tensor:
    """Cosines (B, n, K, L) from a product (B K, n L)."""
    (b, k, d), (n, size, _) = queries.shape, block.shape
    return (queries.view(-1, d) @ block.view(-1, d).T).view(b, k, n, size).transpose(1, 2)


def gallery_major(queries: Tensor, block: Tensor) -> Tensor:
    """Cosines (B, n, K, L) from a product (n L, B K)."""
    (b, k, d), (n, size, _) = queries.shape, block.shape
    return (block.view(-1, d) @ queries.view(-1, d).T).view(n, size, b, k).permute(2, 0, 3, 1)


ORDERS = {"query-major": query_major, "gallery-major": gallery_major}


def torch_search(order: str, similarity: str, compiled: bool = False) -> Callable[..., Found]:
    """The 10 best by plain torch, in blocks that bound its memory."""

    def score(queries: Tensor, block: Tensor) -> Tensor:
        return reduce(ORDERS[order](queries, block), similarity)

    scorer = torch.compile(score) if compiled else score

    def search(queries: Tensor, gallery: Tensor) -> Found:
        scores = torch.cat([scorer(queries, block) for block in gallery.split(BLOCK)], 1)
        return tuple(scores.topk(TOPK))

    return search


def numpy_search(order: str, similarity: str) -> Callable[..., Found]:
    """The 10 best by plain numpy: one product a block, exponentials, logarithms."""

    def score(q: np.ndarray, g: np.ndarray) -> np.ndarray:
        (b, k, d), (n, size, _) = q.shape, g.shape
        if order == "query-major":
            c = (q.reshape(-1, d) @ g.reshape(-1, d).T).reshape(b, k, n, size).swapaxes(1, 2)
        else:
            c = (g.reshape(-1, d) @ q.reshape(-1, d).T).reshape(n, size, b, k).transpose(2, 0, 3, 1)
        if similarity == "maxsim":
            return c.max(-1).sum(-1)
        e = np.exp(16 * c)
        return (np.log(e.sum(-1)).mean(-1) + np.log(e.sum(-2)).mean(-1)) / 32

    def search(queries: np.ndarray, gallery: np.ndarray) -> Found:
        blocks = range(0, len(gallery), BLOCK)
        scores = np.concatenate([score(queries, gallery[i : i + BLOCK]) for i in blocks], 1)
        best = np.argpartition(-scores, TOPK - 1)[:, :TOPK]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1)), 1)
        return np.take_along_axis(scores, best, 1), best

    return search


def bare_product(order: str) -> Callable[..., Any]:
    """The product alone, block after block."""

    def run(queries: Tensor, gallery: Tensor) -> None:
        for block in gallery.split(BLOCK):
            ORDERS[order](queries, block)

    return run


def native_search(data: Data, queries: Tensor, name: str, similarity: str) -> Callable[[], Found]:
    """A call of divse_native in the precision of that name; numpy in, numpy out."""
    options: dict[str, Any] = {"similarity": similarity, "threads": torch.get_num_threads()}
    if name == "int8":
        rest = (data.values["fp16"].numpy(), *data.codes, TOPK)
        call = divse_native.certified_search
    else:
        stored = data.values[name]
        if name == "bf16":
            stored, options["gallery_type"] = stored.view(torch.uint16), "bfloat16"
        rest, call = (stored.numpy(), TOPK), divse_native.search

    wanted = queries.numpy()
    return lambda: call(wanted, *rest, **options)


def peers(data: Data, queries: Tensor) -> dict[str, Callable[[], Found]]:
    """Packages that score MaxSim on a CPU, those of them that are installed; fp32."""
    found: dict[str, Callable[[], Found]] = {}
    gallery = data.values["fp32"]

    def best(scores: Any) -> Found:
        return tuple(torch.as_tensor(scores).reshape(len(queries), -1).topk(TOPK))

    try:
        import maxsim_cpu

        arrays, sets = queries.numpy(), gallery.numpy()
        found["maxsim-cpu"] = lambda: best(
            np.stack([maxsim_cpu.maxsim_scores(query, sets) for query in arrays])
        )
    except ImportError as error:
        print(f"maxsim-cpu left out: {error}", file=sys.stderr)
    try:
        from late_interaction_kernels.reference import maxsim_reference  # its path on a CPU

        found["lik"] = lambda: best(
            torch.cat([maxsim_reference(queries, block) for block in gallery.split(BLOCK // 8)], 1)
        )
    except ImportError as error:
        print(f"late-interaction-kernels left out: {error}", file=sys.stderr)
    return found


def exact_searches(data: Data, queries: Tensor, similarity: str) -> dict[str, Callable[[], Any]]:
    """Every search by name, but for the compiled ones; all exact for the precision in the name."""
    wide = data.values["fp32"]
    arrays = (queries.numpy(), wide.numpy())
    calls: dict[str, Callable[[], Any]] = {}
    for name in (*DTYPES, "int8"):
        label = "int8 certified" if name == "int8" else f"native {name}"
        calls[label] = native_search(data, queries, name, similarity)
    for order in ORDERS:
        plain, numeric = torch_search(order, similarity), numpy_search(order, similarity)
        calls[f"torch {order}"] = lambda run=plain: run(queries, wide)
        calls[f"numpy {order}"] = lambda run=numeric: run(*arrays)
    if similarity == "maxsim":
        calls |= peers(data, queries)
    return calls


def compiled_search(
    data: Data, queries: Tensor, similarity: str, order: str
) -> dict[str, Callable[[], Any]]:
    """The torch search of an order by torch.compile."""
    fused, wide = torch_search(order, similarity, compiled=True), data.values["fp32"]
    return {f"compiled {order}": lambda: fused(queries, wide)}


def floors(data: Data, queries: Tensor) -> dict[str, Callable[[], Any]]:
    """What is not judged: the bare products, and one read of the bytes of each precision."""
    wide = data.values["fp32"]
    calls: dict[str, Callable[[], Any]] = {}
    for order in ORDERS:
        product = bare_product(order)
        calls[f"product {order}"] = lambda run=product: run(queries, wide)
    for name in ("fp32", "fp16", "int8"):
        words = data.stored(name).view(torch.uint8).view(-1).view(torch.int64)
        calls[f"read {name}"] = words.sum
    return calls
