"""Features of a frozen encoder, computed once and kept on disk.

One float16 array (total, C) in `<name>.npy`, memory-mapped, with the rows of item i in
[offsets[i], offsets[i + 1]) of `<name>.offsets.npy`. The name carries a fingerprint of the
encoder's weights and of what it reads, so a store of other weights or data is never taken.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divse.data import Batches
from divse.models.features import Local
from divse.models.two_tower import Tower
from divse.models.weights import fingerprint

Rows = NDArray[np.int64]


class FeatureStore:
    """Read access: `take(rows)` gives Local features, padded with zeros."""

    def __init__(self, values: NDArray[np.float16], offsets: Rows) -> None:
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.offsets) - 1

    def take(self, rows: Rows, device: torch.device) -> Local:
        """Features (B, N, C) in fp32 and lengths (B,) of some items, on a device."""
        begins, ends = self.offsets[rows], self.offsets[rows + 1]
        lengths = ends - begins
        values = np.zeros((len(rows), int(lengths.max()), self.values.shape[1]), np.float16)
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            values[row, : end - begin] = self.values[begin:end]
        return Local(
            torch.from_numpy(values).to(device).float(), torch.from_numpy(lengths).to(device)
        )

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Memory-map a store."""
        return cls(np.load(path, mmap_mode="r"), np.load(offsets_path(path)))


def offsets_path(path: Path) -> Path:
    """Where the offsets of a store lie."""
    return path.with_suffix(".offsets.npy")


def write_store(path: Path, lengths: Rows, blocks: Iterable[NDArray[np.float16]]) -> FeatureStore:
    """Write packed blocks (n, C) of items with these lengths; the file appears when complete."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    partial, begin = path.with_suffix(f".{os.getpid()}.partial.npy"), 0
    values: Any = None
    for block in blocks:
        if values is None:
            shape = (int(offsets[-1]), block.shape[1])
            values = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        values[begin : begin + len(block)] = block
        begin += len(block)
    values.flush()
    np.save(offsets_path(path), offsets)
    partial.replace(path)  # last: a store with a name is whole
    return FeatureStore.open(path)


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
    key = fingerprint(backbone(tower), settings, *data.image_ids)
    path = folder / f"{data.split}-images-{key}.npy"
    if path.exists():
        return FeatureStore.open(path)

    def grids() -> Iterator[NDArray[np.float16]]:
        title = f"{data.split} pictures" + (", mirrored" if mirrored else "")
        total = -(-len(data) // batches.batch_size)
        for batch in progress(batches.in_order(), title, total):
            assert batch.pixels is not None
            pixels = batch.pixels.flip(3) if mirrored else batch.pixels
            yield packed(tower.local(pixels.to(device)))

    count = tower.local(first[:1].to(device)).values.shape[1]
    return write_store(path, np.full(len(data), count), grids())


@torch.no_grad()
def text_features(
    tower: Tower, batches: Batches, folder: Path, batch_size: int = 256
) -> FeatureStore:
    """Open or compute the token features of all captions of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    data, device = batches.data, next(tower.parameters()).device
    tokens, lengths = batches.tokens, batches.lengths
    key = fingerprint(backbone(tower), str(lengths.tolist()), *data.captions)
    path = folder / f"{data.split}-texts-{key}.npy"
    if path.exists():
        return FeatureStore.open(path)

    def states() -> Iterator[NDArray[np.float16]]:
        starts = range(0, len(tokens), batch_size)
        for begin in progress(starts, f"{data.split} captions", len(starts)):
            some = lengths[begin : begin + batch_size]
            ids = tokens[begin : begin + batch_size, : int(some.max())]
            yield packed(tower.local(ids.to(device), some.to(device)))

    return write_store(path, lengths.numpy(), states())


def backbone(tower: Tower) -> dict[str, Tensor]:
    """Weights that the features depend on."""
    return dict(tower.encoder.get_submodule("backbone").state_dict())


def progress(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Say that a frozen encoder runs, and show a bar if there is a terminal."""
    from tqdm import tqdm

    print(f"frozen encoder: {title}", flush=True)
    yield from tqdm(items, desc=title, total=total, disable=None, leave=False)
