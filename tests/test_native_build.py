"""What somebody without a C++ compiler is told."""

import os
import re
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


CROSS = "aarch64-linux-gnu-g++"
of_another_architecture = pytest.mark.skipif(
    not shutil.which(CROSS), reason="g++-aarch64-linux-gnu is not installed"
)


def cross_compile(*words):
    command = (CROSS, "-std=c++17", "-Wall", "-Wextra", "-Werror", *words)
    subprocess.run(command, check=True, timeout=300)


@of_another_architecture
def test_kernels_for_any_cpu_become_vector_instructions_of_another(tmp_path):
    """What depends on the architecture: the kernels for any CPU, and who chooses them."""
    for name in ("baseline", "int8_baseline"):
        cross_compile("-O3", "-ffp-contract=fast", "-S", SOURCE / f"{name}.cpp", "-o",
                      tmp_path / f"{name}.s")  # fmt: skip
    products = {
        "baseline": r"\tfmla\tv\d+\.4s",  # of four floats, summed
        "int8_baseline": r"\tml[as]\tv\d+\.4s|\tsm[lu]\w+\tv\d+\.4s",
    }
    for name, product in products.items():
        assert len(re.findall(product, (tmp_path / f"{name}.s").read_text())) > 20, name


@of_another_architecture
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="qemu-user is not installed")
def test_searches_on_another_architecture(tmp_path):
    """All of csrc but what Python needs, run by an emulator."""
    needs_python = ("bindings.cpp", "int8_bindings.cpp", "arguments.cpp")
    x86 = ("avx2.cpp", "int8_avx2.cpp", "avx512.cpp", "avx512_vnni.cpp")
    sources = [s for s in SOURCE.glob("*.cpp") if s.name not in (*needs_python, *x86)]
    program = tmp_path / "search"
    main = Path(__file__).with_name("another_architecture.cpp")
    cross_compile("-O1", "-static", f"-I{SOURCE}", main, *sources, "-lpthread", "-o", program)
    ran = subprocess.run(["qemu-aarch64", program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.count("sets scored exactly") == 2
