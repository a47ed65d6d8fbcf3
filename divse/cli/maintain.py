"""The commands of `divse-search` that look after a gallery."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import divse
from divse.cli.arguments import AsJson, GalleryPath, usage
from divse.cli.output import print_info, print_json, size_of, tell
from divse.cli.progress import bar

if TYPE_CHECKING:
    from divse.search.gallery import Gallery


def info(gallery: GalleryPath, as_json: AsJson = False) -> None:
    """Say what a gallery is: sizes, ids, columns, model.

    [bold]Examples[/bold]

      divse-search info g

      divse-search info g --json | jq .columns
    """
    found = divse.Gallery.open(gallery).info()
    (print_json if as_json else print_info)(found, sys.stdout)


def verify(gallery: GalleryPath, as_json: AsJson = False) -> None:
    """Read every byte of a gallery and check it against the recorded checksums.

    Ends with exit code 1 and the name of the first damaged file, if there is one.

    [bold]Example[/bold]

      divse-search verify g && cp -r g backup/
    """
    opened = divse.Gallery.open(gallery)
    with bar("verify", opened.nbytes, "B") as step:
        opened.verify(step)
    text = f"whole: {len(opened):,} sets, {opened.nbytes:,} bytes, all checksums fit"
    tell(as_json, text, whole=True, **size_of(opened))


def remove(
    gallery: GalleryPath,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of the sets to remove.")
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", metavar="FILE", help="Ids: .npy, a .json list, or one id a line."),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Pass over ids that are not there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove sets from a gallery; their bytes stay on disk until `compact`.

    [bold]Examples[/bold]

      divse-search remove g photo-17.jpg photo-18.jpg

      divse-search remove g --ids outdated.txt --missing-ok
    """
    from divse.cli.embedding_files import read_ids

    if bool(names) == (ids is not None):
        usage("give ids, or --ids FILE")
    opened = divse.Gallery.open(gallery)
    wanted = ids_for(opened, names or [] if ids is None else read_ids(ids))
    after = opened.remove(wanted, missing_ok=missing_ok)
    gone = len(opened) - len(after)
    text = f"removed {gone:,} sets: {len(after):,} sets, {after.nbytes:,} bytes"
    tell(as_json, text, removed=gone, **size_of(after))


def compact(gallery: GalleryPath, as_json: AsJson = False) -> None:
    """Rewrite a gallery without what was removed, as one segment.

    [bold]Example[/bold]

      divse-search compact g
    """
    opened = divse.Gallery.open(gallery)
    with bar("compact", len(opened)) as step:
        after = opened.compact(progress=step)
    text = f"compacted from {opened.nbytes:,} bytes: {len(after):,} sets, {after.nbytes:,} bytes"
    tell(as_json, text, bytes_before=opened.nbytes, **size_of(after))


def index(
    gallery: GalleryPath,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Sketch, Cells,Sketch (numbers: Cells500,Sketch96) or a FAISS factory string; "
            "default: by size.",
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the index.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the prefilter's index, in place of any other; later changes keep it up to date.

    [bold]Examples[/bold]

      divse-search index g

      divse-search index g --spec IVF1024,PQ32x8

      divse-search index g --drop
    """
    opened = divse.Gallery.open(gallery)
    if drop:
        after = opened.drop_index()
    else:
        with bar("index", len(opened)) as step:
            after = opened.build_index(spec, progress=step)
    stored = after.manifest.index
    what = "index removed" if stored is None else f"index {stored.spec}"
    text = f"{what}: {len(after):,} sets, {after.nbytes:,} bytes"
    tell(as_json, text, **size_of(after))


def export(
    gallery: GalleryPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .parquet or .npy file.")],
    as_json: AsJson = False,
) -> None:
    """Write sets, ids and columns to a file for other programs.

    [bold]Examples[/bold]

      divse-search export g sets.parquet

      divse-search export g sets.npy
    """
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: there is no such folder to write into")
    opened = divse.Gallery.open(gallery)
    with bar("export", len(opened)) as step:
        opened.export(out, progress=step)
    size = out.stat().st_size
    text = f"wrote {out}: {len(opened):,} sets, {size:,} bytes"
    tell(as_json, text, out=str(out), sets=len(opened), bytes=size)


def ids_for(gallery: Gallery, names: Iterable[Any]) -> list[Any]:
    """Ids as the gallery has them: words and tables do not tell what they are, numpy does."""
    if gallery.manifest.id_type == "int64":
        return [_whole(name) for name in names]
    return [str(name) if isinstance(name, int) else name for name in names]


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"the gallery's ids are whole numbers, got {value!r}") from None
