"""coco_captions: COCO's own caption files, split by lists of annotation ids, as VSE++ has them.

`annotations/captions_{train,val}2014.json` and `annotations/coco_{train,dev,restval,test}_ids.npy`;
restval joins train. A picture's captions are those of its annotations that a list names, in the
order of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, first_file, names_in, read_json, require
from divse.npy import read_npy

PLACES = (".", "annotations")
ROOTS = (".", "images")
# our splits -> (list of ids, the folder and caption file that it is from)
LISTS = {
    "train": (("train", "train2014"), ("restval", "val2014")),
    "val": (("dev", "val2014"),),
    "test": (("test", "val2014"),),
}


class Captioned(NamedTuple):
    """A picture file and its captions."""

    path: Path
    captions: list[str]


def load(
    split: str, *, path: str | Path | None = None, images: str | Path | None = None
) -> ImageTextData:
    """Load a split of the folder `path`.

    images: folder that holds train2014 and val2014, if not `path` or `path`/images
    """
    check_split(split)
    root = data_root(path, "COCO captions")
    folder = annotation_folder(root)
    parts = LISTS[split]
    needed = {folder / f"coco_{name}_ids.npy": None for name, _ in parts}
    needed |= {folder / f"captions_{year}.json": None for _, year in parts}
    require(needed, f"annotation files of {split}")
    roots = [Path(images)] if images else [root / name for name in ROOTS]
    pictures: dict[str, Captioned] = {}
    for name, year in parts:
        place = next((r / year for r in roots if (r / year).is_dir()), roots[0] / year)
        _gather(folder, name, year, place, pictures)
    paths = [picture.path for picture in pictures.values()]
    require(paths, f"pictures of {split}", "or say where they are: images=FOLDER")
    captions = [picture.captions for picture in pictures.values()]
    return ImageTextData.gather("coco", split, list(pictures), captions, image_paths=paths)


def recognise(path: Path) -> bool:
    """Whether there are caption files of COCO in a folder."""
    return first_file([path / place for place in PLACES], ["captions_*2014.json"]) is not None


def annotation_folder(root: Path) -> Path:
    """The folder that holds the annotation files; `root`/annotations if none does."""
    names = ("captions_train2014.json", "captions_val2014.json")
    return next(
        (root / place for place in PLACES if set(names) & names_in(root / place)),
        root / "annotations",
    )


def _gather(
    folder: Path, name: str, year: str, place: Path, pictures: dict[str, Captioned]
) -> None:
    """Add the annotations of a list to the pictures they are about."""
    content = read_json(folder / f"captions_{year}.json")
    if not isinstance(content, dict) or not {"annotations", "images"} <= set(content):
        raise ValueError(f"captions_{year}.json in {folder} has no lists annotations and images")
    annotations: Mapping[int, Any] = {a["id"]: a for a in content["annotations"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    ids = read_npy(folder / f"coco_{name}_ids.npy")
    unknown = [int(i) for i in ids if int(i) not in annotations]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(ids)} ids of coco_{name}_ids.npy are no annotations of "
            f"captions_{year}.json: {', '.join(map(str, unknown[:5]))}"
        )
    for index in ids:
        annotation = annotations[int(index)]
        caption = annotation["caption"].strip()
        picture = annotation["image_id"]
        if caption:
            path = place / files[picture]
            pictures.setdefault(str(picture), Captioned(path, [])).captions.append(caption)
