"""The scorers that benches compare: formulas in torch, divse's implementations, two peers.

eager                    the formula in plain torch: matmul in the inputs' type, then reductions
compiled                 torch.compile of the same
reference                divse.score(impl="reference"): fp32 cosines whatever the input (CPU)
native                   divse.score(impl="native"), the C++ kernel (CPU)
triton                   divse.score(impl="triton"), the fused kernel (GPU)
cuda                     divse.score(impl="cuda"), the CUDA kernel (Hopper)
flash-maxsim             flash_maxsim.flash_maxsim_batched (GPU, MaxSim)
late-interaction-kernels late_interaction_kernels.maxsim (GPU, MaxSim)
matmul                   the cosines alone, unscored
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import divse
from divse.similarity.table import get_similarity

ALPHA = 16.0
Scorer = Callable[[Tensor, Tensor], Tensor]
#: Those that round their cosines to the inputs' type by design.
ROUNDING = ("eager", "compiled")


def parameters(similarity: str) -> dict[str, float]:
    """Keyword arguments of divse.score and of the formula."""
    return {"alpha": ALPHA} if similarity == "smooth_chamfer" else {}


def eager(queries: Tensor, gallery: Tensor, similarity: str = "smooth_chamfer") -> Tensor:
    """Scores (B, N) as one writes them in torch: materialises all cosines."""
    (b, k, d), (n, size, _) = queries.shape, gallery.shape
    cosines = queries.reshape(-1, d) @ gallery.reshape(-1, d).mT
    cosines = cosines if cosines.dtype == torch.float64 else cosines.float()
    cosines = cosines.view(b, k, n, size).transpose(1, 2)
    return get_similarity(similarity).reduce(cosines, **parameters(similarity))


def matmul(queries: Tensor, gallery: Tensor) -> Tensor:
    """The bare product (B K, N L) in the inputs' type."""
    return queries.flatten(0, 1) @ gallery.flatten(0, 1).mT


def plain(queries: Tensor, gallery: Tensor, similarity: str = "smooth_chamfer") -> Tensor:
    """The fp32 reference, which gates are held to.

    Tensor cores sum in fp32 but truncate, where a product of upcast operands rounds to nearest; so
    halves on a GPU are multiplied by them here too, if torch can (2.8).
    """
    kind = parameters(similarity)
    if queries.is_cuda and queries.dtype != torch.float32:
        with contextlib.suppress(TypeError):
            (b, k, d), (n, size, _) = queries.shape, gallery.shape
            sides = queries.reshape(-1, d), gallery.reshape(-1, d).mT
            cosines = torch.mm(*sides, out_dtype=torch.float32).view(b, k, n, size)
            return get_similarity(similarity).reduce(cosines.transpose(1, 2), **kind)
    return divse.score(queries, gallery, similarity, unit_norm=False, impl="reference", **kind)


def scorers(
    queries: Tensor,
    gallery: Tensor,
    compiled: bool,
    similarity: str = "smooth_chamfer",
    impls: Sequence[str] = ("reference", "native"),
) -> tuple[dict[str, Scorer], str]:
    """The variants that can serve these inputs, and a note on those that cannot."""
    formula = partial(eager, similarity=similarity)
    found: dict[str, Scorer] = {"eager": formula}
    if compiled:
        torch.compiler.reset()  # each shape gets its own program, as a user of that shape would
        found["compiled"] = torch.compile(formula, dynamic=False)
    notes = []
    for impl in impls:
        try:
            divse.explain(queries[:1], gallery[:1], similarity, impl=impl)
        except ValueError as error:
            notes.append(str(error))
            continue
        kind = parameters(similarity)
        found[impl] = partial(
            divse.score, similarity=similarity, unit_norm=False, impl=impl, **kind
        )
    for name, build in PEERS.items():
        if similarity == "maxsim" and queries.is_cuda:
            try:
                found[name] = build()
            except ImportError as error:
                notes.append(f"{name} is not installed ({error}): pip install {name}")
    return found, "; ".join(notes)


def _flash_maxsim() -> Scorer:
    # unpadded: it would raise short queries to 128 elements, which spares it autotuning only
    return partial(importlib.import_module("flash_maxsim").flash_maxsim_batched, pad_lq=False)


def _late_interaction_kernels() -> Scorer:
    return importlib.import_module("late_interaction_kernels").maxsim


PEERS: dict[str, Callable[[], Scorer]] = {
    "flash-maxsim": _flash_maxsim,
    "late-interaction-kernels": _late_interaction_kernels,
}
