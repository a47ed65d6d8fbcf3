"""Without a GPU the Triton kernels run in the interpreter: chosen before triton is imported."""

import os

import pytest
import torch

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
