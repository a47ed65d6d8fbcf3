"""The table of similarities: a new one is a function of cosines and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from divse.similarity import reference


@dataclass(frozen=True)
class Similarity:
    """A similarity of two sets.

    ``reduce`` turns cosines (..., K, L) and masks into scores (...), ``parameters`` are the
    keyword arguments it takes, ``symmetric`` says whether both sets may change places, ``fused``
    names the implementations that serve it without a matrix of all pairs of elements.
    """

    name: str
    reduce: Callable[..., Tensor]
    parameters: frozenset[str] = frozenset()
    symmetric: bool = True
    fused: frozenset[str] = frozenset()


_ALL = (
    Similarity(
        "smooth_chamfer",
        reference.smooth_chamfer,
        frozenset({"alpha", "log_mean"}),
        fused=frozenset({"cuda", "triton", "native"}),
    ),
    Similarity("chamfer", reference.chamfer, fused=frozenset({"triton", "native"})),
    Similarity("mil", reference.mil, fused=frozenset({"triton", "native"})),
    Similarity("mp", reference.mp, frozenset({"scale", "shift"})),
    Similarity(
        "maxsim",
        reference.maxsim,
        frozenset({"reduction"}),
        symmetric=False,
        fused=frozenset({"triton", "native"}),
    ),
)
SIMILARITIES: dict[str, Similarity] = {similarity.name: similarity for similarity in _ALL}


def get_similarity(name: str) -> Similarity:
    """Return the similarity called ``name``; ValueError lists the known ones."""
    if name not in SIMILARITIES:
        raise ValueError(f"similarity: got {name!r}, expected one of {', '.join(SIMILARITIES)}")
    return SIMILARITIES[name]
