"""The arrows of the project point down only, and `import divse` needs torch and numpy alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each room may import itself and the rooms named here.
BELOW = {
    "divse_kernels": set(),
    "divse.sets": set(),
    "divse.npy": set(),
    "divse.similarity": {"divse.sets", "divse_kernels", "divse_native"},
}
BELOW["divse.data"] = BELOW["divse.models"] = {
    "divse.npy",
    "divse.similarity",
    *BELOW["divse.similarity"],
}
BELOW["divse.search"] = BELOW["divse.data"]
BELOW["divse.evaluation"] = {"divse.models", "divse.data", *BELOW["divse.data"]}
BELOW["divse.encoder"] = BELOW["divse.evaluation"]
BELOW["divse.training"] = {"divse.evaluation", "divse.encoder", *BELOW["divse.evaluation"]}
BELOW["divse.plots"] = {"divse.training", *BELOW["divse.training"]}
BELOW["divse.cli"] = {"divse.search", "divse.plots", *BELOW["divse.plots"]}
LAZY = {
    *("duckdb", "faiss", "triton", "timm", "transformers", "tensorboard", "matplotlib", "scipy"),
    *("sklearn", "umap"),
    *(
        "pyarrow",
        "PIL",
        "safetensors",
        "tqdm",
        "torchvision",
        "huggingface_hub",
        "divse_native",
        "divse_kernels",
    ),
}


def room(module: str) -> str | None:
    for name in sorted(BELOW, key=len, reverse=True):
        if module == name or module.startswith(name + "."):
            return name
    return "divse_native" if module == "divse_native" else None


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top level) of every import; names of `from divse import x` too."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module, id(node) in top))
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


SOURCES = [
    (path, ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"))
    for base, folder in ((ROOT, "divse"), (ROOT / "kernels", "divse_kernels"))
    for path in sorted((base / folder).rglob("*.py"))
]


@pytest.mark.parametrize(("path", "module"), SOURCES, ids=[m for _, m in SOURCES])
def test_arrows_point_down(path, module):
    own = room(module)
    if module == "divse":
        return
    assert own is not None, f"{module} is in no room of BELOW"
    for imported, at_top in imports(path):
        other = room(imported)
        if other not in (None, own):
            assert other in BELOW[own], f"{module} must not import {imported}"
        if imported.split(".")[0] in LAZY and module.startswith("divse."):
            assert not at_top, f"{module} must import {imported} where it is used"


def test_import_divse_needs_torch_and_numpy_alone():
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(LAZY | {"typer", "rich", "pydantic"})!r}:
            raise ImportError("refused: " + name)
import torch
loaded = set(sys.modules)
sys.meta_path.insert(0, Refuse())
import divse
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
assert new <= {{"divse"}} | set(sys.stdlib_module_names), new
import numpy as np
x = np.eye(8, dtype=np.float32)[None]
print(divse.score(x, x).shape, divse.explain(x, x).impl)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(1,", "1)", "reference"]


@pytest.mark.parametrize("program", ["app", "data_app", "eval_app", "plot_app"])
def test_help_loads_no_heavy_package(program):
    """Nor does completion in a shell, which asks the program at every tab."""
    code = f"""
import sys
from divse.cli.{program} import app, main
commands = [info.name or info.callback.__name__ for info in app.registered_commands]
several = [[name, "--help"] for name in commands] if len(commands) > 1 else []
for words in (["--help"], *several):
    try:
        main(words)
    except SystemExit as done:
        assert not done.code, words
heavy = {{"torch", "numpy", "pyarrow", "faiss", "PIL", "divse_native"}} & set(sys.modules)
assert not heavy, heavy
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "a PyPI package is called kernels"
