"""The CUDA kernel for Hopper on an emulated machine: tests/hopper/emulate.cpp, built when asked."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Emulated:
    """What divse_cuda offers, computed by an emulated cluster of Hopper's blocks on the CPU.

    `clusters` work side by side, as they would on as many pairs of processors; `seed` draws the
    order of everything that the machine leaves open.
    """

    def __init__(self, library: Path) -> None:
        self.function = ctypes.CDLL(str(library)).emulate
        self.function.restype = ctypes.c_char_p
        self.clusters, self.seed, self.calls = 1, 0, 0

    def smooth_chamfer(self, rows, columns, half, scores, strides, alpha, log_mean, stream):
        sides = (ctypes.c_int64 * 12)(*rows[1:], *columns[1:], *strides)
        pointers = [ctypes.c_void_p(at) for at in (rows[0], columns[0], scores)]
        self.calls += 1
        failure = self.function(
            *pointers[:2],
            ctypes.c_bool(half),
            sides,
            pointers[2],
            ctypes.c_float(alpha),
            ctypes.c_bool(log_mean),
            ctypes.c_int(self.clusters),
            ctypes.c_uint(self.seed),
        )
        if failure:
            raise RuntimeError(failure.decode())


def build(folder: Path, changes: dict[str, str] | None = None) -> Emulated:
    """Compile the emulated kernel in a folder, with some text of scores.h replaced."""
    for part in ("csrc/cuda", "tests/hopper"):
        shutil.copytree(ROOT / part, folder / part)
    source = folder / "csrc" / "cuda" / "scores.h"
    text = source.read_text()
    for old, new in (changes or {}).items():
        assert text.count(old) == 1, f"{old!r} is not once in scores.h"
        text = text.replace(old, new)
    source.write_text(text)
    library = folder / "emulate.so"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-shared", "-fPIC", str(folder / "tests/hopper/emulate.cpp"), "-o", str(library)]
    subprocess.run(command, check=True, timeout=300)
    return Emulated(library)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the emulated kernel needs it")
    return build(tmp_path_factory.mktemp("hopper"))


@pytest.fixture
def emulated(emulated_library):
    """One cluster, seed 0; a test may change both."""
    emulated_library.clusters, emulated_library.seed = 1, 0
    return emulated_library
