"""From a trained run and what somebody asks to what the figures draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.data.pictures import fitted_part, read_picture
from divse.npy import read_npy
from divse.plots.attention import Looked
from divse.plots.neighbours import Asked, Neighbour, Pixels, nearest, nearest_wholes
from divse.plots.space import Family
from divse.plots.trained import TrainedRun, data_name
from divse.sets import EmbeddingSets

WHOLE = 3  # neighbours of a whole set, beside those of its elements
GREY_CAPTIONS = 400


@dataclass(frozen=True)
class Question:
    """A picture that was asked about: what the model reads of it, and what was found."""

    inputs: NDArray[Any]
    asked: Asked


def ask_pictures(
    trained: TrainedRun,
    rows: Sequence[int],
    files: Sequence[Path],
    topk: int,
    seed: int,
    default: int,
) -> list[Question]:
    """Pictures of the split and picture files with their nearest captions; some drawn, if none.

    Where the model reads regions, files are what to show of the pictures in `rows`.
    """
    if not rows and not files:
        rows = trained.sample(default, seed)
    questions = [_ask_row(trained, row, topk) for row in rows]
    if trained.reads_regions and files:
        return _shown(trained, questions, files)
    for file in files:
        pixels = read_picture(file)
        asked = replace(_nearest_captions(trained, pixels, topk), name=file.name, pixels=pixels)
        questions.append(Question(pixels, asked))
    return questions


def _ask_row(trained: TrainedRun, row: int, topk: int) -> Question:
    inputs = trained.inputs([row])[0]
    asked = _nearest_captions(trained, inputs, topk)
    asked = replace(asked, name=trained.data.image_ids[row], pixels=trained.pixels(row))
    found = {n.row for some in [*asked.elements, asked.whole] for n in some}
    fits = frozenset(caption for caption in found if trained.fits(row, caption))
    return Question(inputs, replace(asked, fits=fits))


def _shown(
    trained: TrainedRun, questions: Sequence[Question], files: Sequence[Path]
) -> list[Question]:
    """Questions about regions, with the pictures that their regions were found in."""
    if len(files) != len(questions):
        raise ValueError(
            f"{trained.folder} reads features of regions, not pictures: --image shows what an "
            f"--index is of, so give as many; got {len(questions)} --index, {len(files)} --image"
        )
    return [
        replace(question, asked=replace(question.asked, pixels=read_picture(file)))
        for question, file in zip(questions, files, strict=True)
    ]


def _nearest_captions(trained: TrainedRun, inputs: NDArray[Any], topk: int) -> Asked:
    one = trained.encoder.encode_images([inputs])
    captions = trained.data.captions
    elements = nearest(np.asarray(one.numpy().values)[0], trained.texts, topk, captions)
    similarity = trained.encoder.similarity
    whole = nearest_wholes(one, trained.texts, min(topk, WHOLE), similarity, captions)
    return Asked(elements, whole)


def look(
    trained: TrainedRun, questions: Sequence[Question], boxes: Path | None = None
) -> list[Looked]:
    """Add where the elements looked, and the boxes of regions where a file has them."""
    found = []
    for question in questions:
        maps = trained.encoder.attend_images([question.inputs])[0].numpy()
        found.append(Looked(question.asked, maps, _view(trained, question.asked.pixels)))
    if boxes is None:
        return found
    if not trained.reads_regions or len(found) != 1:
        raise ValueError("--boxes: belong to the regions of one picture, --index I")
    held = read_npy(boxes)
    expected = (found[0].maps.shape[1], 4)
    if held.shape != expected:
        raise ValueError(f"{boxes}: got {held.shape}, expected {expected}: x1 y1 x2 y2 a region")
    if found[0].asked.pixels is None:
        raise ValueError("--boxes: give the picture to draw them over, --image FILE")
    return [replace(found[0], boxes=held)]


def _view(trained: TrainedRun, pixels: Pixels | None) -> Pixels | None:
    """The part of a picture that the model reads."""
    image = trained.config.image
    return None if pixels is None else fitted_part(pixels, image.size, image.crop_pct)


def ask_texts(
    trained: TrainedRun, texts: Sequence[str], topk: int
) -> tuple[list[Asked], Mapping[int, Pixels]]:
    """Captions with their nearest pictures, and the pixels of those."""
    if trained.data.read_image is None:
        raise ValueError(f"{trained.data.name} holds features of regions, no pictures to show")
    gallery = trained.images(range(len(trained.data)))
    sets = trained.encoder.encode_texts(texts)
    asked = []
    for place, text in enumerate(texts):
        one = EmbeddingSets(sets.values[place : place + 1])
        elements = nearest(np.asarray(one.numpy().values)[0], gallery, topk)
        whole = _nearest_pictures(one, gallery, topk, trained)
        found = {n.row for some in [*elements, whole] for n in some}
        asked.append(Asked(elements, whole, text=text, fits=_fitting(trained, text, found)))
    rows = {n.row for one in asked for some in [*one.elements, one.whole] for n in some}
    return asked, {row: trained.data.image(row) for row in rows}


def _nearest_pictures(
    one: EmbeddingSets, gallery: EmbeddingSets, topk: int, trained: TrainedRun
) -> list[Neighbour]:
    return nearest_wholes(one, gallery, topk, trained.encoder.similarity)


def _fitting(trained: TrainedRun, text: str, rows: set[int]) -> frozenset[int] | None:
    """Which pictures a text fits, if it is one of the split's captions."""
    if text not in trained.data.captions:
        return None
    caption = trained.data.captions.index(text)
    return frozenset(row for row in rows if trained.fits(row, caption))


def families_of(
    trained: TrainedRun, rows: Sequence[int]
) -> tuple[list[Family], NDArray[np.floating[Any]]]:
    """Pictures with their captions, and elements of other captions to lie behind them."""
    data, texts = trained.data, np.asarray(trained.texts.numpy().values)
    images = np.asarray(trained.images(rows).numpy().values)
    own = [range(*data.caption_offsets[row : row + 2]) for row in rows]
    families = [
        Family(
            data.image_ids[row],
            images[place],
            [texts[caption] for caption in own[place]],
            trained.pixels(row),
            data.captions[own[place][0]] if len(own[place]) else "",
        )
        for place, row in enumerate(rows)
    ]
    drawn = {caption for captions in own for caption in captions}
    others = [caption for caption in range(len(texts)) if caption not in drawn]
    step = max(1, len(others) // GREY_CAPTIONS)
    return families, texts[others[::step]].reshape(-1, texts.shape[-1])


def name_of_captions(trained: TrainedRun) -> str:
    """What the captions are that neighbours are taken from."""
    return f"{len(trained.data.captions):,} captions ({_split(trained)})"


def name_of_pictures(trained: TrainedRun) -> str:
    """What the pictures are that neighbours are taken from."""
    return f"{len(trained.data):,} pictures ({_split(trained)})"


def _split(trained: TrainedRun) -> str:
    return f"{data_name(trained.config)}, {trained.data.split}"
