"""A wheel built from the checkout works where the checkout is not."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("scikit_build_core", "pybind11", "cmake", "ninja")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

SEARCH = """
import numpy as np, divse, divse_native
from divse.similarity import certified
rng = np.random.default_rng(0)
def sets(n):
    x = rng.standard_normal((n, 4, 64)).astype("float32")
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
queries, gallery = sets(2), sets(300)
found = divse.search(queries, gallery, 5, impl="native")
for isa in divse_native.instruction_sets():
    again = divse_native.search(queries, gallery, 5, isa=isa)
    assert np.array_equal(again[1], found.ids)
proven = certified.search(queries, gallery, certified.encode(gallery), 5)
assert np.array_equal(proven.ids, found.ids) and proven.certified.all()
print(divse.__file__, divse_native.__file__, *divse_native.instruction_sets(), sep="\\n")
"""


def run(*command, **options):
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # -O0 builds in a fraction of the time; what is tested is what the wheel holds.
    options = ["-C", f"build-dir={folder}/build", "-C", "cmake.build-type=Debug"]
    run(
        *(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation"),
        *("-w", folder, "-q", *options),
        env=tools,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


def search_elsewhere(wheel, folder):
    """Run a search in an environment of its own that the wheel is unpacked into."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # torch and numpy are lent by this environment, wherever it has them itself, after the wheel's
    # own files.
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "lent.pth").write_text("\n".join(lent))
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    package, module, *isas = run(python, "-c", SEARCH, cwd=folder, env=clean).split()
    assert Path(package).is_relative_to(site) and Path(module).is_relative_to(site)
    assert isas[-1] == "baseline"


def test_wheel(wheel, tmp_path):  # one test, so that parallel workers build one wheel
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("divse/__init__.py", "divse/py.typed", "divse_kernels/__init__.py"):
        assert name in names
    assert any(name.startswith("divse_native.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "bench/"))]
    search_elsewhere(wheel, tmp_path)
    if importlib.util.find_spec("auditwheel") is not None:
        told = run(sys.executable, "-m", "auditwheel", "show", wheel)
        assert "manylinux" in told, told
