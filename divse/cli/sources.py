"""Where sets come from: a file of embeddings, or a model with texts or pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from divse.cli.arguments import usage

if TYPE_CHECKING:
    from divse.cli.embedding_files import Source
    from divse.search.gallery import Gallery

PANEL = "Sets"


@dataclass(frozen=True)
class SourceOptions:
    """One of `embeddings`, `image`, `text` and `texts`, and what belongs to it."""

    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            metavar="FILE",
            help="Embeddings: .npy or .npz (N, K, D), .safetensors or .parquet.",
            rich_help_panel=PANEL,
        ),
    ] = None
    lengths: Annotated[
        Path | None,
        typer.Option(
            "--lengths",
            metavar="FILE",
            help=".npy with the number of elements of each set of --embeddings.",
            rich_help_panel=PANEL,
        ),
    ] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "--images",
            metavar="PATH",
            help="A picture, or a folder of pictures; may be repeated.",
            rich_help_panel=PANEL,
        ),
    ] = None
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="TEXT", help="A text; may be repeated.", rich_help_panel=PANEL
        ),
    ] = None
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", metavar="FILE", help="Each line of FILE is a text.", rich_help_panel=PANEL
        ),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="RUN",
            help="The model for pictures and texts, a run of train.py; default: the gallery's.",
            rich_help_panel=PANEL,
        ),
    ] = None
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids",
            metavar="FILE",
            help="Ids of the sets: .npy, a .json list, a column id of .csv or .parquet, or one id "
            "a line.",
            rich_help_panel=PANEL,
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether sets are named at all."""
        return any(self._kinds())

    def _kinds(self) -> list[bool]:
        return [self.embeddings is not None, bool(self.image), bool(self.text), bool(self.texts)]

    def check(self, *, new: bool = False) -> None:
        """End with exit code 2 if these options do not go together; `new`: no gallery is there."""
        if sum(self._kinds()) != 1:
            usage("give one of --embeddings FILE, --image PATH, --text TEXT, --texts FILE")
        if new and self.embeddings is None and self.model is None:
            usage("--image, --text and --texts need --model RUN")
        if self.embeddings is not None and self.model is not None:
            usage("--model goes with --image, --text or --texts; --embeddings need none")
        if self.embeddings is None and self.lengths is not None:
            usage("--lengths goes with --embeddings")

    def open(self, gallery: Gallery | None = None) -> Source:
        """The sets; pictures and texts by the gallery's own model, or one that fits it."""
        from divse.cli.embedding_files import read_embeddings, read_ids

        if self.embeddings is not None:
            source = read_embeddings(self.embeddings, self.lengths, self.ids)
        else:
            ids = None if self.ids is None else read_ids(self.ids)
            source = self._encoded(gallery)
            source.ids = source.ids if ids is None else ids
        given: Any = source.ids
        if given is not None and len(given) != source.total:
            raise ValueError(
                f"got {len(given)} ids for {source.total} sets: give one id for each set"
            )
        return source

    def _encoded(self, gallery: Gallery | None) -> Source:
        from divse.cli import encoding
        from divse.cli.embedding_files import read_text

        if gallery is not None:
            model = encoding.model_for(gallery, self.model)
        else:
            assert self.model is not None, "checked by `check`"
            model = encoding.load_model(self.model)
        if self.image:
            source = encoding.encode_pictures(model, self.image)
        elif self.text:
            source = encoding.encode_lines(model, self.text, "--text")
        else:
            assert self.texts is not None, "checked by `check`"
            lines = read_text(self.texts).splitlines()
            source = encoding.encode_lines(model, lines, str(self.texts))
        if self.model is not None:
            source.metadata = {"model": model.record(self.model)}
        return source


@dataclass(frozen=True)
class ColumnOptions:
    """What is known of each set beside its embeddings."""

    columns: Annotated[
        Path | None,
        typer.Option(
            "--columns",
            metavar="FILE",
            help="Columns to filter by and to show: .csv, .tsv or .parquet, one row a set, matched "
            "by its column id, or by order where neither it nor the sets have ids.",
            rich_help_panel=PANEL,
        ),
    ] = None

    def join(self, source: Source, gallery: Gallery | None = None) -> Source:
        """Give the sets the columns of the file, beside those that they have."""
        if self.columns is None:
            return source
        from divse.cli.column_files import read_columns

        schema = None if gallery is None else gallery.schema
        columns = read_columns(self.columns, source.ids, source.total, schema)
        if twice := sorted(columns.keys() & source.columns.keys()):
            raise ValueError(f"{self.columns}: the sets have a column {twice[0]!r} already")
        return replace(source, columns=source.columns | columns)
