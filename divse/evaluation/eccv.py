"""ECCV Caption (Chun et al., ECCV 2022): pairs of COCO's test split that people have verified.

Two JSON files, `eccv_image_to_caption.json` and `eccv_caption_to_image.json`: {query id: [ids that
fit]}. They lie inside the package eccv-caption (MIT), which is read as files and not imported.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from divse.evaluation.corpus import Corpus
from divse.evaluation.judgement import Array, Judgement

LOST = 0.01  # share of ids that may be unknown before it must be other data


class Pairs(NamedTuple):
    """Positions of queries and of what fits them, both (M,).

    lost: the query of each fitting item that is not in the corpus
    """

    queries: Array
    items: Array
    lost: Array


def package_folder() -> Path:
    """Where the installed package eccv-caption keeps its ground truth."""
    spec = find_spec("eccv_caption")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            'this ground truth comes with the package eccv-caption: pip install "divse[eval]"'
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read_eccv(folder: Path | None, corpus: Corpus) -> tuple[Pairs, Pairs]:
    """Fitting captions of pictures, and fitting pictures of captions."""
    folder = package_folder() if folder is None else folder
    return two_files(folder, "eccv", corpus)


def two_files(folder: Path, prefix: str, corpus: Corpus) -> tuple[Pairs, Pairs]:
    """Pairs of PREFIX_image_to_caption.json and of PREFIX_caption_to_image.json."""
    return (
        read_pairs(folder / f"{prefix}_image_to_caption.json", corpus, "image", "caption"),
        read_pairs(folder / f"{prefix}_caption_to_image.json", corpus, "caption", "image"),
    )


def listed(captions: Pairs, images: Pairs, gallery: Array) -> tuple[Judgement, Judgement]:
    """Judgements of pictures, whose captions compete within a gallery, and of captions."""
    out = ~np.isin(captions.items, gallery)
    lost = np.append(captions.lost, captions.queries[out])
    return (
        Judgement.of_pairs(*captions[:2], lost=lost, gallery=gallery, every=True),
        Judgement.of_pairs(*images[:2], lost=images.lost, by_column=True, every=True),
    )


def read_pairs(file: Path, corpus: Corpus, query: str, item: str) -> Pairs:
    """Positions of the pairs of a file {query id: [item ids]}.

    The corpus must have every query. A few items may be lost: the file of ECCV Caption names two
    captions that are the sixth of their picture.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file of ground truth")
    try:
        content = _loaded(file)
        names = np.array([int(key) for key in content], np.int64)
        asked = np.repeat(names, [len(items) for items in content.values()])
        fits = np.array(list(chain.from_iterable(content.values())), np.int64)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: expected JSON {{query id: [ids]}}: {error}") from None
    queries = _known(file, query, asked, corpus, 0.0)
    items, there = _known(file, item, fits, corpus, LOST)
    return Pairs(queries[0][there], items[there], queries[0][~there])


def _known(file: Path, kind: str, ids: Array, corpus: Corpus, lost: float) -> tuple[Array, Array]:
    places, there = corpus.places(kind, ids)
    if (~there).mean() > lost:
        raise ValueError(
            f"{file}: {int((~there).sum())} of {len(ids)} {kind} ids are not in {corpus.name} "
            f"(first: {ids[~there][0]}); this ground truth is about all of COCO's test split "
            "(5000 pictures, the first 5 captions of each)"
        )
    return places, there


def _loaded(file: Path) -> dict[str, list[int]]:
    loaded: dict[str, list[int]] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def coco_test_ids() -> Array:
    """Annotation ids of the captions of COCO's test split, five a picture, in the usual order."""
    ids: Array = np.load(package_folder() / "coco_test_ids.npy", allow_pickle=False)
    return ids


def coco_test_images(caption_ids: Array) -> Array:
    """Picture ids (I,) of five consecutive captions each, by the package's own table."""
    owner = _loaded(package_folder() / "original_caption_to_image.json")
    return np.array([int(owner[str(index)][0]) for index in caption_ids[::5]], np.int64)
