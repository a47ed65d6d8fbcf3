"""The commands of `divse-search` that look after a gallery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from divse.cli.arguments import (
    EmbeddingsPath,
    Format,
    GalleryPath,
    IdsPath,
    ImagesPath,
    LengthsPath,
    ModelPath,
    TextsPath,
    one_of,
    usage,
)

if TYPE_CHECKING:
    from divse.cli.build import SourceRequest
    from divse.search.gallery import Gallery


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (info, verify, add, remove, update, compact, index, export):
        app.command()(command)


def info(gallery: GalleryPath, format: Format = "table") -> None:
    """Say what a gallery is: sizes, ids, columns, model.

    [bold]Example[/bold]

      divse-search info g --format json
    """
    from divse.cli.output import print_info
    from divse.search.gallery import Gallery

    one_of("--format", format, ("table", "json"))
    found = Gallery.open(gallery).info()
    if format == "json":
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        print_info(found, sys.stdout)


def verify(gallery: GalleryPath) -> None:
    """Read every byte of a gallery and check it against the recorded checksums.

    Ends with exit code 1 and the name of the first damaged file, if there is one.

    [bold]Example[/bold]

      divse-search verify g && cp -r g backup/
    """
    from divse.cli.progress import bar
    from divse.search.gallery import Gallery

    opened = Gallery.open(gallery)
    with bar("verify", opened.nbytes, "B") as step:
        opened.verify(step)
    typer.echo(f"whole: {len(opened):,} sets, {opened.nbytes:,} bytes, all checksums fit")


def add(
    gallery: GalleryPath,
    embeddings: EmbeddingsPath = None,
    lengths: LengthsPath = None,
    ids: IdsPath = None,
    model: ModelPath = None,
    images: ImagesPath = None,
    texts: TextsPath = None,
) -> None:
    """Add sets to a gallery; pictures and texts are embedded by the gallery's own model.

    [bold]Examples[/bold]

      divse-search add g --embeddings more.npy --ids names.txt

      divse-search add g --images new_photos
    """
    from divse.cli.build import add_to_gallery

    before = _count(gallery)
    after = add_to_gallery(gallery, _source(embeddings, lengths, ids, model, images, texts))
    typer.echo(f"added {len(after) - before:,} sets: {_size(after)}")


def update(
    gallery: GalleryPath,
    embeddings: EmbeddingsPath = None,
    lengths: LengthsPath = None,
    ids: IdsPath = None,
    model: ModelPath = None,
    images: ImagesPath = None,
    texts: TextsPath = None,
    insert: Annotated[bool, typer.Option("--insert", help="Add ids that are new.")] = False,
) -> None:
    """Replace sets of a gallery by id, in one step.

    [bold]Example[/bold]

      divse-search update g --embeddings changed.parquet --insert
    """
    from divse.cli.build import update_gallery

    asked = _source(embeddings, lengths, ids, model, images, texts)
    typer.echo(f"updated: {_size(update_gallery(gallery, asked, insert))}")


def remove(
    gallery: GalleryPath,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the sets to remove.")
    ] = None,
    ids: IdsPath = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Pass over ids that are not there.")
    ] = False,
) -> None:
    """Remove sets from a gallery; their bytes stay on disk until `compact`.

    [bold]Examples[/bold]

      divse-search remove g photo-17.jpg photo-18.jpg

      divse-search remove g --ids outdated.txt --missing-ok
    """
    from divse.cli.embedding_files import read_ids
    from divse.search.gallery import Gallery

    if bool(names) == (ids is not None):
        usage("give ids, or --ids FILE")
    opened = Gallery.open(gallery)
    wanted = list(names) if names else list(read_ids(ids)) if ids else []
    if opened.manifest.id_type == "int64":
        wanted = [_whole(value) for value in wanted]
    after = opened.remove(wanted, missing_ok=missing_ok)
    typer.echo(f"removed {len(opened) - len(after):,} sets: {_size(after)}")


def compact(gallery: GalleryPath) -> None:
    """Rewrite a gallery without what was removed, as one segment.

    [bold]Example[/bold]

      divse-search compact g
    """
    from divse.cli.progress import bar
    from divse.search.gallery import Gallery

    opened = Gallery.open(gallery)
    with bar("compact", len(opened)) as step:
        after = opened.compact(progress=step)
    typer.echo(f"compacted from {opened.nbytes:,} bytes: {_size(after)}")


def index(
    gallery: GalleryPath,
    spec: Annotated[
        str | None,
        typer.Option(metavar="FACTORY", help="FAISS factory string; default: chosen by size."),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the index.")] = False,
) -> None:
    """Build the prefilter's FAISS index, in place of any other; later changes keep it up to date.

    [bold]Examples[/bold]

      divse-search index g

      divse-search index g --spec IVF1024,PQ32x8
    """
    from divse.cli.progress import bar
    from divse.search.gallery import Gallery

    opened = Gallery.open(gallery)
    if drop:
        typer.echo(f"index removed: {_size(opened.drop_index())}")
        return
    with bar("index", len(opened)) as step:
        after = opened.build_index(spec, progress=step)
    assert after.manifest.index is not None
    typer.echo(f"index {after.manifest.index.spec}: {_size(after)}")


def export(
    gallery: GalleryPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .parquet or .npy file.")],
) -> None:
    """Write sets, ids and columns to a file for other programs.

    [bold]Examples[/bold]

      divse-search export g sets.parquet

      divse-search export g sets.npy
    """
    from divse.cli.progress import bar
    from divse.search.gallery import Gallery

    opened = Gallery.open(gallery)
    with bar("export", len(opened)) as step:
        opened.export(out, progress=step)
    typer.echo(f"wrote {out}: {len(opened):,} sets, {out.stat().st_size:,} bytes")


def _source(
    embeddings: Path | None,
    lengths: Path | None,
    ids: Path | None,
    model: Path | None,
    images: Path | None,
    texts: Path | None,
) -> SourceRequest:
    from divse.cli.build import SourceRequest

    asked = SourceRequest(embeddings, lengths, ids, model, images, texts)
    if fault := asked.fault(model_recorded=True):
        usage(fault)
    return asked


def _count(gallery: Path) -> int:
    from divse.search.gallery import Gallery

    return len(Gallery.open(gallery))


def _size(gallery: Gallery) -> str:
    return f"{len(gallery):,} sets, {gallery.nbytes:,} bytes"


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"the gallery's ids are whole numbers, got {value!r}") from None
