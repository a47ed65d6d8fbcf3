"""The best sets of every query so far, on the device, as lists that a scan appends to.

A set is one integer, its *key*: the bits of its score, made monotone, above its reversed position.
Larger keys are better, no two are equal, and equal scores order by position. Not a number counts as
minus infinity. Each query owns a row of keys (B, WIDTH) and their number (B,). `append` puts what
beats the query's threshold at the row's end, in any order; `keep_best` leaves the best `topk` of
the row and sets the threshold to the last of them. The outcome is that of a full sort, whatever
the order of the atomics.

A row that is too short sets a flag: later scans and merges then do nothing, so that what was merged
before stays whole, and `recover` takes it up again. The flag and the number of merges done are one
small tensor, which the host looks at once in a while (`Progress`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import INTERPRETED, launches, on_device
from divse_kernels.tuning import row_warps

MAX_TOPK = 1000
MAX_POSITION = (1 << 32) - 1
NO_KEY = tl.constexpr(-(1 << 63))
LOW_BITS = tl.constexpr(0xFFFFFFFF)
NO_SCORE = tl.constexpr(-(1 << 31))  # thresholds are stored xor this: zeros let everything pass

SHORTEST, WIDEST, ROWS_BYTES = 1024, 8192, 32 << 20


@triton.jit
def monotone(scores):
    """Integers in the order of float32 scores; the function that maps bits is its own inverse."""
    scores = tl.where(scores != scores, float("-inf"), scores)
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # -0 equals 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def wanted_sets(excluded_ptr, positions, inside):
    """Which sets are to be found: bit n & 7 of byte n >> 3 excludes the set at position n."""
    if excluded_ptr is None:
        return inside
    else:
        bytes_ = tl.load(excluded_ptr + (positions >> 3), mask=inside, other=255).to(tl.int32)
        return inside & (((bytes_ >> (positions & 7).to(tl.int32)) & 1) == 0)


@triton.jit
def append(
    keys_ptr,  # [QUERIES, WIDTH] int64
    counts_ptr,  # [QUERIES] int32
    thresholds_ptr,  # [QUERIES] int32
    state_ptr,  # [2] int32: whether a row was too short, number of merges
    scores,  # [SETS, QUERY_SETS]: upper bounds will do, where they are replaced before the merge
    wanted,  # [SETS] whether the set is to be found at all
    positions,  # [SETS] int64
    queries,  # [QUERY_SETS]
    QUERIES,
    WIDTH,
):
    """Append the sets of a tile that beat their query's threshold."""
    order = monotone(scores)
    inside = queries < QUERIES
    thresholds = tl.load(thresholds_ptr + queries, mask=inside, other=0) ^ NO_SCORE
    better = wanted[:, None] & inside[None, :] & (order > thresholds[None, :])
    if tl.max(better.to(tl.int32)) > 0:  # seldom, after the first parts
        columns = queries[None, :] + tl.zeros_like(order)
        slots = tl.atomic_add(counts_ptr + columns, 1, mask=better, sem="relaxed")
        keys = (order.to(tl.int64) << 32) | (positions ^ LOW_BITS)[:, None]
        tl.store(
            keys_ptr + columns.to(tl.int64) * WIDTH + slots, keys, mask=better & (slots < WIDTH)
        )
        tl.store(state_ptr + tl.zeros_like(order), 1, mask=better & (slots >= WIDTH))


@triton.jit
def keep_best(
    keys_ptr,
    counts_ptr,
    kept_ptr,  # [QUERIES] int32: the counts after the last merge
    thresholds_ptr,
    state_ptr,
    QUERIES,
    topk,
    WIDTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Leave the best `topk` keys of each row: their least is found bit by bit, from the top."""
    if tl.load(state_ptr) == 0:
        queries = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
        inside = queries < QUERIES
        counts = tl.load(counts_ptr + queries, mask=inside, other=0)
        slots = tl.arange(0, WIDTH)
        rows = keys_ptr + queries.to(tl.int64)[:, None] * WIDTH
        keys = tl.load(rows + slots[None, :], mask=slots[None, :] < counts[:, None], other=NO_KEY)
        least = tl.full((BLOCK_B,), NO_KEY, tl.int64)
        for i in range(64):
            higher = least ^ (tl.full((BLOCK_B,), 1, tl.int64) << (63 - i))
            enough = tl.sum((keys >= higher[:, None]).to(tl.int32), axis=1) >= topk
            least = tl.where(enough, higher, least)
        chosen = (keys >= least[:, None]) & (slots[None, :] < counts[:, None])
        places = tl.cumsum(chosen.to(tl.int32), axis=1) - 1
        tl.store(rows + places, keys, mask=chosen)
        left = tl.minimum(counts, topk)
        tl.store(counts_ptr + queries, left, mask=inside)
        tl.store(kept_ptr + queries, left, mask=inside)
        threshold = tl.where(counts >= topk, (least >> 32).to(tl.int32), NO_SCORE)
        tl.store(thresholds_ptr + queries, threshold ^ NO_SCORE, mask=inside)
        if tl.program_id(0) == 0:
            tl.store(state_ptr + 1, tl.load(state_ptr + 1) + 1)


def row_width(queries: int, topk: int, sets: int = MAX_POSITION) -> int:
    """Length of a row: longer ones mean fewer merges, but 32 MiB is what all should take."""
    fitting = max(1, ROWS_BYTES // (8 * max(1, queries)))
    least = max(SHORTEST, triton.next_power_of_2(4 * topk))
    width = max(least, min(WIDEST, 1 << (fitting.bit_length() - 1)))
    return min(width, triton.next_power_of_2(topk + sets))  # all of a small gallery fits


class Progress:
    """What the device had done at a moment of the current stream; only `read` waits for it."""

    def __init__(self, state: Tensor) -> None:
        self._event = None
        self._state = state
        if state.is_cuda:
            self._state = torch.empty(2, dtype=torch.int32, pin_memory=True)
            self._state.copy_(state, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(state.device))

    def read(self) -> tuple[bool, int]:
        """Whether a row was too short, and the number of merges done before."""
        if self._event is not None:
            self._event.synchronize()
        failed, merges = self._state.tolist()
        return bool(failed), merges


class Best:
    """The best `topk` sets of each of B queries; see the module."""

    def __init__(
        self, queries: int, topk: int, device: torch.device, width: int | None = None
    ) -> None:
        self.queries, self.topk = queries, topk
        self.width = width or row_width(queries, topk)
        self.keys = torch.empty(queries, self.width, dtype=torch.int64, device=device)
        words = torch.zeros(3 * queries + 2, dtype=torch.int32, device=device)
        self.counts, self.kept, self.thresholds, self.state = words.split([queries] * 3 + [2])

    @property
    def room(self) -> int:
        """So many sets can be appended after a merge, whatever their scores."""
        return self.width - self.topk

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of `append`."""
        return self.keys, self.counts, self.thresholds, self.state

    def merge(self) -> None:
        """Launch `keep_best`."""
        launches["keep_best"] += 1
        block = min(16, triton.next_power_of_2(self.queries)) if INTERPRETED else 1
        with on_device(self.keys.device):
            keep_best[(triton.cdiv(self.queries, block),)](
                self.keys,
                self.counts,
                self.kept,
                self.thresholds,
                self.state,
                self.queries,
                self.topk,
                WIDTH=self.width,
                BLOCK_B=block,
                num_warps=row_warps(self.width),
                enable_fp_fusion=True,
            )

    def progress(self) -> Progress:
        """Ask for the state without waiting."""
        return Progress(self.state)

    def recover(self) -> None:
        """After a row was too short: back to what the last merge left."""
        self.counts.copy_(self.kept)
        self.state.zero_()

    def results(self) -> tuple[Tensor, Tensor]:
        """Scores and positions (B, topk), best first; -inf and -1 where nothing is left."""
        slots = torch.arange(self.topk, device=self.keys.device)
        keys = torch.where(slots < self.counts[:, None], self.keys[:, : self.topk], NO_KEY.value)
        keys = keys.sort(dim=1, descending=True).values
        scores, positions = unpack(keys)
        none = keys == NO_KEY.value
        return scores.masked_fill(none, -torch.inf), positions.masked_fill(none, -1)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and positions of keys."""
    order = (keys >> 32).to(torch.int32)
    scores = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, MAX_POSITION - (keys & MAX_POSITION)
