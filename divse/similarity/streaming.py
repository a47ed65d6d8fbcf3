"""Search in a gallery that stays in host memory and goes to a GPU block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from divse.sets import EmbeddingSets, as_tensor
from divse.similarity import dispatch, triton
from divse.similarity.inputs import Sets, bitmap, read_parameters, read_sets
from divse.similarity.table import get_similarity


def streams(
    queries: EmbeddingSets, block: EmbeddingSets, topk: int, similarity: str, impl: str
) -> bool:
    """Whether the implementation that serves these sets takes such host blocks as they are."""
    values = as_tensor(block.values)
    if values.is_cuda:
        return False
    q = read_sets(queries, None, "queries")
    g = Sets(values[:0].to(q.values.device), None)
    chosen = dispatch.choose("search", impl, q, g, get_similarity(similarity)).impl
    return chosen == "triton" and topk <= triton.most_results()


def search_stream(
    queries: EmbeddingSets,
    blocks: Iterable[tuple[int, EmbeddingSets]],
    topk: int,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float = 16.0,
    log_mean: bool = False,
    excluded: Tensor | None = None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """Find the ``topk`` best sets of all blocks; copies to the device hide behind its work.

    ``blocks`` yields (position of the first set, sets (n, L, D)) in order of position, in host
    memory (memory maps too); `streams` says whether the sets are of a kind that this can serve.
    ``excluded`` (N,) bool on the device of ``queries`` leaves sets out by position. Returns scores
    and positions (B, topk) on the device of ``queries`` (B, K, D), as `divse.search` does.
    """
    chosen = get_similarity(similarity)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    dispatch.calls["triton.search"] += 1
    with torch.no_grad():
        q = read_sets(queries, None, "queries")
        bits = None if excluded is None else bitmap(excluded)
        return triton.search_blocks(q, _parts(blocks), topk, chosen, given, bits)


def _parts(blocks: Iterable[tuple[int, EmbeddingSets]]) -> Iterator[tuple[int, Sets]]:
    for first, block in blocks:
        yield first, read_sets(block, None, "gallery")
