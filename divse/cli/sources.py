"""Where sets come from: a file of embeddings, or a model with texts or pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from divse.cli.arguments import usage
from divse.cli.embedding_files import Source, read_embeddings, read_ids, read_text
from divse.cli.encoding import encode_lines, encode_pictures, load_model, model_for
from divse.search.gallery import Gallery

if TYPE_CHECKING:
    from divse.encoder import DivSE

PANEL = "Sets"


@dataclass(frozen=True)
class SourceOptions:
    """One of `embeddings`, `image`, `text` and `texts`, and what belongs to it."""

    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            metavar="FILE",
            help="Embeddings: .npy (N, K, D), .safetensors or .parquet.",
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
            help="Ids of the sets: .npy, a .json list, or one id a line.",
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
        if self.embeddings is not None:
            source = read_embeddings(self.embeddings, self.lengths, self.ids)
        else:
            ids = None if self.ids is None else read_ids(self.ids)
            source = self._encoded(self._model(gallery))
            source.ids = source.ids if ids is None else ids
        given: Any = source.ids
        if given is not None and len(given) != source.total:
            raise ValueError(
                f"got {len(given)} ids for {source.total} sets: give one id for each set"
            )
        return source

    def _model(self, gallery: Gallery | None) -> DivSE:
        if gallery is not None:
            return model_for(gallery, self.model)
        assert self.model is not None, "checked by `check`"
        return load_model(self.model)

    def _encoded(self, model: DivSE) -> Source:
        if self.image:
            source = encode_pictures(model, self.image)
        elif self.text:
            source = encode_lines(model, self.text, "--text")
        else:
            assert self.texts is not None, "checked by `check`"
            source = encode_lines(model, read_text(self.texts).splitlines(), str(self.texts))
        if self.model is not None:
            source.metadata = {"model": model.record(self.model)}
        return source
