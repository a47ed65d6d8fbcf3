"""What ranking losses ask of the scores of a batch, from all of them or without storing any.

`DenseScores` holds all scores of I pictures and T captions. `TiledScores` computes them tile by
tile and keeps what a loss asks for: the hardest negatives, mined, with a backward pass over the
pairs that the loss touches alone, at most I + 2 T; or log-sum-exps of all negatives, with a
backward pass that computes the scores again. Its memory grows with I + T. Both give equal values
and gradients, except that of equally hard negatives the dense scores share the gradient and mining
takes the first.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divse.similarity import dispatch
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity

#: Scores of positives and maxima of negatives come from two kernels: rounding of unit scores.
ROUNDING = 2.0**-20


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


class LogOdds(NamedTuple):
    """Of the negatives against the positives, for the pictures and the captions that have any."""

    to_text: Tensor
    to_image: Tensor


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

    def log_odds(self, temperature: float) -> LogOdds:
        """Log-sum-exps of scores / temperature of negatives, less those of positives."""
        negatives = self.negatives() / temperature
        right = self.scores.masked_fill(~self.positives, float("-inf")) / temperature
        odds = (negatives.logsumexp(dim) - right.logsumexp(dim) for dim in (1, 0))
        return LogOdds(*(x[self.positives.any(dim)] for x, dim in zip(odds, (1, 0), strict=True)))

    def recall(self) -> Tensor:
        """Share of captions whose best picture is a positive."""
        best = self.scores.detach().argmax(dim=0)
        return self.positives.gather(0, best[None]).float().mean()


class TiledScores:
    """Scores of pictures and captions that are never stored, `pictures[t]` (T,) that of t."""

    def __init__(
        self,
        images: Sets,
        texts: Sets,
        pictures: Tensor,
        similarity: Similarity,
        parameters: dict[str, Any],
    ) -> None:
        self.images, self.texts, self.pictures = images, texts, pictures
        self.given: dict[str, Any] = {"similarity": similarity, "parameters": parameters}
        self.maxima: tuple[Tensor, Tensor] | None = None  # as `recall` compares them
        self.rows, self.columns = (
            torch.arange(len(sets.values), device=pictures.device) for sets in (images, texts)
        )

    @staticmethod
    def why_not(images: Sets, texts: Sets, positives: Tensor, similarity: Similarity) -> str | None:
        """Return why this cannot serve a batch, or None if it can."""
        if positives.ndim == 2:
            return "positives are a mask, not the picture of each caption"
        backend = dispatch.BACKENDS["triton"]
        reasons = (
            backend.why_not(operation, images, texts, similarity)
            for operation in ("pairs", "hardest_negatives", "log_sum_exps")
        )
        return next((reason for reason in reasons if reason), None)

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores (P,) of pictures `rows` with captions `columns`."""
        found: Tensor = self.run("pairs", ids=(rows, columns))
        return found

    def run(self, operation: str, *arguments: Any, **more: Any) -> Any:
        """Run an operation on both sides."""
        more |= self.given
        return dispatch.run(operation, "triton", self.images, self.texts, *arguments, **more)

    @cached_property
    def found(self) -> list[Tensor]:
        """Scores of positives (T,), of pictures' hardest negatives (I,) and of captions' (T,)."""
        with torch.no_grad():
            to_text, to_image = self.run("hardest_negatives", self.rows, self.pictures, 1)
        first = torch.cat([self.pictures, self.rows, to_image[:, 0]])
        second = torch.cat([self.columns, to_text[:, 0], self.columns])
        counts = [len(self.columns), len(self.rows), len(self.columns)]
        return list(torch.split(self.pairs(first, second), counts))

    def hardest(self) -> Hardest:
        """Positives and their hardest negatives."""
        positives, of_pictures, of_captions = self.found
        return Hardest(positives, of_pictures[self.pictures], of_captions)

    def log_sum_exps(self, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Positives (T,); logsumexp(negatives / temperature) of pictures (I,), of captions (T,)."""
        groups = self.rows, self.pictures
        of_pictures, of_captions, _, best = self.run("log_sum_exps", *groups, temperature)
        positives = self.pairs(self.pictures, self.columns)
        self.maxima = positives.detach(), best - ROUNDING * best.abs().clamp_min(1.0)
        return positives, of_pictures, of_captions

    def smoothest(self, temperature: float) -> Hardest:
        """Positives, and temperature * logsumexp(negatives / temperature)."""
        positives, of_pictures, of_captions = self.log_sum_exps(temperature)
        return Hardest(
            positives, temperature * of_pictures[self.pictures], temperature * of_captions
        )

    def log_odds(self, temperature: float) -> LogOdds:
        """Log-sum-exps of scores / temperature of negatives, less those of positives."""
        positives, of_pictures, of_captions = self.log_sum_exps(temperature)
        right = positives / temperature
        table = by_group(right, self.pictures, len(self.rows))
        shown = (table > float("-inf")).any(1)
        return LogOdds(of_pictures[shown] - table[shown].logsumexp(1), of_captions - right)

    def recall(self) -> Tensor:
        """Share of captions that no other picture scores better for than their own.

        After a loss it costs nothing: the best negatives are known.
        """
        positives, of_captions = self.maxima or (self.found[0].detach(), self.found[2].detach())
        found: Tensor = (positives >= of_captions).float().mean()
        return found


def by_group(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Values (T,) in rows (count, most in a group) by their group, -inf where there are fewer.

    Unlike a sum by index, rows are summed in one order, so that results repeat.
    """
    order = groups.argsort(stable=True)
    sizes = groups.bincount(minlength=count)
    place = torch.arange(len(groups), device=groups.device)
    place = place - (sizes.cumsum(0) - sizes)[groups[order]]
    table = values.new_full((count, int(sizes.max())), float("-inf"))
    return table.index_put((groups[order], place), values[order])
