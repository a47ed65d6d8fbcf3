"""Measure the neighbours of a tile on the present GPU and keep the fastest (tile_cache.py).

    python -m divse_kernels.autotune [--seconds 30] [--only WORD ...] [--cuda also|only|never]

runs the main shapes and shows what won by how much, and whether the CUDA kernel for Hopper, where
it was built, is faster than Triton's best. From Python, `tune(call)` tunes every kernel
that `call()` launches. The search is a descent: all tiles that differ from the best one in one
step are measured, and the fastest is the next best one, until none is 2% faster. A tile whose
result differs from that of the default is never chosen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from divse_kernels import hopper, tile_cache
from divse_kernels.problem import Problem, padded
from divse_kernels.tuning import Tile

Call = Callable[[], Any]
FOUND = "{ms:.4g} ms, Triton {triton_ms:.4g} ms, difference {error:.1e}"
AGREES = 1e-5  # largest difference of scores by two kernels that sum in fp32
GAIN = 0.98  # a tile must take less than this share of the best one's time
DOUBLED = {  # fields that go in powers of two, and their ranges
    "block_m": (16, 256),
    "block_n": (16, 256),
    "block_d": (16, 256),
    "num_warps": (2, 8),
    "repeats": (1, 4),
}
STAGES = (1, 6)
POLYNOMIALS = (0, 2, 4, 8)


@dataclass(frozen=True)
class Result:
    """What tuning one kernel for one problem found."""

    kernel: str
    problem: Problem
    default: Tile
    best: Tile
    default_ms: float
    best_ms: float
    measured: int
    refused: int  # tiles that did not compile, did not fit or gave another result

    @property
    def changes(self) -> str:
        """How the best tile differs from the default."""
        pairs = ((name, getattr(self.default, name), v) for name, v in vars(self.best).items())
        return ", ".join(f"{name} {a} -> {b}" for name, a, b in pairs if a != b) or "as it was"


def neighbours(tile: Tile, problem: Problem) -> Iterator[Tile]:
    """Tiles one step away; a block twice as tall may come with twice the warps."""
    least = {"block_m": padded(problem.row_size), "block_n": padded(problem.column_size)}
    most = {"block_d": max(16, padded(problem.dims))}
    for name, (low, high) in DOUBLED.items():
        low, high = max(low, least.get(name, low)), min(high, most.get(name, high))
        value = getattr(tile, name)
        for other in (value // 2, value * 2):
            if low <= other <= high:
                yield replace(tile, **{name: other})
    for factor in (0.5, 2):
        rows, warps = int(tile.block_m * factor), int(tile.num_warps * factor)
        if max(16, least["block_m"]) <= rows <= 256 and 2 <= warps <= 8:
            yield replace(tile, block_m=rows, num_warps=warps)
    for stages in (tile.num_stages - 1, tile.num_stages + 1):
        if STAGES[0] <= stages <= STAGES[1]:
            yield replace(tile, num_stages=stages)
    for persistent in (0, 1, 2) if tile.persistent else ():
        if persistent != tile.persistent:
            yield replace(tile, persistent=persistent)
    for polynomial in POLYNOMIALS:
        if polynomial != tile.polynomial:
            yield replace(tile, polynomial=polynomial)


def milliseconds(call: Call) -> float:
    """Median time on the GPU, inputs not in its cache."""
    return float(triton.testing.do_bench(call, warmup=10, rep=60, return_mode="median"))


def tune(
    call: Call, timer: Callable[[Call], float] = milliseconds, seconds: float = 60.0
) -> list[Result]:
    """Tune every kernel that `call` launches, for the problems it launches them with.

    Arguments:
        call: launches kernels and returns tensors, the same ones each time.
        timer: milliseconds of a call.
        seconds: for each problem; what was found until then is kept.
    """
    with tile_cache.asked() as wanted:
        call()
    return [_tune_one(call, timer, seconds, *key) for key in wanted]


def _tune_one(
    call: Call, timer: Callable[[Call], float], seconds: float, kernel: str, problem: Problem
) -> Result:
    end = time.monotonic() + seconds
    best = default = tile_cache.default_tile(kernel, problem)

    def run(tile: Tile) -> Any:
        with tile_cache.forced(kernel, problem, tile):
            return call()

    expected = run(default)
    times = {default: timer(partial(run, default))}
    refused: set[Tile] = set()
    while True:
        for tile in neighbours(best, problem):
            if time.monotonic() > end:
                break
            if tile in times or tile in refused:
                continue
            if _agrees(run, tile, expected):
                times[tile] = timer(partial(run, tile))
            else:
                refused.add(tile)
        fastest = min(times, key=lambda tile: times[tile])
        if fastest == best or times[fastest] > GAIN * times[best]:
            break
        best = fastest
    figures = {"ms": times[best], "default_ms": times[default]}
    tile_cache.keep(kernel, problem, best, figures)
    return Result(
        kernel, problem, default, best, times[default], times[best], len(times), len(refused)
    )


def _agrees(run: Callable[[Tile], Any], tile: Tile, expected: Any) -> bool:
    """Whether a tile runs and gives what the default gives."""
    try:
        return same(run(tile), expected)
    except Exception:  # a tile may fail in the compiler, the assembler, the loader or the launch
        return False


def same(a: Any, b: Any) -> bool:
    """Whether results agree, but for the order of sums; positions may differ between equals."""
    if isinstance(a, Tensor):
        if a.shape != b.shape:
            return False
        if not a.is_floating_point():
            return a.numel() == 0 or float((a == b).float().mean()) > 0.99
        a, b = a.detach().float(), b.detach().float()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return False
        scale = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        return bool((a[finite] - b[finite]).abs().le(1e-2 * scale).all())
    if isinstance(a, tuple | list):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def choose(call: Call, timer: Callable[[Call], float] = milliseconds) -> Mapping[str, Any] | None:
    """Measure the CUDA kernel against Triton's scores and keep which `impl="auto"` shall take.

    `call` is a partial of `smooth_chamfer` with queries and gallery. None where the kernel does not
    serve them; it must give the same scores to be chosen.
    """
    queries, gallery = call.args
    if hopper.why_not(queries, gallery) is not None:
        return None
    other = partial(hopper.smooth_chamfer, queries, gallery)
    found: dict[str, Any]
    try:
        error = float((other() - call()).abs().max())
        found = {"error": error, "ms": timer(other), "triton_ms": timer(call)}
        found["faster"] = error <= AGREES and found["ms"] < found["triton_ms"]
    except RuntimeError as failure:  # such as a driver that is older than the module
        found = {"faster": False, "failed": str(failure)}
    hopper.keep(queries, gallery, 16.0, found)
    return found


def line(shape: str, result: Result) -> str:
    """What was found, in words."""
    gain = result.default_ms / result.best_ms
    return (
        f"{shape}: {result.kernel} {result.default_ms:.4g} -> {result.best_ms:.4g} ms "
        f"({gain:.2f}x; {result.changes}; {result.measured} measured, {result.refused} refused)"
    )


def main() -> int:
    """Tune the main shapes on the present GPU."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=30.0, help="for each problem")
    arguments.add_argument("--only", nargs="+", default=[], metavar="WORD", help="words of a shape")
    arguments.add_argument(
        "--cuda", choices=("also", "only", "never"), default="also", help="the CUDA kernel's turn"
    )
    args = arguments.parse_args()
    if not torch.cuda.is_available():
        print("divse_kernels.autotune measures on a GPU, and torch finds none here.")
        return 1
    from divse_kernels.tuned_shapes import SHAPES

    for shape, build in SHAPES.items():
        if set(args.only) <= set(shape.split()):
            call = build()
            for result in () if args.cuda == "only" else tune(call, seconds=args.seconds):
                print(line(shape, result), flush=True)
            if args.cuda != "never" and shape.startswith("scores ") and (found := choose(call)):
                text = "CUDA kernel " + (found.get("failed") or FOUND.format(**found))
                print(f"{shape}: {text}", flush=True)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
