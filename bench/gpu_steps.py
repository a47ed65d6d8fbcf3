"""What `make gpu` and `make gpu-full` run: processes with time limits, the most telling first."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from report import ROOT

NATIVE = ROOT / "build" / "bench-native"
BENCH = ROOT / "bench"
PARTS = 6  # of the full run


@dataclass(frozen=True)
class Step:
    """A program to run; `{out}` in its words or environment becomes a folder.

    JSON files that it leaves there are collected.
    """

    name: str
    words: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a step without which this one is left out


class Steps:
    """The steps for a GPU, or the same ones on a CPU with tiny shapes: a rehearsal."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = "cpu" if rehearse else "cuda"
        self.interpreter = {"TRITON_INTERPRET": "1"} if rehearse else {}

    def script(self, name: str, *words: str) -> list[str]:
        """A bench that takes --device and --out."""
        shared = ["--device", self.device, "--out", "{out}"]
        return [sys.executable, str(BENCH / f"{name}.py"), *words, *shared]

    def measured(self, name: str, *words: str, seconds: float = 1.0) -> list[str]:
        """A bench that times; a rehearsal gives it tiny shapes and no compiler."""
        tiny = ["--tiny", "--no-compile", "--seconds", "0.05"]
        return self.script(name, *(tiny if self.rehearse else ["--seconds", str(seconds)]), *words)

    def python(self, name: str, *words: str) -> list[str]:
        """A script without the arguments of benches."""
        return [sys.executable, str(BENCH / f"{name}.py"), *words]

    def small(self, words: str, instead: str = "") -> list[str]:
        """Words on a GPU, others in a rehearsal."""
        return (instead if self.rehearse else words).split()

    def pytest(self) -> list[str]:
        """pytest as it serves here: every failure told, warnings of other versions let through."""
        words = [sys.executable, "-m", "pytest", "-ra", "--tb=short", "-p", "no:cacheprovider"]
        words += ["-W", "default", "--continue-on-collection-errors"]
        if self.rehearse:
            return [*words, "--collect-only", "-q"]
        parallel = importlib.util.find_spec("xdist") is not None  # compiling keeps the CPU busy
        return [*words, "-n", "8"] if parallel else words

    def hopper(self) -> Iterator[Step]:
        """The CUDA kernel, in processes of its own: what goes wrong there spoils nothing else."""
        if torch.cuda.is_available() and not on_hopper():
            return
        first, cuda = "first cuda", self.cuda()
        few = self.small("", "--few")
        yield Step(first, self.script("small_launches", *few, *cuda), 40, self.interpreter)
        tests = [*self.pytest(), "-m", "gpu", str(ROOT / "tests" / "test_hopper.py")]
        scores = self.measured("bench_score", "--no-compile", *cuda)
        memory = self.python("sanitize", "--tools", "memcheck", *cuda)
        yield Step("score cuda", scores, 60, needs=first)
        yield Step("hopper", tests, 60, needs=first)
        yield Step("memcheck cuda", memory, 60, needs=first)

    def cuda(self) -> list[str]:
        """The CUDA kernel in place of Triton's; a rehearsal has none."""
        return self.small("--impl cuda")

    def train(self) -> list[str]:
        """A short real training run whose scores come from the Triton kernels."""
        words = [sys.executable, str(ROOT / "train.py"), "--preset", "scenes", "--out", "{out}/run"]
        words += ["--train.device", self.device, "--train.gallery", "false", "--epochs", "1"]
        words += self.small("--impl triton", "--impl reference --data.options pictures=40")
        return words

    def build(self) -> Iterator[Step]:
        """The C++ module, where it is not installed: without pip, which may have no network."""
        if not installed():
            yield Step("build", ["sh", "-c", build_command()], 120)

    def chosen(self) -> Iterator[Step]:
        """Within eight minutes: correctness, the chosen shapes, both programs for real."""
        yield from self.build()
        # on a GPU the kernels' own tests run there, compiled; on a CPU they run in the interpreter
        kernels = [str(path) for path in sorted((ROOT / "tests").glob("test_triton*.py"))]
        yield Step("kernels", [*self.pytest(), *kernels], 150)
        few = self.small("", "--few")
        yield Step("small", self.script("small_launches", *few), 60, self.interpreter)
        yield Step("score", self.measured("bench_score"), 110)
        yield from self.hopper()
        yield Step("training", self.measured("bench_training"), 70)
        sizes = self.small("--seconds 1", "--tiny --seconds 0.05")
        yield Step("search", self.script("bench_search_gpu", *sizes), 70, self.interpreter)
        yield Step("memcheck", self.python("sanitize", "--tools", "memcheck"), 60)
        triton = self.script("through_triton", *self.small("", "--tiny"))
        yield Step("triton", triton, 50, self.interpreter)
        sets = self.small("--sets 20000", "--sets 40")
        yield Step("divse-search", self.script("search_cli", *sets), 45, self.interpreter)
        yield Step("train", self.train(), 60)
        runs = self.small("--runs 5", "--runs 1")
        yield Step("first call", self.script("first_call", *runs), 40, self.interpreter)
        yield Step("tests", [*self.pytest(), "-m", "gpu", str(ROOT / "tests")], 60)
        yield self.tune(10, 60)
        yield self.choose()
        yield Step("racecheck", self.python("sanitize", "--tools", "racecheck", "--few"), 60)
        yield Step("roofline", self.script("roofline", *self.small("", "--small")), 20)

    def tune(self, seconds: float, limit: float) -> Step:
        """Autotuning of the main shapes, its winners kept; a rehearsal has no device for it."""
        words = [sys.executable, "-m", "divse_kernels.autotune"]
        words += ["--help"] if self.rehearse else ["--seconds", str(seconds), "--cuda", "never"]
        return Step("tune", words, limit, {"DIVSE_CACHE": "{out}"})

    def choose(self) -> Step:
        """Triton or CUDA, shape by shape, and what was found kept."""
        words = [sys.executable, "-m", "divse_kernels.autotune"]
        words += ["--help"] if self.rehearse else ["--cuda", "only"]
        return Step("choose", words, 40, {"DIVSE_CACHE": "{out}"})

    def full(self, part: int) -> Iterator[Step]:
        """Part 1 to 6 of what takes longer, each within eight minutes."""
        yield from self.build()
        if part <= 4:
            grid = self.measured("bench_score", "--full", "--part", f"{part}/4", seconds=0.5)
            yield Step(f"score {part} of 4", grid, 450)
        elif part == 5:
            yield Step("training", self.measured("bench_training", "--full"), 240)
            sizes = self.small("--full --seconds 1", "--tiny --seconds 0.05")
            yield Step("search", self.script("bench_search_gpu", *sizes), 220, self.interpreter)
        else:
            yield self.tune(30, 200)
            yield self.choose()
            tools = ["racecheck", "initcheck", "synccheck"]
            yield Step("sanitize", self.python("sanitize", "--tools", *tools), 150)
            yield Step("sass", self.python("sass", *self.small("--budgets", "--help")), 80)


def installed() -> bool:
    """Whether the compiled modules are installed; else they are built here, in `NATIVE`."""
    needed = ["divse_native"]
    if on_hopper() and shutil.which("nvcc"):
        needed.append("divse_cuda")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def on_hopper() -> bool:
    """Whether the CUDA kernel is for this machine."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def build_command() -> str:
    """Build the C++ module with what a machine without a network has."""
    build, python = NATIVE, sys.executable
    return (
        f'cmake -S "{ROOT}/csrc" -B "{build}" -G Ninja -DPython_EXECUTABLE="{python}" '
        f'-Dpybind11_DIR="$("{python}" -m pybind11 --cmakedir)" && cmake --build "{build}" -- -k 0'
    )
