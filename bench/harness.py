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
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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


# A process for one core, which wakes it every 100 microseconds, when nobody else wants it.
NAPS = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        time.sleep(50e-6)
"""


class Cores:
    """This process' cores, which stay awake while it rests, as a server's do. Linux only.

    A core of a virtual machine that has slept for some milliseconds takes about as long to come
    back. Whoever waits for a thread there would be measured with it: a sum over 40 MB by two
    threads of torch took 8 ms in place of 1. Processes of the lowest priority wake the cores over
    and over. They are stopped before anything is timed, for they would take memory's rate from it.
    """

    def __init__(self) -> None:
        self._naps: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cores:
        if not hasattr(os, "SCHED_IDLE"):
            return self
        words, own = [sys.executable, "-S", "-c", NAPS], str(os.getpid())
        for core in os.sched_getaffinity(0):
            # Not in the terminal's group: Ctrl-C is for the bench, and they end with it.
            call = [*words, str(core), own]
            self._naps.append(
                subprocess.Popen(call, start_new_session=True, stderr=subprocess.DEVNULL)
            )
        if not all(map(_is_idle, self._naps)):  # they may not be let
            self.__exit__()
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        while self._naps:
            process = self._naps.pop()
            process.kill()
            process.wait()

    @property
    def awake(self) -> bool:
        """Whether they are kept awake."""
        return bool(self._naps)

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, on cores that stay awake."""
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._naps:
            process.send_signal(number)


def _is_idle(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process gets to the lowest priority."""
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
