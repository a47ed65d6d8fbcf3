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
