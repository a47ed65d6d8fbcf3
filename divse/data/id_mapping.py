"""id_mapping: pictures of the older code, named by `{train,dev,test,testall}_ids.txt`.

`id_mapping.json` maps each id to a picture file, {"391895": "train2014/COCO_train2014_...jpg"};
captions are as with regions, and both lie in `path` or in `path`/precomp.
"""

from __future__ import annotations

from pathlib import Path

from divse.data.caption_lines import (
    CAPTIONS_A_PICTURE,
    file_split,
    group,
    ids_of_pictures,
    read_captions,
    read_ids,
    stand_in_fives,
)
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, first_file, folder_of, names_in, read_json, require

FILE = "id_mapping.json"
PLACES = (".", "precomp")


def load(
    split: str,
    *,
    path: str | Path | None = None,
    images: str | Path | None = None,
    words: bool = False,
) -> ImageTextData:
    """Load a split of the folder `path`.

    images: folder that picture paths are relative to, if not `path` or `path`/images
    words: take the captions that are cut into words, if both are there
    """
    check_split(split)
    root = data_root(path, "pictures named by ids")
    mapping_file = first_file([root / place for place in PLACES], [FILE]) or root / FILE
    require([mapping_file], "id maps")
    folder = next((root / p for p in PLACES if any((root / p).glob("*_ids.txt"))), root)
    name = file_split(folder, split, ("_ids.txt",))
    require([folder / f"{name}_ids.txt"], f"files of {split}")
    captions = read_captions(folder, name, words)
    what = str(folder / f"{name}_ids.txt")
    ids = read_ids(folder, name) or []
    pictures = len(ids) // CAPTIONS_A_PICTURE if stand_in_fives(ids) else len(ids)
    ids = ids_of_pictures(ids, pictures, what)
    files = _files(mapping_file, ids, what)
    places = [Path(images)] if images else [root, root / "images", mapping_file.parent / "images"]
    base = folder_of(places, files)
    paths = [base / file for file in files]
    require(paths, f"pictures of {mapping_file.name}, {split}", "or give images=FOLDER")
    return ImageTextData.gather(
        root.resolve().name, split, ids, group(captions, pictures, what), image_paths=paths
    )


def recognise(path: Path) -> bool:
    """Whether there is an id map with id lists in a folder."""
    there = {name for place in PLACES for name in names_in(path / place)}
    return FILE in there and any(name.endswith("_ids.txt") for name in there)


def _files(mapping_file: Path, ids: list[str], what: str) -> list[str]:
    """Picture files of ids, by the map."""
    mapping = read_json(mapping_file)
    if not isinstance(mapping, dict):
        raise ValueError(f"{mapping_file}: expected an object id -> file, as JSON")
    unknown = [name for name in ids if name not in mapping]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(ids)} ids of {what} are not in {mapping_file}: "
            f"{', '.join(unknown[:5])}"
        )
    return [str(mapping[name]) for name in ids]
