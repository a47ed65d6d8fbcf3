"""karpathy: COCO, Flickr30K and Flickr8K by the split files dataset_{coco,flickr30k,flickr8k}.json.

The file says for every picture its split, its captions and its place: `filepath` (train2014 or
val2014 in COCO, absent in Flickr) and `filename`. Restval joins train. Picture folders are looked
for beside the file, in `images` there, and one folder up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from divse.data.captions import SPLIT_NAMES
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, first_file, folder_of, read_json, require

PATTERNS = ("dataset_*.json", "dataset.json")
PLACES = (".", "annotations", "karpathy", "caption_datasets")
FLICKR_FOLDERS = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "images", ".")


def load(
    split: str, *, path: str | Path | None = None, images: str | Path | None = None
) -> ImageTextData:
    """Load a split of the JSON file at `path`, or in that folder.

    images: folder that holds the picture folders or pictures, if it is not near the file
    """
    check_split(split)
    file = find_json(data_root(path, "Karpathy splits"))
    records = read_split(file, split)
    roots = [Path(images)] if images else list(near(file))
    paths = picture_paths(roots, records)
    require(paths, f"pictures of {file.name}, {split}", "or say where they are: images=FOLDER")
    return ImageTextData.gather(
        source(file),
        split,
        [picture_id(record) for record in records],
        [captions(record) for record in records],
        image_paths=paths,
    )


def recognise(path: Path) -> bool:
    """Whether there is a split file at a path."""
    if path.is_file():
        return path.suffix == ".json" and path.name.startswith("dataset")
    return first_file([path / place for place in PLACES], PATTERNS) is not None


def find_json(path: Path) -> Path:
    """Return the split file at `path`, or in that folder."""
    if path.is_file():
        return path
    places = [path / place for place in PLACES]
    found = [file for place in places for name in PATTERNS for file in sorted(place.glob(name))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(
            f"no dataset_coco.json or dataset_flickr30k.json in {path} or its "
            f"{', '.join(PLACES[1:])}: these files come with the Karpathy splits"
        )
    names = ", ".join(str(file) for file in found)
    raise ValueError(f"{path} has several split files ({names}): give the path of one of them")


def read_split(file: Path, split: str) -> list[dict[str, Any]]:
    """Records of the pictures of a split that have captions, in the order of the file."""
    records = read_json(file)
    records = records.get("images") if isinstance(records, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{file} is no Karpathy split file: it has no list called images")
    chosen = []
    for number, record in enumerate(records):
        check_record(f"{file}, images[{number}]", record)
        if record["split"] not in SPLIT_NAMES:
            raise ValueError(f"{file}, images[{number}]: unknown split {record['split']!r}")
        if SPLIT_NAMES[record["split"]] == split and captions(record):
            chosen.append(record)
    if not chosen:
        raise ValueError(f"{file} has no pictures with captions in split {split!r}")
    return chosen


def check_record(where: str, record: Any) -> None:
    """Refuse a record that lacks what is read of it, or has it in another form."""
    forms = {"filename": (str, "text"), "split": (str, "text"), "sentences": (list, "a list")}
    for name, (form, called) in forms.items():
        if not isinstance(record, dict) or name not in record:
            raise ValueError(f"{where}: no {name!r}")
        if not isinstance(record[name], form):
            raise ValueError(f"{where}: {name!r} must be {called}, got {record[name]!r:.80}")
    for sentence in record["sentences"]:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f"{where}: a sentence without text 'raw', {sentence!r:.80}")


def captions(record: dict[str, Any]) -> list[str]:
    """Captions of a record; blank ones are left out."""
    found = [sentence["raw"].strip() for sentence in record["sentences"]]
    return [caption for caption in found if caption]


def picture_id(record: dict[str, Any]) -> str:
    """COCO's id of a picture, or the number that a Flickr file is named by."""
    return str(record.get("cocoid", Path(record["filename"]).stem))


def source(file: Path) -> str:
    """What a split file is about: coco, flickr30k or flickr8k."""
    return file.stem.removeprefix("dataset_")


def near(file: Path) -> Iterator[Path]:
    """Folders in which pictures may lie: beside a file, one up, and `images` of both."""
    for folder in (file.parent, file.parent.parent):
        yield from (folder, folder / "images")


def picture_paths(roots: Sequence[Path], records: Sequence[dict[str, Any]]) -> list[Path]:
    """Where the pictures are, each filepath (none in Flickr) being one folder."""
    files: dict[str, list[str]] = {}
    for record in records:
        files.setdefault(record.get("filepath", ""), []).append(record["filename"])
    folders = {}
    for filepath, names in files.items():
        usual = (filepath, ".") if filepath else FLICKR_FOLDERS
        folders[filepath] = folder_of([root / name for root in roots for name in usual], names)
    return [folders[record.get("filepath", "")] / record["filename"] for record in records]
