"""What ranking losses ask of the scores of a batch, from all of them or from few.

`DenseScores` holds all scores of I pictures and T captions. `HardestScores` mines the hardest
negatives without storing any and scores only the pairs that a loss touches, at most I + 2 T, with a
backward pass over them alone: memory grows with I + T. Both give equal values and gradients, except
that of equally hard negatives the dense scores share the gradient and mining takes the first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from divse.similarity import dispatch
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity


class Hardest(NamedTuple):
    """Scores (P,) of positive pairs, and of the hardest negatives of their two sides."""

    positives: Tensor
    of_pictures: Tensor
    of_captions: Tensor


def positive_mask(positives: Tensor, pictures: int) -> Tensor:
    """Bool (I, T), of such a mask or of the picture of each caption (T,)."""
    if positives.ndim == 2:
        return positives
    return torch.arange(pictures, device=positives.device)[:, None] == positives


class DenseScores:
    """All scores (I, T), positives (I, T) bool."""

    def __init__(self, scores: Tensor, positives: Tensor) -> None:
        self.scores, self.positives = scores, positives
        self.rows, self.columns = positives.nonzero(as_tuple=True)  # (P,)

    def negatives(self) -> Tensor:
        """The scores (I, T), -inf at positives."""
        return self.scores.masked_fill(self.positives, float("-inf"))

    def hardest(self) -> Hardest:
        """Positives and their hardest negatives."""
        negatives = self.negatives()
        return Hardest(
            self.scores[self.positives],
            negatives.amax(dim=1)[self.rows],
            negatives.amax(dim=0)[self.columns],
        )

    def smoothest(self, temperature: float) -> Hardest:
        """The same, with temperature * logsumexp(scores / temperature) in place of the maximum."""
        negatives = self.negatives() / temperature
        return Hardest(
            self.scores[self.positives],
            temperature * negatives.logsumexp(dim=1)[self.rows],
            temperature * negatives.logsumexp(dim=0)[self.columns],
        )

    def recall(self) -> Tensor:
        """Share of captions whose best picture is a positive."""
        best = self.scores.detach().argmax(dim=0)
        return self.positives.gather(0, best[None]).float().mean()


class HardestScores:
    """Positives and hardest negatives of pictures and captions, `pictures[t]` (T,) that of t."""

    def __init__(
        self,
        images: Sets,
        texts: Sets,
        pictures: Tensor,
        similarity: Similarity,
        parameters: dict[str, Any],
    ) -> None:
        given: dict[str, Any] = {"similarity": similarity, "parameters": parameters}
        rows, columns = (
            torch.arange(len(sets.values), device=pictures.device) for sets in (images, texts)
        )
        with torch.no_grad():
            to_text, to_image = dispatch.run(
                "hardest_negatives", "triton", images, texts, rows, pictures, 1, **given
            )
        first = torch.cat([pictures, rows, to_image[:, 0]])
        second = torch.cat([columns, to_text[:, 0], columns])
        scores = dispatch.run("pairs", "triton", images, texts, ids=(first, second), **given)
        self.found = scores.split([len(columns), len(rows), len(columns)])
        self.pictures = pictures

    @staticmethod
    def why_not(images: Sets, texts: Sets, positives: Tensor, similarity: Similarity) -> str | None:
        """Return why this cannot serve a batch, or None if it can."""
        if positives.ndim == 2:
            return "positives are a mask, not the picture of each caption"
        backend = dispatch.BACKENDS["triton"]
        reasons = (
            backend.why_not(operation, images, texts, similarity)
            for operation in ("pairs", "scores")
        )
        return next((reason for reason in reasons if reason), None)

    def hardest(self) -> Hardest:
        """Positives and their hardest negatives."""
        positives, of_pictures, of_captions = self.found
        return Hardest(positives, of_pictures[self.pictures], of_captions)

    def recall(self) -> Tensor:
        """Share of captions that no other picture scores better for than their own."""
        positives, _, of_captions = (scores.detach() for scores in self.found)
        found: Tensor = (positives >= of_captions).float().mean()
        return found
