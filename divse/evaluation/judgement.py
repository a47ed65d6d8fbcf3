"""Judgement: which items of a gallery fit each query, in one direction of one ground truth.

Legend: Q judged queries, P fitting (query, item) pairs, G items that compete. Only fitting pairs
are kept, so a judgement of 25,000 captions takes as much memory as its pairs, not 25,000 x 5,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Fitting items of the queries that have any; the others are not judged.

    queries: (Q,) int64, increasing: rows of the score matrix, or its columns if `by_column`
    offsets: (Q + 1,) int64: the items of query q are items[offsets[q] : offsets[q + 1]]
    items: (P,) int64, positions on the other axis
    gallery: (G,) int64, increasing: the items that compete; None = all of them
    skip_self: query i and item i are one thing, which is no answer to itself
    every: the places of all fitting items are asked for, not only that of the best
    lost: (Q,) int64 or None: fitting items that are not there to be found, but count in R
    """

    queries: Array
    offsets: Array
    items: Array
    by_column: bool = False
    gallery: Array | None = None
    skip_self: bool = False
    every: bool = False
    lost: Array | None = None

    @classmethod
    def of_pairs(
        cls, queries: Any, items: Any, *, lost: Array | None = None, **options: Any
    ) -> Judgement:
        """Build it of fitting pairs, both (M,), in any order; repeated pairs count once.

        Pairs outside the gallery are left out, and so is every pair of a thing with itself. `lost`
        names the query of each fitting item that is not there.
        """
        asked = np.asarray(queries, np.int64)
        fits = np.asarray(items, np.int64)
        keep = np.ones(len(asked), bool)
        if options.get("gallery") is not None:
            keep &= np.isin(fits, options["gallery"])
        if options.get("skip_self"):
            keep &= asked != fits
        width = int(fits.max(initial=0)) + 1
        pairs = np.unique(asked[keep] * width + fits[keep])
        judged, begin = np.unique(pairs // width, return_index=True)
        if lost is not None:
            among = lost[np.isin(lost, judged)]
            lost = np.bincount(np.searchsorted(judged, among), minlength=len(judged))
        return cls(judged, np.append(begin, len(pairs)), pairs % width, lost=lost, **options)

    def __post_init__(self) -> None:
        """Refuse a judgement that cannot be measured."""
        if not len(self.queries):
            raise ValueError("no query has a fitting item: nothing can be measured")
        if self.skip_self and self.by_column:
            raise ValueError("skip_self: within one modality the queries are rows")

    def __len__(self) -> int:
        """Return Q, the number of judged queries."""
        return len(self.queries)

    @property
    def counts(self) -> Array:
        """(Q,): fitting items of each query that are there."""
        return np.diff(self.offsets)

    @property
    def sizes(self) -> Array:
        """(Q,): all fitting items of each query, R of mAP@R and R-Precision."""
        return self.counts if self.lost is None else self.counts + self.lost

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse positions outside a score matrix of ``shape`` (rows, columns)."""
        asked, held = shape[::-1] if self.by_column else shape
        for what, positions, limit in (
            ("queries", self.queries, asked),
            ("items", self.items, held),
        ):
            if positions.min() < 0 or positions.max() >= limit:
                raise ValueError(
                    f"{what} must lie in 0..{limit - 1}, the scores' axis; "
                    f"got {positions.min()}..{positions.max()}"
                )


def source_pairs(image_of_caption: Array, **options: Any) -> tuple[Judgement, Judgement]:
    """Pictures as queries and captions as queries, judged by the pairs of the data alone."""
    captions = np.arange(len(image_of_caption))
    return both_ways(image_of_caption, captions, **options)


def both_ways(
    images: Any,
    captions: Any,
    *,
    image_gallery: Array | None = None,
    caption_gallery: Array | None = None,
    every: bool = False,
) -> tuple[Judgement, Judgement]:
    """Pictures as queries, and captions as queries, of fitting (picture, caption) pairs (M,)."""
    among = np.ones(len(images), bool)
    if image_gallery is not None:
        among &= np.isin(images, image_gallery)
    if caption_gallery is not None:
        among &= np.isin(captions, caption_gallery)
    images, captions = np.asarray(images)[among], np.asarray(captions)[among]
    return (
        Judgement.of_pairs(images, captions, gallery=caption_gallery, every=every),
        Judgement.of_pairs(captions, images, by_column=True, gallery=image_gallery, every=every),
    )
