"""A gallery in the memory of a GPU: copied once by a searcher, then searched many times.

Where it does not fit, the exact scan streams it from the host; the certified scan, which would save
nothing by streaming both codes and embeddings, needs it resident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from divse.search.segment import Segment
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, as_tensor, pad_elements

SHARE = 2  # at most one part in so many of the device's free memory is taken

Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Resident:
    """Sets (N, L, D) on a device in order of position, and their codes, scales and residuals."""

    sets: EmbeddingSets
    codes: Codes | None


def fits(snapshot: Snapshot, device: torch.device) -> bool:
    """Whether a device has room for the gallery, padded, with its codes."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return SHARE * _bytes(snapshot) <= free


def load(
    snapshot: Snapshot, device: torch.device, progress: Callable[[int], object] | None = None
) -> Resident:
    """Copy a gallery to a device, block by block."""
    dtype = getattr(torch, snapshot.manifest.dtype)
    shape = (len(snapshot), snapshot.k, snapshot.dim)
    values = torch.empty(shape, dtype=dtype, device=device)
    for first, block in snapshot.blocks():
        part = as_tensor(block.values)
        values[first : first + len(part), : part.shape[1]] = part.to(device)
        values[first : first + len(part), part.shape[1] :] = 0
        if progress is not None:
            progress(len(part))
    lengths = None
    if snapshot.ragged:
        lengths = torch.from_numpy(snapshot.set_sizes()).to(device)
    return Resident(EmbeddingSets(values, lengths), _codes(snapshot, device))


def _bytes(snapshot: Snapshot) -> int:
    itemsize = np.dtype(snapshot.manifest.dtype).itemsize
    element = snapshot.dim * itemsize + (snapshot.dim + 8 if snapshot.manifest.codes else 0)
    return len(snapshot) * snapshot.k * element


def _codes(snapshot: Snapshot, device: torch.device) -> Codes | None:
    if any(segment.int8 is None for segment in snapshot.segments):
        return None
    parts = [_padded(segment, snapshot.k) for segment in snapshot.segments]
    codes, scales, residuals = (
        torch.cat([as_tensor(part[field]).to(device) for part in parts]) for field in range(3)
    )
    return codes, scales, residuals


def _padded(segment: Segment, k: int) -> list[np.ndarray]:
    """Codes (n, k, D), scales and residuals (n, k) of a segment's sets, zero in the padding."""
    assert segment.int8 is not None
    rows = np.arange(segment.sets)
    if segment.offsets is None:
        return [array[segment.own(rows)] for array in segment.int8]
    elements, lengths = segment.element_index(rows), segment.lengths(rows)
    padded = []
    for array in segment.int8:
        flat = array[elements].reshape(len(elements), -1)
        sets = pad_elements(flat, lengths)
        sets = np.pad(sets, ((0, 0), (0, k - sets.shape[1]), (0, 0)))
        padded.append(sets if array.ndim == 2 else sets[..., 0])
    return padded
