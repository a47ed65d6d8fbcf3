"""Supervision measured on trained runs: the same sets under each similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from divse.plots.supervision import ORDER, Shares
from divse.plots.table import NAMES
from divse.plots.trained import TrainedRun
from divse.training.run import cache_folder
from divse.training.split import Split
from divse.training.supervision import split_supervision

SIMILARITIES = {NAMES[name]: name for name in ("mil", "chamfer", "smooth_chamfer", "mp")}


def measured_shares(folders: Sequence[Path], data: str = "", pictures: int = 0) -> list[Shares]:
    """Shares on the test batches of some runs, seeds of one model, one after the other."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in ORDER}
    for folder in folders:
        trained = TrainedRun.open(folder, "test", data, pictures)
        model, config = trained.encoder.model, trained.config
        cache = cache_folder(config, folder)
        split = Split.prepare(trained.data, trained.encoder.tokenizer, model, config, cache)
        for name in ORDER:
            shares = split_supervision(model, split, config, SIMILARITIES[name])
            found[name].append((shares.images.numpy(), shares.texts.numpy()))
    sizes = {len(images) for runs in found.values() for images, _ in runs}
    if len(sizes) != 1:
        raise ValueError(f"runs: have sets of {sorted(sizes)} elements; give seeds of one model")
    return [
        Shares(name, *(np.stack([run[side] for run in runs]) for side in (0, 1)))
        for name, runs in found.items()
    ]


def source_of(folders: Sequence[Path]) -> str:
    """Where measured shares come from."""
    runs = f"{folders[0].resolve().name}: its"
    if len(folders) > 1:
        runs = f"{len(folders)} runs: their"
    return f"{runs} ranking loss on the test batches, by each similarity on the same sets."
