"""regions: features of image regions, precomputed, as SCAN, VSE-infinity and later code share them.

`{train,dev,test,testall}_ims.npy` is float32 (I, R, C), usually (I, 36, 2048), memory-mapped here:
no split is ever read as a whole. Captions are `{name}_caps.txt` or `{name}_precaps_stan.txt`, five
consecutive lines a picture. Where the array has as many rows as there are captions, each picture
stands in it once for each of its captions; every copy but the first is passed over.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.data.caption_lines import (
    CAPTIONS_A_PICTURE,
    FILE_SPLITS,
    SENTENCES,
    caption_file,
    file_split,
    group,
    ids_of_pictures,
    read_captions,
    read_ids,
    stand_in_fives,
)
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, require
from divse.npy import read_npy

PLACES = (".", "coco_precomp", "f30k_precomp", "precomp")
FEATURES = "_ims.npy"
COMPARED = 10  # pictures whose copies are compared, to tell copies from pictures of their own


def load(
    split: str, *, path: str | Path | None = None, test: str = "", words: bool = False
) -> ImageTextData:
    """Load a split of the folder `path`, e.g. coco_precomp.

    test: what the files of the test split are called, if not testall or, without that, test
    words: take the captions that are cut into words, if both are there
    """
    check_split(split)
    folder = find_folder(data_root(path, "region features"))
    name = test if test and split == "test" else file_split(folder, split, (FEATURES,))
    file = folder / f"{name}{FEATURES}"
    needed = [file, caption_file(folder, name, words)]
    usual = " or ".join(FILE_SPLITS[split])
    require(needed, f"files of {split}", f"regions are {usual} + {FEATURES} and {SENTENCES}")
    features = open_features(file)
    captions = read_captions(folder, name, words)
    ids = read_ids(folder, name)
    step = copies(features, len(captions), ids)
    pictures = len(features) // step
    names = [str(i) for i in range(pictures)]
    if ids and len(ids) % pictures == 0:
        names = ids_of_pictures(ids, pictures, f"{folder / name}_ids.txt")
    elif ids is not None:
        warnings.warn(
            f"{folder / name}_ids.txt has {len(ids)} ids for {pictures} pictures: "
            "they are numbered instead",
            stacklevel=2,
        )
    return ImageTextData.gather(
        folder.resolve().name,
        split,
        names,
        group(captions, pictures, str(file)),
        read_features=lambda index: features[index * step],
    )


def recognise(path: Path) -> bool:
    """Whether there are region arrays in a folder."""
    return any(any((path / place).glob(f"*{FEATURES}")) for place in PLACES)


def find_folder(path: Path) -> Path:
    """Return the folder of the arrays: `path`, or its only one of the usual names."""
    found = [path / place for place in PLACES if any((path / place).glob(f"*{FEATURES}"))]
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise ValueError(f"{path} holds several sets of regions ({names}): give one of them")
    return found[0] if found else path


def open_features(file: Path) -> NDArray[np.floating[Any]]:
    """Memory-map an array of features (I, R, C); one that holds objects is refused by numpy."""
    features: NDArray[np.floating[Any]] = read_npy(file, "r")
    if features.ndim != 3 or features.dtype.kind != "f" or not features.size:
        raise ValueError(
            f"{file}: expected floats (pictures, regions, channels), "
            f"got {features.dtype} {features.shape}"
        )
    return features


def copies(features: NDArray[np.floating[Any]], captions: int, ids: list[str] | None) -> int:
    """How many consecutive rows each picture has: one, or five where they equal the captions."""
    if len(features) != captions or captions % CAPTIONS_A_PICTURE:
        return 1
    if ids is not None and len(ids) == captions:
        return CAPTIONS_A_PICTURE if stand_in_fives(ids) else 1
    end = min(captions, COMPARED * CAPTIONS_A_PICTURE)
    rows = features[:end].reshape(-1, CAPTIONS_A_PICTURE, *features.shape[1:])
    return CAPTIONS_A_PICTURE if (rows == rows[:, :1]).all() else 1
