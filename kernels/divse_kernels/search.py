"""The best sets of a gallery for every query, exactly; B x N scores are never stored."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from divse_kernels.best import MAX_POSITION, MAX_TOPK, ROWS_BYTES, Best, row_width
from divse_kernels.launch import Side
from divse_kernels.long_tile import LONGEST
from divse_kernels.ops import check_lengths, read_alpha, supports
from divse_kernels.problem import SMOOTH_CHAMFER
from divse_kernels.score_ops import kernel_name
from divse_kernels.search_driver import Driver, Part, drive
from divse_kernels.search_scan import ExactScan

#: (position of the first set, values (n, L, D), lengths (n,) or None)
Blocks = Iterable[tuple[int, Tensor, Tensor | None]]
STREAMED_SETS = 1 << 20  # tiles for a gallery of unknown size are those of a large one


class Found(NamedTuple):
    """`scores` (B, topk) float32, best first, and `ids` (B, topk) int64 positions."""

    scores: Tensor
    ids: Tensor


def search(
    queries: Tensor,
    gallery: Tensor,
    topk: int,
    alpha: float = 16.0,
    log_mean: bool = False,
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
    excluded: Tensor | None = None,
    *,
    similarity: str = SMOOTH_CHAMFER,
    reduction: str = "sum",
) -> Found:
    """The `topk` best gallery sets of every query, in plain torch with a stable sort:

        scores(queries, gallery, ...).sort(1, descending=True), the first topk columns

    Arguments:
        queries, gallery, similarity and its parameters, lengths: as in `scores`; sets of more than
            32 elements are scored block by block, at most 16 MiB of scores at a time.
        topk: from 1 to 1000.
        excluded: (ceil(N / 8),) uint8, a bitmap: bit n & 7 of byte n >> 3 excludes set n.

    Returns:
        scores (B, topk) float32, best first, and positions (B, topk) int64, the lower one of equal
        scores first. Not a number counts as minus infinity. Where fewer than `topk` sets are left,
        the last scores are minus infinity and their positions -1.
    """
    if reason := supports(queries, gallery, mixed=True, longest=LONGEST):
        raise ValueError(reason)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    check_request(topk, alpha, excluded, queries.device)
    check_positions(len(gallery), excluded)
    name = kernel_name(similarity, reduction)
    scores = queries.new_empty((len(queries), topk), dtype=torch.float32)
    ids = torch.empty_like(scores, dtype=torch.int64)
    for rows in query_blocks(len(queries), topk, len(gallery)):
        lengths = None if query_lengths is None else query_lengths[rows]
        side = Side.of(queries[rows], lengths)
        width = row_width(side.count, topk, len(gallery))
        best = Best(side.count, topk, queries.device, width)
        driver = Driver(ExactScan(side, alpha, log_mean, excluded, len(gallery), name), best)
        driver.feed((gallery, gallery_lengths), 0)
        driver.settle()
        scores[rows], ids[rows] = best.results()
    return Found(scores, ids)


def search_blocks(
    queries: Tensor,
    blocks: Blocks,
    topk: int,
    alpha: float = 16.0,
    log_mean: bool = False,
    query_lengths: Tensor | None = None,
    excluded: Tensor | None = None,
    *,
    similarity: str = SMOOTH_CHAMFER,
    reduction: str = "sum",
) -> Found:
    """`search` in a gallery that comes in blocks, of any sizes, from the host or from the device.

    `blocks` yields (position of the first set, values (n, L, D), lengths (n,) or None) in order of
    position. Host blocks (memory-mapped ones too) are copied through pinned memory while the block
    before is scanned; blocks that are pinned themselves save a copy. A block must stay as it is
    until the second one after it is asked for. Memory: two blocks, and 8 to 64 KiB a query.
    """
    check_lengths("query_lengths", queries, query_lengths)
    check_request(topk, alpha, excluded, queries.device)
    name = kernel_name(similarity, reduction)
    side = Side.of(queries, query_lengths)
    best = Best(side.count, topk, queries.device)
    scan = ExactScan(side, alpha, log_mean, excluded, STREAMED_SETS, name)
    drive(Driver(scan, best), checked(blocks, queries, excluded), queries.device)
    return Found(*best.results())


def query_blocks(queries: int, topk: int, sets: int) -> Iterator[slice]:
    """Queries that search together: their rows take a bounded memory."""
    step = 2 * ROWS_BYTES // (8 * row_width(queries, topk, sets))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def check_request(topk: int, alpha: float, excluded: Tensor | None, device: torch.device) -> None:
    """Refuse what no gallery could answer."""
    if not 1 <= topk <= MAX_TOPK:
        raise ValueError(f"topk must be from 1 to {MAX_TOPK}, got {topk}")
    if isinstance(alpha, Tensor):
        raise TypeError("alpha must be a number, got a tensor: give float(alpha)")
    read_alpha(alpha, device)
    if excluded is None:
        return
    if excluded.dtype != torch.uint8 or excluded.ndim != 1 or excluded.device != device:
        raise ValueError(
            f"excluded must be a bitmap, uint8 of one dimension on {device}, got "
            f"{excluded.dtype} {tuple(excluded.shape)} on {excluded.device}"
        )
    if not excluded.is_contiguous():
        raise ValueError("excluded must be contiguous: give excluded.contiguous()")


def check_positions(end: int, excluded: Tensor | None) -> None:
    """Refuse a gallery with more sets than positions, or than bits."""
    if end > MAX_POSITION:
        raise ValueError(f"positions must be below 2 ** 32 - 1, the gallery ends at {end}")
    if excluded is not None and 8 * len(excluded) < end:
        raise ValueError(
            f"excluded must hold a bit for each of {end} sets, got {8 * len(excluded)} bits"
        )


def checked(blocks: Blocks, queries: Tensor, excluded: Tensor | None) -> Iterator[tuple[int, Part]]:
    """Blocks as parts, once they are known to fit the queries and to come in order."""
    end = 0
    for first, values, lengths in blocks:
        if first < end:
            raise ValueError(f"blocks must come in order of position: got {first} after {end}")
        end = first + len(values)
        check_positions(end, excluded)
        there = values.new_empty((0, *values.shape[1:]), device=queries.device)
        if reason := supports(queries, there, mixed=True, longest=LONGEST):
            raise ValueError(f"the block at position {first}: {reason}")
        check_lengths("lengths of a block", values, lengths)
        yield first, (values, lengths)
