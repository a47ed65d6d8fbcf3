"""Arguments that several commands of `divse-search` share, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

GalleryPath = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's folder.")]
Format = Annotated[str, typer.Option("--format", help="table or json.", metavar="table|json")]
ModelPath = Annotated[
    Path | None, typer.Option("--model", help="A trained model: a run of train.py.")
]
EmbeddingsPath = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        metavar="FILE",
        help="Embeddings: .npy (N, K, D), .safetensors or .parquet.",
    ),
]
LengthsPath = Annotated[
    Path | None,
    typer.Option("--lengths", metavar="FILE", help=".npy with the number of elements of each set."),
]
IdsPath = Annotated[
    Path | None,
    typer.Option("--ids", metavar="FILE", help="Ids: .npy, a .json list, or one id a line."),
]
ImagesPath = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="Embed the pictures below DIR.")
]
TextsPath = Annotated[
    Path | None, typer.Option("--texts", metavar="FILE", help="Embed each line of FILE.")
]


def usage(message: str) -> NoReturn:
    """End with exit code 2 and a sentence."""
    typer.echo(f"divse-search: usage: {message} (see --help)", err=True)
    raise typer.Exit(2)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        usage(f"{option}: got {value!r}, expected {' or '.join(allowed)}")
