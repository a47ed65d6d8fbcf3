"""Launches without a GPU: launchers run on tensors without data, their kernels are only compiled.

    with dry_launch("sm_90") as launched:
        forward.scores(Side.of(torch.empty(1024, 4, 1024, device="meta"), None), ...)
    launched[0].kernel.asm["cubin"]

What is compiled is what a launch on such a device would run: the launcher itself chooses the tile,
the types, the alignments and the compile-time arguments. A launcher must not look at values.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # A100, H100, B200


@dataclass(frozen=True)
class Launch:
    """A kernel as it would have been launched: its name, grid and compiled code."""

    name: str
    grid: tuple[int, ...]
    kernel: Any

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments by name."""
        names, values = self.kernel.src.fn.arg_names, self.kernel.src.constants
        return {names[path[0]]: value for path, value in values.items() if len(path) == 1}

    @property
    def blocks(self) -> list[str]:
        """Which of them are the sides of the tile."""
        return [name for name in self.constants if name.startswith("BLOCK_")]


class AbsentDevice:
    """What Triton asks of a driver before it launches; a device number stands for its arch."""

    def __init__(self, arch: str) -> None:
        major, minor = CAPABILITIES[arch]
        self.number = major * 10 + minor  # Triton keeps compiled kernels apart by device

    def get_current_device(self) -> int:
        """Every thread's device."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """No stream is ever used."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.number, 32)


class _Records(threading.local):
    """Launches of this thread: several threads may compile at once."""

    launches: list[Launch]


_records = _Records()


@contextlib.contextmanager
def absent_device(arch: str) -> Iterator[None]:
    """Let Triton and torch believe in a device of that architecture; for a whole process."""
    if torch.cuda.is_initialized():
        raise RuntimeError("absent_device: this process already uses a GPU; start another one")
    properties = SimpleNamespace(
        name=arch,
        multi_processor_count=PROCESSORS[arch],
        major=CAPABILITIES[arch][0],
        minor=CAPABILITIES[arch][1],
        total_memory=80 << 30,
    )
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        _records.launches.append(Launch(self.fn.__name__, tuple(grid), kernel))
        return kernel

    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: CAPABILITIES[arch]),
        mock.patch.object(torch.cuda, "get_device_properties", lambda *_: properties),
        mock.patch.object(torch.cuda, "get_device_name", lambda *_: arch),
    ):
        driver.set_active(AbsentDevice(arch))
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # no device is there
                driver.reset_active()


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect this thread's launches; inside `absent_device`."""
    _records.launches = launched = []
    yield launched
