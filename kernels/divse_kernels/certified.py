"""Certified search: int8 codes rule out most of a gallery, the rest is scored exactly."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from divse_kernels.best import Best, row_width
from divse_kernels.int8_codes import CodedQueries
from divse_kernels.int8_scan import CertifiedScan
from divse_kernels.launch import Side
from divse_kernels.ops import check_lengths, supports
from divse_kernels.problem import SMOOTH_CHAMFER
from divse_kernels.score_ops import kernel_name
from divse_kernels.search import check_positions, check_request, query_blocks
from divse_kernels.search_driver import Driver

CODE_STEP = 16  # codes that one load moves


class Certified(NamedTuple):
    """`scores` and `ids` (B, topk), best first, and `survivors` (B,) int64, scored exactly."""

    scores: Tensor
    ids: Tensor
    survivors: Tensor


class CertifiedDriver(Driver):
    """Feeds parts that grow slower: bounds let more sets pass than scores would."""

    FIRST = 1024  # sets, of which all are scored exactly
    GROWTH = 3  # times what was seen

    def _next_size(self) -> int:
        first = min(self.best.room, max(self.FIRST, 2 * self.best.topk))
        return max(first, min(super()._next_size(), self.GROWTH * self._seen))


def certified_search(
    queries: Tensor,
    gallery: Tensor,
    codes: Tensor,
    scales: Tensor,
    residuals: Tensor,
    topk: int,
    alpha: float = 16.0,
    log_mean: bool = False,
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
    excluded: Tensor | None = None,
    *,
    similarity: str = SMOOTH_CHAMFER,
    reduction: str = "sum",
) -> Certified:
    """What `search` finds, reading codes in place of most embeddings.

    Arguments:
        queries: (B, K, D) of the gallery's type, or float32; D a multiple of 16.
        gallery: (N, L, D) unit vectors, float32, float16 or bfloat16.
        codes, scales, residuals: (N, L, D) int8, (N, L) and (N, L) float32, as `quantise` makes
            them of this very gallery.

    The others are those of `search`.

    Returns:
        scores (B, topk) and positions (B, topk) as `search` does, and survivors (B,) int64: how
        many sets were scored exactly, as their bounds could not rule them out.
    """
    name = kernel_name(similarity, reduction)
    _check(queries, gallery, codes, scales, residuals)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    check_request(topk, alpha, excluded, queries.device)
    check_positions(len(gallery), excluded)
    part = tuple(rows.contiguous() for rows in (codes, scales, residuals))
    level = alpha if name == SMOOTH_CHAMFER else math.inf
    scores = torch.empty(len(queries), topk, dtype=torch.float32, device=queries.device)
    ids = torch.empty(len(queries), topk, dtype=torch.int64, device=queries.device)
    survivors = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows in query_blocks(len(queries), topk, len(gallery)):
        side = Side.of(queries[rows], None if query_lengths is None else query_lengths[rows])
        coded = CodedQueries.of(side.values, side.lengths, gallery.shape[1], level)
        scan = CertifiedScan(coded, side, alpha, log_mean, excluded, survivors[rows], name)
        width = row_width(side.count, topk, len(gallery))
        driver = CertifiedDriver(scan, Best(side.count, topk, queries.device, width))
        driver.feed((*part, gallery, gallery_lengths), 0)
        driver.settle()
        scores[rows], ids[rows] = driver.best.results()
    return Certified(scores, ids, survivors)


def _check(
    queries: Tensor, gallery: Tensor, codes: Tensor, scales: Tensor, residuals: Tensor
) -> None:
    if reason := supports(queries, gallery, mixed=True):
        raise ValueError(reason)
    if gallery.shape[2] % CODE_STEP:
        raise ValueError(f"D must be a multiple of {CODE_STEP} for codes, got {gallery.shape[2]}")
    expected = (
        ("codes", codes, torch.int8, gallery.shape),
        ("scales", scales, torch.float32, gallery.shape[:2]),
        ("residuals", residuals, torch.float32, gallery.shape[:2]),
    )
    for what, rows, dtype, shape in expected:
        if rows.dtype != dtype or rows.shape != shape or rows.device != gallery.device:
            raise ValueError(
                f"{what} must be {dtype} {tuple(shape)} on {gallery.device}, as quantise(gallery) "
                f"makes them; got {rows.dtype} {tuple(rows.shape)} on {rows.device}"
            )
