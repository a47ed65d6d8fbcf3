"""Sets of embeddings: the one data type that the whole project speaks.

Shape legend, used in every docstring of divse:

    B  number of query sets          N  number of gallery sets
    K  elements of a query set       L  elements of a gallery set
    D  dimensions of an element      topk  number of results of a search

A batch of sets is ``values`` (N, K, D); where sets differ in size, ``lengths`` (N,) says how many
elements of each row are real. What lies past a set's length never matters, not even NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any] | torch.Tensor


def lengths_mask(lengths: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """Return the mask (N, size) of real elements, True where ``position < length``; None if all."""
    if lengths is None:
        return None
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def as_tensor(array: Array, *, name: str = "embeddings") -> torch.Tensor:
    """View a numpy array or tensor as a tensor, without a copy (read-only memory maps too)."""
    if isinstance(array, torch.Tensor):
        return array
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        raise TypeError(f"{name}: got {kind}, expected a numpy array or a torch tensor")
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: got dtype {array.dtype}, expected floating-point numbers")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        # torch only warns that a read-only array must not be written; nothing here writes.
        # A writable view of the same memory avoids the process-wide warning filters.
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        array = np.asarray(_Borrowed(interface, array))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


class _Borrowed:
    """The memory of a read-only array, offered through the array interface; keeps its owner."""

    def __init__(self, interface: dict[str, Any], owner: Array) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def check_sets(values: torch.Tensor, lengths: torch.Tensor | None, name: str) -> None:
    """Raise ValueError/TypeError unless ``values`` is (N, K, D) with fitting ``lengths`` (N,)."""
    if values.ndim != 3:
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)}, expected (sets, elements, dimensions); "
            "single vectors become sets of one element by x[:, None, :]"
        )
    if not values.is_floating_point():
        raise TypeError(f"{name}: got {values.dtype}, expected floating-point numbers")
    if values.shape[1] == 0 or values.shape[2] == 0:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}; empty sets are refused")
    if lengths is None:
        return
    if lengths.shape != values.shape[:1]:
        raise ValueError(
            f"{name} lengths: got shape {tuple(lengths.shape)}, expected ({len(values)},)"
        )
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} lengths: got {lengths.dtype}, expected integers")
    wrong = (lengths < 1) | (lengths > values.shape[1])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} lengths: set {row} has length {int(lengths[row])}, expected 1 to "
            f"{values.shape[1]}; empty sets are refused"
        )


def _are_floats(values: Array) -> bool:
    """Whether an array or tensor is what ``check_sets`` takes, told in a microsecond."""
    if not isinstance(values, np.ndarray | torch.Tensor) or values.ndim != 3:
        return False
    if isinstance(values, np.ndarray):
        kind = values.dtype in (np.float32, np.float16, np.float64)
    else:
        kind = values.is_floating_point()
    return kind and values.shape[1] * values.shape[2] > 0


def normalize(values: torch.Tensor) -> torch.Tensor:
    """L2-normalise the last axis in fp32 (fp64 for fp64 input); same dtype out; differentiable."""
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.nn.functional.normalize(wide, dim=-1).to(values.dtype)


@dataclass(frozen=True, eq=False)
class EmbeddingSets:
    """N sets of up to K unit vectors of D dimensions.

    ``values`` (N, K, D) is a torch tensor or a numpy array (also memory-mapped) whose real
    elements have unit norm; ``lengths`` (N,) integers, or None when every set has K elements.
    The constructor takes unit vectors as they are; :meth:`of` checks and normalises.
    """

    values: Array
    lengths: Array | None = None

    def __post_init__(self) -> None:
        """Check shapes and types; contents are checked by :meth:`of`."""
        if self.lengths is None and _are_floats(self.values):
            return
        lengths = None if self.lengths is None else as_tensor(self.lengths, name="lengths")
        check_sets(as_tensor(self.values), lengths, "EmbeddingSets")

    @classmethod
    def of(cls, values: Array, lengths: Array | None = None) -> EmbeddingSets:
        """Normalise ``values`` (N, K, D) in fp32 and return the sets, of the same kind and dtype.

        Raises ValueError naming the set and element if one is zero or not finite.
        """
        tensor = as_tensor(values)
        sizes = None if lengths is None else as_tensor(lengths, name="lengths")
        check_sets(tensor, sizes, "EmbeddingSets")
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        mask = lengths_mask(sizes, tensor.shape[1])
        if mask is not None:
            wide = torch.where(mask[..., None].to(wide.device), wide, 0.0)
        norms = wide.norm(dim=-1)
        bad = ~torch.isfinite(norms) | (norms == 0)
        if mask is not None:
            bad &= mask.to(bad.device)
        if bool(bad.any()):
            row, element = (int(i) for i in bad.nonzero()[0])
            what = "zero" if norms[row, element] == 0 else "not finite"
            raise ValueError(
                f"element {element} of set {row} is {what} ({int(bad.sum())} such elements): every "
                "element needs a direction; leave it out of the set or shorten its length"
            )
        unit = (wide / norms.clamp_min(torch.finfo(norms.dtype).tiny)[..., None]).to(tensor.dtype)
        if isinstance(values, np.ndarray):
            return cls(unit.numpy(), lengths)
        return cls(unit, lengths)

    def __len__(self) -> int:
        """Return N, the number of sets."""
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        """The largest number of elements of a set (K)."""
        return int(self.values.shape[1])

    @property
    def dim(self) -> int:
        """Dimensions of an element (D)."""
        return int(self.values.shape[2])

    def __getitem__(self, rows: Any) -> EmbeddingSets:
        """Return the sets at ``rows`` (a slice, an int or an index array), still as sets."""
        if isinstance(rows, int | np.integer):
            row = range(len(self))[int(rows)]  # IndexError past the end, so iteration ends
            rows = slice(row, row + 1)
        lengths = None if self.lengths is None else self.lengths[rows]
        return EmbeddingSets(self.values[rows], lengths)

    def torch(self, device: torch.device | str | None = None) -> EmbeddingSets:
        """Return the same sets as torch tensors, on ``device`` if given."""
        values = as_tensor(self.values).to(device)
        if self.lengths is None:
            return EmbeddingSets(values)
        return EmbeddingSets(values, as_tensor(self.lengths, name="lengths").to(device))

    def numpy(self) -> EmbeddingSets:
        """Return the same sets as numpy arrays (detached, on the host; bfloat16 becomes fp32)."""

        def host(array: Array | None) -> Array | None:
            if not isinstance(array, torch.Tensor):
                return array
            array = array.detach().cpu()
            return (array.float() if array.dtype == torch.bfloat16 else array).numpy()

        values = host(self.values)
        assert values is not None
        return EmbeddingSets(values, host(self.lengths))

    @staticmethod
    def cat(parts: Iterable[EmbeddingSets]) -> EmbeddingSets:
        """Join sets one after another; smaller ones are padded to the largest K."""
        blocks = [part.torch() for part in parts]
        if not blocks:
            raise ValueError("EmbeddingSets.cat: got nothing to join")
        k = max(block.k for block in blocks)
        ragged = any(block.lengths is not None or block.k != k for block in blocks)
        values, lengths = [], []
        for block in blocks:
            tensor = as_tensor(block.values)
            values.append(torch.nn.functional.pad(tensor, (0, 0, 0, k - block.k)))
            own = torch.full((len(block),), block.k, device=tensor.device)
            lengths.append(own if block.lengths is None else as_tensor(block.lengths))
        return EmbeddingSets(torch.cat(values), torch.cat(lengths) if ragged else None)


def unpad_elements(sets: EmbeddingSets) -> tuple[np.ndarray, np.ndarray]:
    """Return the real elements (total, D) of sets of numpy arrays, and lengths (N,) int64."""
    values = np.asarray(sets.values)
    if sets.lengths is None:
        return values.reshape(-1, sets.dim), np.full(len(sets), sets.k, np.int64)
    lengths = np.asarray(sets.lengths, np.int64)
    return values[np.arange(sets.k) < lengths[:, None]], lengths


def pad_elements(elements: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return packed elements (total, D) of sets of ``lengths`` (N,) as (N, K, D), zero-padded."""
    real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    values = np.zeros((*real.shape, elements.shape[1]), elements.dtype)
    values[real] = elements
    return values
