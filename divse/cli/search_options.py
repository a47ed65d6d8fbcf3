"""How a gallery is searched: the options that `query`, `eval` and `tune` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from divse.cli.arguments import Impl, Plan, SimilarityName, column_names, usage
from divse.cli.maintain import ids_for

if TYPE_CHECKING:
    from divse.search.gallery import Gallery
    from divse.search.plans import Asked
    from divse.search.scan import Scoring


@dataclass(frozen=True)
class ScoringOptions:
    """What counts as similar; by default what the gallery's model was trained for."""

    similarity: Annotated[
        SimilarityName | None,
        typer.Option(
            metavar="NAME",
            help="smooth_chamfer, chamfer, mil, mp or maxsim; default: what the model learned.",
        ),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA", help="Smoothness of smooth_chamfer; default: the model's, or 16."
        ),
    ] = None
    impl: Annotated[Impl, typer.Option(help="Implementation; a named one never falls back.")] = (
        Impl.auto
    )

    def scoring(self, gallery: Gallery) -> Scoring:
        """The similarity that was asked for, or else the one the gallery's model was trained with.

        Parameters of the trained similarity serve that one only.
        """
        from divse.search.scan import Scoring

        trained = dict((gallery.metadata.get("model") or {}).get("similarity") or {})
        similarity = trained.pop("similarity", "smooth_chamfer")
        if self.similarity not in (None, similarity):
            similarity, trained = str(self.similarity), {}
        alpha = trained.pop("alpha", 16.0) if self.alpha is None else self.alpha
        log_mean = bool(trained.pop("log_mean", False))
        return Scoring(similarity, alpha, log_mean, str(self.impl), trained)


@dataclass(frozen=True)
class PlanOptions:
    """Which sets are looked at, and how."""

    plan: Annotated[
        Plan,
        typer.Option(
            metavar="PLAN",
            help="exact: score every set; certified: the same answer, proven by int8 codes; "
            "prefilter: candidates of the index, scored exactly; auto: what suits the gallery.",
        ),
    ] = Plan.auto
    depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="M",
            help="Prefilter: the M best sets by their sketches, or the owners of the M elements "
            "nearest to each query element (FAISS); default: by size, or until the answer stays.",
        ),
    ] = None
    probe: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="C",
            help="Prefilter: the C cells of sketches, or clusters of a FAISS index, to look into; "
            "default: all cells, or more clusters in each round.",
        ),
    ] = None
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only sets whose columns fulfil this, in SQL: \"year >= 2010 and label = 'cat'\".",
            autocompletion=column_names,
        ),
    ] = None
    allowed_ids: Annotated[
        Path | None,
        typer.Option(
            "--allowed-ids",
            metavar="FILE",
            help="Only sets with these ids: .npy, a .json list, or one id a line.",
        ),
    ] = None

    def check(self) -> None:
        """End with exit code 2 if these options do not go together."""
        if self.plan in (Plan.exact, Plan.certified) and (self.depth or self.probe):
            usage(f"--depth and --probe are of --plan prefilter, not of --plan {self.plan}")

    def asked(self, topk: int, scoring: Scoring) -> Asked:
        """The search that was asked for."""
        from divse.search.plans import Asked

        return Asked(str(self.plan), self.depth, self.probe, topk, scoring)

    def allowed(self, gallery: Gallery) -> list[Any] | None:
        """The ids that may be found."""
        if self.allowed_ids is None:
            return None
        from divse.cli.embedding_files import read_ids

        return ids_for(gallery, read_ids(self.allowed_ids))
