"""Crisscrossed Captions (Parekh et al., EACL 2021): people's ratings of pairs of COCO.

CSV files of a split (`val`, `test`), each row two ids, the mean rating 0 to 5, and how the pair was
sampled: `sits_test.csv` (caption, picture), `sis_test.csv` (pictures), `sts_test.csv` (captions).

Fitting pairs for retrieval: SITS >= 3 (picture and caption); SIS >= 2.5; captions of one picture,
and STS >= 3. Ratings between two pictures, or two captions, hold both ways. The query of a rank
correlation is the first id of a row.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from divse.evaluation.corpus import Corpus
from divse.evaluation.correlation import Rated
from divse.evaluation.eccv import package_folder, two_files
from divse.evaluation.judgement import Array

FITS = {"sits": 3.0, "sis": 2.5, "sts": 3.0}
KINDS = {"sits": ("caption", "image"), "sis": ("image", "image"), "sts": ("caption", "caption")}
NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")

Pairs = tuple[Array, Array]


@dataclass
class CxC:
    """Fitting pairs (picture, caption), (picture, picture), (caption, caption), and ratings."""

    fitting: Pairs
    alike: Pairs | None = None
    same: Pairs | None = None
    rated: dict[str, Rated] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ratings:
    """Rows of a file whose ids are both in the corpus: positions and ratings, all (M,)."""

    first: Array
    second: Array
    ratings: Array

    def fitting(self, least: float) -> Pairs:
        """Pairs rated at least so."""
        keep = self.ratings >= least
        return self.first[keep], self.second[keep]


def read_cxc(folder: Path | None, corpus: Corpus, split: str) -> CxC:
    """Read the CSV files of a folder; without one, the fitting pairs of package eccv-caption."""
    if folder is None:
        of_images, of_captions = two_files(package_folder(), "cxc", corpus)
        pairs = (
            np.append(of_images.queries, of_captions.items),
            np.append(of_images.items, of_captions.queries),
        )
        note = "CxC: i2i, t2t and the rank correlations need the CSV files: --cxc FOLDER"
        return CxC(pairs, notes=[note])
    found: dict[str, Ratings] = {}
    notes: list[str] = []
    for kind in FITS:
        file = folder / f"{kind}_{split}.csv"
        if kind == "sits" or file.is_file():
            found[kind] = read_ratings(file, kind, corpus, notes)
        else:
            notes.append(f"CxC: {file} is not there, so its figures are left out")
    captions, images = found["sits"].fitting(FITS["sits"])
    return CxC(
        (images, captions),
        _both(found["sis"].fitting(FITS["sis"])) if "sis" in found else None,
        _same(found["sts"], corpus) if "sts" in found else None,
        {kind: _rated(kind, ratings) for kind, ratings in found.items()},
        notes,
    )


def read_ratings(file: Path, kind: str, corpus: Corpus, notes: list[str]) -> Ratings:
    """Read the rows of a file whose ids the corpus has; the notes tell how many it lacks."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file of CxC")
    ids: tuple[list[int], list[int]] = [], []
    ratings = []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines)
        next(rows, None)  # the header
        for number, row in enumerate(rows, start=2):
            try:
                for side in (0, 1):
                    ids[side].append(_number(row[side]))
                ratings.append(float(row[2]))
            except (IndexError, ValueError):
                raise ValueError(
                    f"{file}, line {number}: got {','.join(row)!r}, expected two ids and a rating"
                ) from None
    return _known(file, kind, corpus, ids, np.array(ratings), notes)


def _known(
    file: Path,
    kind: str,
    corpus: Corpus,
    ids: tuple[list[int], list[int]],
    ratings: Array,
    notes: list[str],
) -> Ratings:
    first, there = corpus.places(KINDS[kind][0], ids[0])
    second, too = corpus.places(KINDS[kind][1], ids[1])
    keep = there & too
    if keep.sum() * 2 < len(keep) or not len(keep):
        raise ValueError(
            f"{file}: only {int(keep.sum())} of {len(keep)} rated pairs are of {corpus.name}; is "
            "it the same split of COCO?"
        )
    if not keep.all():
        notes.append(
            f"{file.name}: {int((~keep).sum())} of {len(keep)} rated pairs name what is not in "
            f"{corpus.name}; they are left out"
        )
    return Ratings(first[keep], second[keep], ratings[keep])


def _number(word: str) -> int:
    """The number of an id: COCO_val2014:sentid:732091, COCO_val2014_000000365325.jpg, 365325."""
    found = NUMBER.search(word.strip())
    if found is None:
        raise ValueError(word)
    return int(found[1])


def _both(pairs: Pairs) -> Pairs:
    return np.append(*pairs), np.append(*pairs[::-1])


def _same(ratings: Ratings, corpus: Corpus) -> Pairs:
    """Captions that say the same: of one picture, or rated so."""
    kept = corpus.first_captions()
    owner = corpus.image_of_caption[kept]
    order = kept[np.argsort(owner, kind="stable")]
    owners = corpus.image_of_caption[order]
    begin = np.searchsorted(owners, owners)
    count = np.searchsorted(owners, owners, side="right") - begin
    first = np.repeat(order, count)
    shift = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    second = order[np.repeat(begin, count) + shift]
    rated = _both(ratings.fitting(FITS["sts"]))
    known = np.isin(rated[0], kept) & np.isin(rated[1], kept)
    return np.append(first, rated[0][known]), np.append(second, rated[1][known])


def _rated(kind: str, found: Ratings) -> Rated:
    if kind == "sits":  # rows of the scores are pictures, queries are captions
        return Rated("i2t", found.second, found.first, found.first, found.ratings)
    matrix = "i2i" if kind == "sis" else "t2t"
    return Rated(matrix, found.first, found.second, found.first, found.ratings)
