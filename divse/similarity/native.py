"""The C++ kernels of ``divse_native`` as an implementation of every operation on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.similarity import blocked
from divse.similarity.inputs import Sets
from divse.similarity.native_ops import gallery_argument, native_candidates, native_scores
from divse.similarity.table import Similarity

_MOST_KEPT = 1 << 25  # cosines that a forward pass keeps for the backward pass: 128 MiB


def why_not(operation: str, queries: Sets, gallery: Sets, similarity: Similarity) -> str | None:
    """Return why the C++ kernels cannot serve a call, or None if they can."""
    if "native" not in similarity.fused:
        return f"it has no kernel for {similarity.name}"
    try:
        import divse_native  # noqa: F401
    except ImportError as error:
        return f"the compiled module divse_native is not installed ({error})"
    for sets, name in ((queries, "queries"), (gallery, "gallery")):
        if sets.values.device.type != "cpu":
            return f"it runs on the CPU and the {name} are on {sets.values.device}"
        if sets.values.dtype == torch.float64:
            return f"it computes in float32 and the {name} are float64"
    return None


def _alpha(parameters: dict[str, Any]) -> Tensor:
    return torch.as_tensor(parameters.get("alpha", 1.0))


def _names(similarity: Similarity, parameters: dict[str, Any]) -> tuple[str, bool, str]:
    reduction = parameters.get("reduction", "sum")
    return similarity.name, parameters.get("log_mean", False), reduction


def _worth_keeping(queries: Sets, gallery: Sets, alpha: Tensor) -> bool:
    """Whether a backward pass may follow, and its cosines fill their registers and fit."""
    if not torch.is_grad_enabled():
        return False
    if not any(x.requires_grad for x in (queries.values, gallery.values, alpha)):
        return False
    (b, k, _), (n, size, _) = queries.values.shape, gallery.values.shape
    padded = (b + 15) // 16 * 16
    return 8 * b >= 5 * padded and padded * k * n * size <= _MOST_KEPT


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N) fp32; differentiable."""
    alpha = _alpha(parameters)
    result: Tensor = native_scores(
        queries.values,
        gallery.values,
        alpha,
        queries.lengths,
        gallery.lengths,
        *_names(similarity, parameters),
        _worth_keeping(queries, gallery, alpha),
    )[0]
    return result


def candidates(
    queries: Sets,
    gallery: Sets,
    chosen: Tensor,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> Tensor:
    """Scores (B, M) of each query with its own candidates (B, M), -1 = none; differentiable."""
    result: Tensor = native_candidates(
        queries.values,
        gallery.values,
        chosen.to(torch.int64),
        _alpha(parameters),
        queries.lengths,
        gallery.lengths,
        *_names(similarity, parameters),
    )
    return result


def pairs(a: Sets, b: Sets, similarity: Similarity, parameters: dict[str, Any]) -> Tensor:
    """Scores (N,) of set n of ``a`` with set n of ``b``; differentiable."""
    own = torch.arange(len(b.values))[:, None]
    return candidates(a, b, own, similarity, parameters)[:, 0]


def search(
    queries: Sets,
    gallery: Sets,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None,
    offsets: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """The best ``topk`` scores and positions (B, topk) of one pass that stores no B x N scores.

    With ``offsets`` (N + 1,) the gallery's values are packed (elements, D).
    """
    import divse_native

    values, options = _stored(queries, gallery.values, similarity, parameters)
    best, ids = divse_native.search(
        queries.values.detach().float().numpy(),
        values,
        topk,
        excluded=_host(excluded),
        gallery_lengths=_host(gallery.lengths),
        gallery_offsets=offsets,
        **options,
    )
    return torch.from_numpy(best), torch.from_numpy(ids)


def estimates(
    queries: Sets,
    gallery: Any,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: np.ndarray | None,
    probe: int | None,
) -> tuple[Tensor, Tensor]:
    """The best ``topk`` scores and ids (B, topk), in any order, of a ``divse_native.Int8Gallery``.

    Queries are rounded to int8 as well; each looks into ``probe`` cells, None: all.
    """
    best, ids = gallery.search(
        queries.values.detach().float().numpy(),
        topk,
        excluded=excluded,
        probe=probe,
        ordered=False,
        **_options(queries, similarity, parameters),
    )
    return torch.from_numpy(best), torch.from_numpy(ids)


def estimates_scored(
    sketches: np.ndarray,
    queries: Sets,
    gallery: tuple[Any, Tensor, np.ndarray | None],
    depth: int,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: np.ndarray | None,
    probe: int | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best ``topk`` by exact score of the ``depth`` best by their sketches.

    ``gallery`` is a ``divse_native.Int8Gallery``, the sets that it has sketches of, and their
    offsets if these are packed. Scores and ids (B, topk), -inf and -1 where there are fewer, and
    how many sets (B,) were scored exactly.
    """
    codes, sets, offsets = gallery
    values, options = _stored(queries, sets, similarity, parameters)
    scores, ids, counts = codes.search_exactly(
        sketches,
        queries.values.detach().float().numpy(),
        values,
        depth,
        topk,
        excluded=excluded,
        probe=probe,
        gallery_offsets=offsets,
        **options,
    )
    return scores, ids, counts


def stored_candidates(
    queries: Sets,
    gallery: Tensor,
    chosen: np.ndarray,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    offsets: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``topk`` of each query's own candidates (B, M), -1 = none; equal scores by position.

    Scores and positions (B, topk), -inf and -1 where there are fewer; no gradient. With
    ``offsets`` (N + 1,) the gallery is packed (elements, D).
    """
    import divse_native

    values, options = _stored(queries, gallery, similarity, parameters)
    asked = queries.values.detach().float().numpy()
    best, ids = divse_native.candidate_search(
        asked, values, chosen, topk, gallery_offsets=offsets, **options
    )
    return best, ids


def _stored(
    queries: Sets, gallery: Tensor, similarity: Similarity, parameters: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A gallery as divse_native takes it, without a copy, and what else it is told."""
    values, dtype = gallery_argument(gallery)
    return values, _options(queries, similarity, parameters) | dtype


def _options(queries: Sets, similarity: Similarity, parameters: dict[str, Any]) -> dict[str, Any]:
    """What every function is told of the queries and how to score."""
    options = parameters | {"similarity": similarity.name}
    if "alpha" in options:
        options["alpha"] = float(options["alpha"])
    options["query_lengths"] = _host(queries.lengths)
    options["threads"] = torch.get_num_threads()
    return options


def _host(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def hardest_negatives(
    queries: Sets,
    gallery: Sets,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Positions of the best sets of another group: (B, topn) in the gallery, (N, topn) back."""
    return blocked.hardest_negatives(
        scores, queries, gallery, query_groups, gallery_groups, topn, similarity, parameters
    )
