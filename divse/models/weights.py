"""Tensors on disk: safetensors files with a JSON record, replaced atomically; never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 3  # lines of what does not fit


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content: a crash leaves the old or the new one, never a mixture."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Any = None) -> None:
    """Write named tensors and a JSON record atomically."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={"record": json.dumps(record)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read named tensors and the JSON record."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            record = json.loads((file.metadata() or {}).get("record", "null"))
            return {name: file.get_tensor(name) for name in names}, record
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): is it whole?") from None


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load a whole state dict; say what of it does not fit the settings beside it."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        more = f"; and {len(lines) - SHOWN} more lines" if len(lines) > SHOWN else ""
        raise ValueError(
            f"the weights of {where} do not fit its settings: {'; '.join(lines[:SHOWN])}{more}"
        ) from None


def fingerprint(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Hash named tensors and texts: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
