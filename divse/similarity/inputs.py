"""What every public similarity function does to its arguments first: check, convert, normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.sets import Array, EmbeddingSets, as_tensor, check_sets, lengths_mask, normalize
from divse.similarity.table import Similarity


@dataclass(frozen=True)
class Sets:
    """Checked sets: values (N, K, D), lengths (N,) int64 on the same device, or None."""

    values: Tensor
    lengths: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """The mask (N, K) of real elements, or None."""
        return lengths_mask(self.lengths, self.values.shape[1])

    def clean(self) -> Tensor:
        """The values with padding set to zero, so that neither scores nor gradients see it."""
        mask = self.mask
        return self.values if mask is None else torch.where(mask[..., None], self.values, 0.0)

    def __getitem__(self, rows: slice) -> Sets:
        """Return the sets of a slice."""
        return Sets(self.values[rows], None if self.lengths is None else self.lengths[rows])


def read_sets(sets: Array | EmbeddingSets, lengths: Array | None, name: str) -> Sets:
    """Check ``sets`` and ``lengths`` and return them as tensors, taken as they are."""
    if isinstance(sets, EmbeddingSets):
        if lengths is not None:
            raise ValueError(f"{name}: EmbeddingSets carry their lengths; do not give them twice")
        lengths = sets.lengths
        sets = sets.values
    values = as_tensor(sets, name=name)
    sizes = None
    if lengths is not None:
        lengths = np.asarray(lengths) if isinstance(lengths, list | tuple) else lengths
        sizes = as_tensor(lengths, name=f"{name} lengths").to(values.device)
    check_sets(values, sizes, name)
    return Sets(values, None if sizes is None else sizes.to(torch.int64))


def read_pair(
    queries: Array | EmbeddingSets,
    gallery: Array | EmbeddingSets,
    query_lengths: Array | None,
    gallery_lengths: Array | None,
    unit_norm: bool,
) -> tuple[Sets, Sets]:
    """Read both sides, check that they fit each other, and normalise what is not yet of unit norm.

    EmbeddingSets hold unit vectors already and are never normalised again.
    """
    pair = []
    for sets, lengths, name in (
        (queries, query_lengths, "queries"),
        (gallery, gallery_lengths, "gallery"),
    ):
        read = read_sets(sets, lengths, name)
        if unit_norm and not isinstance(sets, EmbeddingSets):
            read = Sets(normalize(read.clean()), read.lengths)
        pair.append(read)
    q, g = pair
    if q.values.shape[2] != g.values.shape[2]:
        raise ValueError(
            f"queries have {q.values.shape[2]} dimensions and the gallery {g.values.shape[2]}: "
            "both must come from the same model"
        )
    if q.values.device != g.values.device:
        raise ValueError(
            f"queries are on {q.values.device} and the gallery on {g.values.device}: move one"
        )
    return q, g


def check_alpha(alpha: float | Tensor) -> float | Tensor:
    """Return alpha as a float in (0, 1000], or the tensor of one number that is to be learned."""
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1 or not alpha.is_floating_point():
            raise ValueError(f"alpha: got a tensor {tuple(alpha.shape)}, expected one number")
        if alpha.device.type == "cpu":  # on a GPU the look would wait for all work before it
            check_alpha(float(alpha.detach()))
        return alpha.reshape(())
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number):
        raise TypeError(f"alpha: got {type(alpha).__name__}, expected a number or a tensor")
    if not (math.isfinite(alpha) and 0 < alpha <= 1000):
        raise ValueError(f"alpha: got {alpha}, expected a number in (0, 1000]")
    return float(alpha)


def read_parameters(
    similarity: Similarity, alpha: float | Tensor, log_mean: bool, extra: dict[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments that ``similarity`` takes; refuse those that it does not."""
    unknown = set(extra) - similarity.parameters
    if unknown:
        takes = ", ".join(sorted(similarity.parameters)) or "no parameters"
        raise TypeError(f"{similarity.name} takes {takes}; got {', '.join(sorted(unknown))}")
    given = dict(extra)
    if "alpha" in similarity.parameters:
        given["alpha"] = check_alpha(alpha)
        given["log_mean"] = bool(log_mean)
    elif log_mean:
        raise ValueError(f"{similarity.name} has no logarithm: log_mean serves smooth_chamfer only")
    return given


def like(result: Tensor, *inputs: Array | EmbeddingSets) -> Any:
    """Return ``result`` as numpy if every input was numpy, else as the tensor that it is."""
    values = [i.values if isinstance(i, EmbeddingSets) else i for i in inputs]
    if all(isinstance(v, np.ndarray) for v in values):
        return result.detach().cpu().numpy()
    return result


def read_excluded(excluded: Array, gallery: Tensor) -> Tensor:
    """Return the bitmap of a mask (N,) of the sets that a search leaves out."""
    mask = torch.as_tensor(excluded).to(gallery.device)
    if mask.dtype != torch.bool or mask.shape != (len(gallery),):
        raise ValueError(
            f"excluded: got {mask.dtype} {tuple(mask.shape)}, expected bool ({len(gallery)},)"
        )
    return bitmap(mask)


def bitmap(mask: Tensor) -> Tensor:
    """Pack (N,) bools into bytes, the first in the lowest bit."""
    bits = torch.nn.functional.pad(mask, (0, -len(mask) % 8)).view(-1, 8).to(torch.uint8)
    weights = 2 ** torch.arange(8, device=mask.device, dtype=torch.uint8)
    return (bits * weights).sum(1, dtype=torch.uint8)
