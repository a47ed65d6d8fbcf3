"""`divse-search build`, `add` and `update`: sets from a file or a model into a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divse.cli.embedding_files import Source, read_embeddings
from divse.cli.encoding import encode_folder, encode_lines, load_model, model_for
from divse.cli.progress import bar
from divse.search.element_index import has_faiss
from divse.search.gallery import Gallery
from divse.search.searcher import is_large
from divse.search.writer import check_target


@dataclass(frozen=True)
class SourceRequest:
    """Where new sets come from: `embeddings`, or a model's `images` or `texts`."""

    embeddings: Path | None = None
    lengths: Path | None = None
    ids: Path | None = None
    model: Path | None = None
    images: Path | None = None
    texts: Path | None = None

    def fault(self, model_recorded: bool) -> str | None:
        """Say what is wrong with the combination, if anything is."""
        given = [self.embeddings, self.images, self.texts]
        if sum(value is not None for value in given) != 1:
            return "give one of --embeddings FILE, --images DIR, --texts FILE"
        if self.embeddings is None and self.model is None and not model_recorded:
            return "--images and --texts need --model RUN"
        if self.embeddings is not None and self.model is not None:
            return "--model goes with --images or --texts; --embeddings need none"
        if self.embeddings is None and (self.lengths is not None or self.ids is not None):
            return "--ids and --lengths go with --embeddings"
        return None

    def open(self, gallery: Gallery | None = None) -> tuple[Source, dict[str, Any]]:
        """The sets, and what a new gallery remembers of their model.

        For a gallery that is there, its own model is taken, or one that fits it.
        """
        if self.embeddings is not None:
            return read_embeddings(self.embeddings, self.lengths, self.ids), {}
        if gallery is not None:
            model = model_for(gallery, self.model)
        else:
            assert self.model is not None, "checked by `fault`"
            model = load_model(self.model)
        metadata = {} if self.model is None else {"model": model.record(self.model)}
        if self.images is not None:
            return encode_folder(model, self.images), metadata
        assert self.texts is not None, "checked by `fault`"
        return encode_lines(model, self.texts), metadata


def build_gallery(
    path: Path, asked: SourceRequest, dtype: str, index: bool | None, overwrite: bool
) -> Gallery:
    """Write a new gallery; with `index` None, an element index too if it is large."""
    if check_target(path, overwrite=True) is not None and not overwrite:
        raise FileExistsError(f"{path} holds a gallery already: --overwrite replaces it")
    source, metadata = asked.open()
    with bar("build", source.total) as step:
        gallery = Gallery.create(
            path,
            source.blocks,
            ids=source.ids,
            columns=source.columns,
            dtype=dtype,
            metadata=metadata,
            overwrite=overwrite,
            progress=step,
        )
    if index or (index is None and is_large(gallery) and has_faiss()):
        with bar("index", len(gallery)) as step:
            gallery = gallery.build_index(progress=step)
    return gallery


def add_to_gallery(path: Path, asked: SourceRequest) -> Gallery:
    """Append sets."""
    gallery = Gallery.open(path)
    source, _ = asked.open(gallery)
    with bar("add", source.total) as step:
        return gallery.add(source.blocks, source.ids, source.columns, progress=step)


def update_gallery(path: Path, asked: SourceRequest, insert: bool) -> Gallery:
    """Replace sets by id."""
    gallery = Gallery.open(path)
    source, _ = asked.open(gallery)
    if source.ids is None:
        raise ValueError("update needs ids: give --ids FILE, or a file that has them")
    with bar("update", source.total) as step:
        return gallery.update(
            source.ids, source.blocks, source.columns, insert=insert, progress=step
        )
