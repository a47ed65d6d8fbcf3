"""What somebody without a C++ compiler is told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "csrc"


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
@pytest.mark.skipif(not shutil.which("ninja"), reason="ninja is not installed")
def test_one_clear_sentence_without_a_compiler(tmp_path):
    ran = subprocess.run(
        ["cmake", "-S", SOURCE, "-B", tmp_path, "-G", "Ninja"],
        env=os.environ | {"CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    errors = ran.stderr.split("CMake Error")[1:]
    assert len(errors) == 1, ran.stderr
    assert "divse needs a C++17 compiler (GCC or Clang) and found none" in errors[0]


@pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-g++"), reason="g++-aarch64-linux-gnu is not installed"
)
def test_compiles_for_another_architecture():
    """What depends on the architecture: the kernels for any CPU, and who chooses them."""
    sources = [*SOURCE.glob("*baseline.cpp"), *SOURCE.glob("*dispatch.cpp")]
    assert SOURCE / "baseline.cpp" in sources and SOURCE / "dispatch.cpp" in sources
    command = ["aarch64-linux-gnu-g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-fsyntax-only", *sources], check=True, timeout=120)
