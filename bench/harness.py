"""How every bench measures: correctness gate, interleaved timing, peak memory.

A bench cell is one variant on one shape. Its order is fixed: first the gate (the variant's output
against float64), then memory, then time; a variant that fails the gate gets no time at all, and
the bench exits with 1. Variants of one shape are timed in turn, round after round, so that a
machine that slows down slows all of them, and ratios are medians of ratios within a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps
Call = Callable[[], Any]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a correctness gate: largest error against float64 and what was allowed."""

    error: float
    allowed: float

    @property
    def green(self) -> bool:
        """Whether the error is within bounds (NaN never is)."""
        return self.error <= self.allowed


def gate(got: Tensor, exact: Tensor, plain: Tensor, rounding: float = 0.0) -> Verdict:
    """Judge ``got`` against float64 ``exact``: error <= 2 x error of ``plain`` + 8 eps32 x scale.

    ``plain`` is the fp32 reference on the same inputs. ``rounding`` allows for a variant that by
    design rounds its cosines (eager bf16): Smooth-Chamfer is 1-Lipschitz in them.
    """
    if got.shape != exact.shape:
        raise ValueError(f"gate: got shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    scale = float(exact.abs().max())
    error = float((got.double() - exact).abs().max())
    allowed = 2 * float((plain.double() - exact).abs().max()) + 8 * EPS32 * scale + rounding
    return Verdict(error, allowed)


def time_interleaved(
    variants: Mapping[str, Call], device: torch.device, *, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Milliseconds of each variant, one sample a round; about ``seconds`` in all, 5+ rounds."""
    for call in variants.values():  # compilation, autotuning and first touches stay outside
        call()
        call()
    measure = _event_ms if device.type == "cuda" else _wall_ms
    flush = _cache_flush(device)
    first = {name: [measure(call, flush)] for name, call in variants.items()}
    round_ms = sum(samples[0] for samples in first.values())
    rounds = int(min(200, max(5, 1000 * seconds / max(round_ms, 1e-3))))
    timed: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            timed[name].append(measure(call, flush))
    return timed


# A process for one core, which naps for microseconds. It gives way to whatever else wants to run
# there, at once; if it never slept, the kernel would take all cores for busy and look for none that
# is free.
NAPS = """
import ctypes, os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
PR_SET_TIMERSLACK = 29
ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # nanoseconds; else naps last 50 us more
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        time.sleep(5e-6)
"""


@contextlib.contextmanager
def cores_awake() -> Iterator[bool]:
    """Keep this process' cores from falling asleep, as a server's are kept; yield whether it does.

    A core of a virtual machine that has slept for some milliseconds takes about as long to come
    back. Whoever waits for a thread there would be measured with it: a sum over 40 MB by two
    threads of torch took 8 ms in place of 1. Linux only. Where two of the cores are one with two
    threads, the naps take a little of what the other thread has.
    """
    if not hasattr(os, "SCHED_IDLE"):
        yield False
        return
    words, own = [sys.executable, "-S", "-c", NAPS], str(os.getpid())
    cores: list[subprocess.Popen[bytes]] = []
    try:
        for core in os.sched_getaffinity(0):
            # Not in the terminal's group: Ctrl-C is for the bench, and they end with it.
            call = [*words, str(core), own]
            cores.append(subprocess.Popen(call, start_new_session=True, stderr=subprocess.DEVNULL))
        yield all(_naps(process) for process in cores)
    finally:
        for process in cores:
            process.kill()
            process.wait()


def _naps(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process gets to its naps; it may not be let."""
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        if os.sched_getscheduler(process.pid) == os.SCHED_IDLE:
            return True
        time.sleep(0.01)
    return False


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median over rounds of time[over] / time[under]: how many times faster ``under`` is."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def _wall_ms(call: Call, flush: Call) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _event_ms(call: Call, flush: Call) -> float:
    flush()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _cache_flush(device: torch.device) -> Call:
    """On a GPU, overwrite more than its L2 between samples, so that inputs come from memory."""
    if device.type != "cuda":
        return lambda: None
    return torch.empty(256 << 20, dtype=torch.int8, device=device).zero_


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Memory that one call takes beyond what was there before; None where it cannot be told.

    A workspace that an implementation keeps between calls was there before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # else freed memory would count as there before
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the present
        before = _status_kib("VmRSS")
        call()
        return max(0, _status_kib("VmHWM") - before) * 1024
    except OSError:
        return None


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
