"""`divse-search build`: sets from a file or a model into a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divse.cli.embedding_files import Source, read_embeddings
from divse.cli.encoding import encode_folder, encode_lines, load_model
from divse.cli.progress import bar
from divse.search.element_index import has_faiss
from divse.search.gallery import Gallery
from divse.search.searcher import is_large
from divse.search.writer import check_target


@dataclass(frozen=True)
class BuildRequest:
    """What `build` was asked: `embeddings`, or `model` with `images` or `texts`."""

    gallery: Path
    embeddings: Path | None = None
    lengths: Path | None = None
    ids: Path | None = None
    model: Path | None = None
    images: Path | None = None
    texts: Path | None = None
    dtype: str = "float16"
    index: bool | None = None
    overwrite: bool = False


def build_gallery(asked: BuildRequest) -> Gallery:
    """Write the gallery."""
    if check_target(asked.gallery, overwrite=True) is not None and not asked.overwrite:
        raise FileExistsError(f"{asked.gallery} holds a gallery already: --overwrite replaces it")
    source, metadata = _open_source(asked)
    with bar("build", source.total) as step:
        gallery = Gallery.create(
            asked.gallery,
            source.blocks,
            ids=source.ids,
            columns=source.columns,
            dtype=asked.dtype,
            metadata=metadata,
            overwrite=asked.overwrite,
            progress=step,
        )
    if asked.index or (asked.index is None and is_large(gallery) and has_faiss()):
        with bar("index", len(gallery)) as step:
            gallery = gallery.build_index(progress=step)
    return gallery


def _open_source(asked: BuildRequest) -> tuple[Source, dict[str, Any]]:
    """The sets to store, and what the gallery remembers of their model."""
    if asked.embeddings is not None:
        return read_embeddings(asked.embeddings, asked.lengths, asked.ids), {}
    assert asked.model is not None, "pictures and texts need a model"
    model = load_model(asked.model)
    metadata = {"model": model.record(asked.model)}
    if asked.images is not None:
        return encode_folder(model, asked.images), metadata
    assert asked.texts is not None, "there is one of embeddings, images and texts"
    return encode_lines(model, asked.texts), metadata
