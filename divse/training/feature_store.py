"""Features of a frozen encoder, computed once and kept on disk.

A store is a file of divse.data.packed. Its name carries a fingerprint of the encoder's weights and
of what it reads, so a store of other weights or data is never taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divse.data import Batches
from divse.data.packed import Block, Lengths, Packed, write_packed
from divse.models.features import Local
from divse.models.two_tower import Tower
from divse.models.weights import fingerprint

Item = TypeVar("Item")


class FeatureStore:
    """Read access: `take(rows)` gives Local features, padded with zeros."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.packed)

    def take(self, rows: Lengths, device: torch.device) -> Local:
        """Features (B, N, C) in fp32 and lengths (B,) of some items, on a device."""
        values, lengths = self.packed.take(rows)
        return Local(
            torch.from_numpy(values).to(device).float(), torch.from_numpy(lengths).to(device)
        )

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Memory-map a store."""
        return cls(Packed.open(path))


def packed(local: Local) -> NDArray[np.float16]:
    """Real rows of local features, one item after the other: (sum of lengths, C)."""
    values, lengths = local
    if lengths is None:
        rows = values.flatten(0, 1)
    else:
        real = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        rows = values[real]
    return rows.half().cpu().numpy()


@torch.no_grad()
def image_features(
    tower: Tower, batches: Batches, folder: Path, mirrored: bool = False
) -> FeatureStore:
    """Open or compute the grids of all pictures of a split (`batches` with pixels)."""
    folder.mkdir(parents=True, exist_ok=True)
    data, device = batches.data, next(tower.parameters()).device
    first = next(batches.in_order()).pixels
    assert first is not None
    channels = tower.encoder.input_dim  # tells which maps are taken
    pixels = zlib.crc32(first.numpy().tobytes())  # tells data of other contents, same names
    settings = f"{batches.size} {mirrored} {channels} {pixels}"
    if batches.crop_pct:
        settings += f" crop_pct {batches.crop_pct}"
    key = fingerprint(backbone(tower), settings, *data.image_ids)

    def grids(done: int) -> Iterator[Block]:
        title = f"{data.split} pictures" + (", mirrored" if mirrored else "")
        for batch in progress(batches.in_order(done), title, done, len(data), batches.batch_size):
            assert batch.pixels is not None
            pixels = batch.pixels.flip(3) if mirrored else batch.pixels
            local = tower.local(pixels.to(device))
            yield packed(local), np.full(len(pixels), local.values.shape[1])

    path = folder / f"{data.split}-images-{key}.npy"
    return FeatureStore(write_packed(path, grids))


@torch.no_grad()
def text_features(
    tower: Tower, batches: Batches, folder: Path, batch_size: int = 256
) -> FeatureStore:
    """Open or compute the token features of all captions of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    data, device = batches.data, next(tower.parameters()).device
    tokens, lengths = batches.tokens, batches.lengths
    key = fingerprint(backbone(tower), str(lengths.tolist()), *data.captions)

    def states(done: int) -> Iterator[Block]:
        starts = range(done, len(tokens), batch_size)
        for begin in progress(starts, f"{data.split} captions", done, len(tokens), batch_size):
            some = lengths[begin : begin + batch_size]
            ids = tokens[begin : begin + batch_size, : int(some.max())]
            yield packed(tower.local(ids.to(device), some.to(device))), some.numpy()

    path = folder / f"{data.split}-texts-{key}.npy"
    return FeatureStore(write_packed(path, states))


def backbone(tower: Tower) -> dict[str, Tensor]:
    """Weights that the features depend on."""
    return dict(tower.encoder.get_submodule("backbone").state_dict())


def progress(items: Iterable[Item], title: str, done: int, total: int, step: int) -> Iterator[Item]:
    """Say that a frozen encoder runs, and show a bar if there is a terminal."""
    from tqdm import tqdm

    print(f"frozen encoder: {title}" + (f", from {done}" if done else ""), flush=True)
    with tqdm(desc=title, initial=done, total=total, disable=None, leave=False) as bar:
        for item in items:
            yield item
            bar.update(step)
