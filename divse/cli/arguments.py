"""Arguments that several commands of `divse-search` share, and how wrong ones are refused."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer


class Plan(StrEnum):
    """How a gallery is searched; see `divse.search.searcher`."""

    auto = "auto"
    exact = "exact"
    certified = "certified"
    prefilter = "prefilter"


class SimilarityName(StrEnum):
    """The similarities that divse knows; see `divse.SIMILARITIES`."""

    smooth_chamfer = "smooth_chamfer"
    chamfer = "chamfer"
    mil = "mil"
    mp = "mp"
    maxsim = "maxsim"


class Impl(StrEnum):
    """Implementations of similarities; a named one never falls back."""

    auto = "auto"
    native = "native"
    triton = "triton"
    reference = "reference"


class DType(StrEnum):
    """Types that galleries store."""

    float16 = "float16"
    float32 = "float32"


GalleryPath = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TopK = Annotated[int, typer.Option("--topk", min=1, help="Results for each query.")]


def usage(message: str) -> NoReturn:
    """End with exit code 2 and a sentence."""
    typer.echo(f"divse-search: usage: {message} (see --help)", err=True)
    raise typer.Exit(2)


def column_names(context: typer.Context, incomplete: str) -> Iterator[str]:
    """For a shell's completion: the gallery's columns, behind what was typed of a condition."""
    from divse.search.manifest import Manifest

    before, space, begun = incomplete.rpartition(" ")
    # Behind an option that still lacks its value, words are left in `args`.
    named = [word for word in (context.params.get("gallery"), *context.args) if word]
    try:
        manifest = Manifest.read(Path(named[0]))
    except (IndexError, ValueError, OSError):
        return  # no gallery is named yet, or none is there
    for name in ("id", *manifest.columns):
        if name.startswith(begun):
            yield before + space + name
