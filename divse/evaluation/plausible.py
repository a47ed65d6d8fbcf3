"""Plausible matches (PCME; Chun et al., CVPR 2021): pictures of nearly the same classes.

Two pictures are plausible matches at zeta if the sets of their object classes differ in at most
zeta classes; a caption goes with its picture. PMRP is R-Precision over plausible matches, averaged
over zeta = 0, 1, 2. Pictures without a class (no annotated object) neither ask nor compete.

Ground truth is one of
    instances_val2014.json   COCO's instances: lists of annotations {image_id, category_id}
    labels.npy               (I, C) of 0 and 1 in the order of the pictures, for any data
    a folder                 pm_image_to_caption.json and pm_caption_to_image.json, as the package
                             eccv-caption reads them: one fixed zeta, no figure of folds
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from divse.evaluation.corpus import Corpus
from divse.evaluation.eccv import listed, two_files
from divse.evaluation.judgement import Array, Judgement, both_ways
from divse.npy import read_npy

ZETAS = (0, 1, 2)
ROWS = 1024  # pictures compared with all others at a time


def read_plausible(
    path: Path | None, corpus: Corpus, folds: Sequence[Array | None]
) -> list[tuple[Judgement, Judgement]]:
    """Judgements of pictures and of captions, for each fold (None: all pictures) and zeta."""
    if path is None:
        raise ValueError(
            "PMRP needs its ground truth: --pmrp instances_val2014.json, labels.npy (pictures by "
            "classes), or a folder with pm_image_to_caption.json and pm_caption_to_image.json"
        )
    if path.is_dir():
        if list(folds) != [None]:
            raise ValueError(f"{path}: these pairs are of all pictures; folds need class labels")
        return [listed(*two_files(path, "pm", corpus), gallery=corpus.first_captions())]
    labels = read_labels(path, corpus)
    labelled = np.flatnonzero(labels.any(axis=1))
    among = [labelled if fold is None else np.intersect1d(labelled, fold) for fold in folds]
    return [judgements(labels, corpus, some, zeta) for some in among for zeta in ZETAS]


def judgements(
    labels: Array, corpus: Corpus, pictures: Array, zeta: int
) -> tuple[Judgement, Judgement]:
    """Judge some pictures and their captions: classes that differ in at most ``zeta``."""
    if not len(pictures):
        raise ValueError("no picture has a class: PMRP cannot be measured")
    first, second = near(labels[pictures], zeta)
    kept = corpus.first_captions()
    owner = corpus.image_of_caption[kept]
    captions = kept[np.isin(owner, pictures)]
    # each plausible pair of pictures is a pair of the first and every caption of the second
    place = np.searchsorted(pictures, corpus.image_of_caption[captions])
    order = np.argsort(place, kind="stable")
    count = np.bincount(place, minlength=len(pictures))
    begin = np.cumsum(count) - count
    times = count[second]
    shift = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    fits = captions[order][np.repeat(begin[second], times) + shift]
    return both_ways(
        pictures[np.repeat(first, times)],
        fits,
        image_gallery=pictures,
        caption_gallery=captions,
        every=True,
    )


def near(labels: Array, zeta: int) -> tuple[Array, Array]:
    """Pairs of rows (n, C) of 0 and 1 that differ in at most ``zeta`` places, both (M,)."""
    codes = labels.astype(np.float32)
    total = codes.sum(1)
    first, second = [], []
    for start in range(0, len(codes), ROWS):
        some = codes[start : start + ROWS]
        distance = total[start : start + ROWS, None] + total - 2 * (some @ codes.T)
        a, b = np.nonzero(distance <= zeta)
        first.append(a + start)
        second.append(b)
    return np.concatenate(first), np.concatenate(second)


def read_labels(path: Path, corpus: Corpus) -> Array:
    """Classes of each picture, bool (I, C)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of class labels")
    if path.suffix == ".npy":
        labels = read_npy(path)
        if labels.ndim != 2 or len(labels) != corpus.images or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{path}: expected 0 and 1 of shape ({corpus.images}, classes), got "
                f"{labels.dtype} {labels.shape}"
            )
        return labels.astype(bool)
    return _instances(path, corpus)


def _instances(path: Path, corpus: Corpus) -> Array:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(int(a["image_id"]), int(a["category_id"])) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: expected COCO's instances, a list annotations of image_id and category_id"
        ) from None
    ids, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    places, there = corpus.places("image", ids)
    if not there.any():
        raise ValueError(f"{path}: none of its annotations is about a picture of {corpus.name}")
    names, column = np.unique(classes, return_inverse=True)
    labels = np.zeros((corpus.images, len(names)), bool)
    labels[places[there], column[there]] = True
    return labels
