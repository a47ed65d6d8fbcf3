"""`divse-search build`, `add` and `update`: sets from a file or a model into a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import divse
from divse.cli.arguments import AsJson, DType, GalleryPath
from divse.cli.maintain import ids_for
from divse.cli.output import size_of, tell
from divse.cli.progress import bar
from divse.cli.sources import ColumnOptions, SourceOptions

if TYPE_CHECKING:
    from divse.cli.embedding_files import Source
    from divse.search.gallery import Gallery


def build(
    gallery: GalleryPath,
    *,
    source: SourceOptions,
    columns: ColumnOptions,
    dtype: Annotated[DType, typer.Option(help="Type of the stored elements.")] = DType.float16,
    index: Annotated[
        bool | None,
        typer.Option(
            "--index/--no-index", help="Also build the prefilter's index; default: if it is large."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a gallery that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a gallery from embeddings, or from pictures or texts and a model.

    The columns of a Parquet file come along; pictures have a column path, texts a column text.
    --columns adds those of a table: query --where "year >= 2010" then goes by them.
    A build that is interrupted leaves nothing behind, and an older gallery as it was.

    [bold]Examples[/bold]

      divse-search build g --embeddings sets.npy --ids names.txt

      divse-search build g --embeddings sets.npy --columns years.csv

      divse-search build g --embeddings sets.npy --ids t.csv --columns t.csv

      divse-search build g --embeddings packed.npy --lengths lengths.npy --dtype float32

      divse-search build g --embeddings sets.parquet --index

      divse-search build g --model runs/captions --images photos
    """
    from divse.search.writer import check_target

    source.check(new=True)
    if check_target(gallery, overwrite=True) is not None and not overwrite:
        raise FileExistsError(f"{gallery} holds a gallery already: --overwrite replaces it")
    sets = columns.join(source.open())
    built = _indexed(_written(gallery, sets, str(dtype), overwrite), index)
    what = f"{len(built):,} sets of {'up to ' if built.ragged else ''}K={built.k}, D={built.dim}"
    text = f"built {gallery}: {what}, {built.nbytes:,} bytes"
    tell(as_json, text, **size_of(built), k=built.k, dim=built.dim, ragged=built.ragged)


def _written(path: Path, sets: Source, dtype: str, overwrite: bool) -> Gallery:
    with bar("build", sets.total) as step:
        return divse.Gallery.create(
            path,
            sets.blocks,
            ids=sets.ids,
            columns=sets.columns,
            dtype=dtype,
            metadata=sets.metadata,
            overwrite=overwrite,
            progress=step,
        )


def _indexed(built: Gallery, asked: bool | None) -> Gallery:
    """Build the prefilter's index too if that is asked for, or if the gallery is large."""
    from divse.search.plans import is_large

    if asked or (asked is None and is_large(built)):
        with bar("index", len(built)) as step:
            return built.build_index(progress=step)
    return built


def add(
    gallery: GalleryPath, source: SourceOptions, columns: ColumnOptions, as_json: AsJson = False
) -> None:
    """Add sets to a gallery; pictures and texts are embedded by the gallery's own model.

    [bold]Examples[/bold]

      divse-search add g --embeddings more.npy --ids names.txt --columns more.csv

      divse-search add g --images new_photos
    """
    source.check()
    before = divse.Gallery.open(gallery)
    sets = columns.join(_opened(source, before), before)
    with bar("add", sets.total) as step:
        after = before.add(sets.blocks, sets.ids, sets.columns, progress=step)
    added = len(after) - len(before)
    _told(as_json, f"added {added:,} sets", after, added=added)


def _opened(source: SourceOptions, gallery: Gallery) -> Source:
    """The sets, with ids such as the gallery has."""
    sets = source.open(gallery)
    if source.ids is not None and sets.ids is not None:
        sets.ids = ids_for(gallery, sets.ids)
    return sets


def update(
    gallery: GalleryPath,
    source: SourceOptions,
    columns: ColumnOptions,
    insert: Annotated[bool, typer.Option("--insert", help="Add ids that are new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replace sets of a gallery by id, in one step, with their columns.

    [bold]Examples[/bold]

      divse-search update g --embeddings changed.parquet --insert

      divse-search update g --embeddings sets.npy --ids names.txt --columns about.csv

      divse-search update g --images retouched
    """
    source.check()
    before = divse.Gallery.open(gallery)
    sets = _opened(source, before)
    if sets.ids is None:
        raise ValueError("update needs ids: give --ids FILE, or a file that has them")
    joined = columns.join(sets, before).columns
    with bar("update", sets.total) as step:
        after = before.update(sets.ids, sets.blocks, joined, insert=insert, progress=step)
    _told(as_json, "updated", after, updated=sets.total)


def _told(as_json: bool, what: str, after: Gallery, **figures: Any) -> None:
    tell(
        as_json, f"{what}: {len(after):,} sets, {after.nbytes:,} bytes", **figures, **size_of(after)
    )
