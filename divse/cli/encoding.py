"""Embeddings from a model: pictures of a folder, lines of a file, or what is asked on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from divse.cli.embedding_files import Source
from divse.search.gallery import Gallery
from divse.sets import EmbeddingSets

if TYPE_CHECKING:
    from divse.encoder import DivSE

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
BATCH = 64


def load_model(folder: Path) -> DivSE:
    """Load a run of train.py."""
    from divse.encoder import DivSE

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such model folder")
    return DivSE.from_pretrained(folder)


def model_for(gallery: Gallery, folder: Path | None) -> DivSE:
    """Load the model for queries to this gallery; refuse one that did not embed the gallery."""
    recorded = gallery.metadata.get("model") or {}
    if folder is None:
        if "path" not in recorded:
            raise ValueError(f"{gallery.path} records no model: name one with --model")
        folder = Path(recorded["path"])
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{gallery.path} was built with the model {folder}, which is not there any more: "
                "name its new place with --model"
            )
    model = load_model(folder)
    expected = recorded.get("fingerprint")
    if expected is not None and model.fingerprint != expected:
        raise ValueError(
            f"the model {folder} does not fit {gallery.path}: its fingerprint is "
            f"{model.fingerprint}, the gallery was built with {expected} "
            f"({recorded.get('path')}): take that model, or build a new gallery with this one"
        )
    return model


def pictures_in(folder: Path) -> list[Path]:
    """Every picture below a folder, in order of path."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    return found


def encode_pictures(model: DivSE, places: list[Path]) -> Source:
    """Embed pictures and folders of them; ids are names, or paths within a folder."""
    paths, ids = [], []
    for place in places:
        inside = pictures_in(place) if place.is_dir() else [place]
        if not inside[0].is_file():
            raise FileNotFoundError(f"{place}: there is no such picture or folder")
        root = place if place.is_dir() else place.parent
        paths += inside
        ids += [path.relative_to(root).as_posix() for path in inside]
    return Source(
        encode_images(model, paths),
        len(paths),
        ids,
        {"path": [str(path.resolve()) for path in paths]},
        labels=[{"image": str(path)} for path in paths],
    )


def encode_lines(model: DivSE, texts: list[str], origin: str) -> Source:
    """Embed texts, which came from `origin`; ids are their numbers from 0."""
    empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if empty or not texts:
        where = f"text {empty[0]} is empty" if empty else "there are no texts"
        raise ValueError(f"{origin}: {where}; give one text a line")
    labels = [{"text": text} for text in texts]
    return Source(encode_texts(model, texts), len(texts), None, {"text": texts}, labels=labels)


def encode_images(model: DivSE, paths: list[Path]) -> Iterator[EmbeddingSets]:
    """Yield the sets of picture files, batch by batch."""
    for start in range(0, len(paths), BATCH):
        yield model.encode_images(paths[start : start + BATCH])


def encode_texts(model: DivSE, texts: list[str]) -> Iterator[EmbeddingSets]:
    """Yield the sets of texts, batch by batch."""
    for start in range(0, len(texts), BATCH):
        yield model.encode_texts(texts[start : start + BATCH])
