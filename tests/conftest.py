"""Without a GPU the Triton kernels run in the interpreter: chosen before triton is imported."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

pytest_plugins = ["cli_cases", "eval_cases", "hopper_cases", "searcher_cases"]
BENCH = Path(__file__).resolve().parents[1] / "bench"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would ask the hub fails at once
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; `make gpu` runs these")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def load(monkeypatch):
    """Import a bench script by its file name, as `python bench/NAME.py` would."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture
def run(load, monkeypatch, capsys):
    """Run a bench script's main in this process -> (exit status, what it printed)."""

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        return load(name).main(), capsys.readouterr().out

    return call
