"""`divse-search query`: answers for each query, printed as soon as they are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from divse.cli.contact_sheet import ContactSheet, SheetRow, Tile
from divse.cli.embedding_files import Source, read_embeddings
from divse.cli.encoding import encode_images, encode_texts, model_for
from divse.cli.output import Answer, answer, label, print_json, print_table
from divse.cli.progress import SearchBars
from divse.search.gallery import Gallery
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

BATCH = 256  # queries searched together: one pass over the gallery serves them all
MOST_ON_SHEET = 50  # queries on one contact sheet


@dataclass(frozen=True)
class QueryRequest:
    """What `query` was asked: one of `embeddings`, `texts` and `images`, and how to answer."""

    gallery: Path
    embeddings: Path | None = None
    lengths: Path | None = None
    model: Path | None = None
    texts: list[str] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    topk: int = 10
    plan: str = "auto"
    depth: int | None = None
    impl: str = "auto"
    similarity: str | None = None
    alpha: float | None = None
    as_json: bool = False
    contact_sheet: Path | None = None


def answer_queries(asked: QueryRequest, stream: TextIO) -> None:
    """Search for every query, print each answer, and draw the contact sheet if asked."""
    gallery = Gallery.open(asked.gallery)
    if asked.contact_sheet is not None:
        _check_sheet(asked.contact_sheet, gallery)
    rows: list[SheetRow] = []
    for found in _answers(gallery, asked):
        (print_json if asked.as_json else print_table)(found, stream)
        if len(rows) < MOST_ON_SHEET:
            rows.append(_sheet_row(found, gallery))
    if asked.contact_sheet is not None:
        ContactSheet(rows).save(asked.contact_sheet)


def _answers(gallery: Gallery, asked: QueryRequest) -> Iterator[Answer]:
    if not len(gallery):
        raise ValueError(f"{gallery.path} is empty: every set was removed")
    source, names = _open_queries(gallery, asked)
    topk = min(asked.topk, len(gallery))  # a short gallery gives what it has
    bars = SearchBars()
    searcher = Searcher(gallery, progress=bars)
    scoring = _scoring(gallery, asked)
    plan = searcher.explain(
        asked.plan, asked.depth, similarity=scoring.similarity, impl=scoring.impl
    )
    for block in _batches(source):
        found = searcher.search_positions(block, topk, asked.plan, asked.depth, scoring)
        bars.close()
        for scores, positions in zip(*found, strict=True):
            rows = gallery.take_rows(np.asarray(positions))
            yield answer(next(names), plan.plan, plan.certified, scores.tolist(), rows)


def _open_queries(gallery: Gallery, asked: QueryRequest) -> tuple[Source, Iterator[Answer]]:
    """The queries' sets and what each of them is called."""
    if asked.embeddings is not None:
        source = read_embeddings(asked.embeddings, asked.lengths)
        ids: Any = range(source.total) if source.ids is None else source.ids
        key = "number" if source.ids is None else "id"
        return source, ({key: getattr(i, "as_py", lambda i=i: i)()} for i in ids)
    model = model_for(gallery, asked.model)
    if asked.texts:
        blocks = encode_texts(model, asked.texts)
        return Source(blocks, len(asked.texts)), ({"text": text} for text in asked.texts)
    for path in asked.images:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such picture")
    blocks = encode_images(model, asked.images)
    return Source(blocks, len(asked.images)), ({"image": str(path)} for path in asked.images)


def _batches(source: Source) -> Iterator[EmbeddingSets]:
    done = 0
    for block in source.blocks:
        try:
            sets = EmbeddingSets.of(block.values, block.lengths)
        except ValueError as error:
            raise ValueError(f"queries from number {done} on: {error}") from None
        for start in range(0, len(sets), BATCH):
            yield sets[start : start + BATCH]
        done += len(sets)


def _scoring(gallery: Gallery, asked: QueryRequest) -> Scoring:
    """The similarity that was asked for, or else the one the gallery's model was trained with."""
    trained = dict((gallery.metadata.get("model") or {}).get("similarity") or {})
    similarity = trained.pop("similarity", "smooth_chamfer")
    if asked.similarity not in (None, similarity):
        similarity, trained = asked.similarity, {}
    alpha = trained.pop("alpha", 16.0) if asked.alpha is None else asked.alpha
    log_mean = bool(trained.pop("log_mean", False))
    return Scoring(similarity, alpha, log_mean, asked.impl, trained)


def _check_sheet(path: Path, gallery: Gallery) -> None:
    """Refuse before the search what could not be drawn after it."""
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: a contact sheet is a picture file such as found.png")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder for the contact sheet")
    if not {"path", "text"} & set(gallery.columns):
        raise ValueError(
            f"{gallery.path} has no column path (of pictures) or text that could be drawn: "
            "build it with --images or --texts, or give a column path"
        )


def _sheet_row(found: Answer, gallery: Gallery) -> SheetRow:
    query = found["query"]
    tiles = [
        Tile(
            caption=str(hit.get("caption") or hit.get("text") or hit["id"]),
            score=hit["score"],
            image=_picture(hit.get("path"), gallery),
        )
        for hit in found["hits"]
    ]
    return SheetRow(tiles, text=label(query), image=query.get("image"))


def _picture(path: str | None, gallery: Gallery) -> Path | None:
    """The picture's file; relative paths count from the gallery's folder, then from here."""
    if path is None:
        return None
    beside = gallery.path / path
    return beside if beside.is_file() else Path(path)
