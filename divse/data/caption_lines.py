"""Caption files of the older code: one caption a line, five consecutive lines a picture.

`{name}_caps.txt` holds sentences; `{name}_precaps_stan.txt` holds the same, cut into words and
joined by commas. `{name}_ids.txt` has the pictures' ids, a line for each picture or each caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from divse.data.files import read_lines, require

CAPTIONS_A_PICTURE = 5
# our splits -> what the files of the older code call them, best first
FILE_SPLITS = {"train": ("train",), "val": ("dev", "val"), "test": ("testall", "test")}
WORDS = "_precaps_stan.txt"
SENTENCES = "_caps.txt"


def file_split(folder: Path, split: str, endings: Sequence[str]) -> str:
    """What the files of a split are called in a folder: of its names, the first that is there."""
    names = FILE_SPLITS[split]
    there = [n for n in names if any((folder / f"{n}{ending}").is_file() for ending in endings)]
    return there[0] if there else names[0]


def caption_file(folder: Path, name: str, words: bool = False) -> Path:
    """The caption file of `{name}`; `words` takes the file of words if both are there."""
    endings = (WORDS, SENTENCES) if words else (SENTENCES, WORDS)
    there = [ending for ending in endings if (folder / f"{name}{ending}").is_file()]
    there += [ending for ending in endings if any(folder.glob(f"*{ending}"))]  # of other splits
    return folder / f"{name}{[*there, *endings][0]}"


def read_captions(folder: Path, name: str, words: bool = False) -> list[str]:
    """Captions of `{name}`, in order."""
    file = caption_file(folder, name, words)
    require([file], f"caption files of {name}", "one caption a line, five lines a picture")
    lines = read_lines(file)
    if file.name.endswith(WORDS):
        lines = [" ".join(word for word in line.split(",") if word) for line in lines]
    empty = next((number for number, line in enumerate(lines, 1) if not line), None)
    if empty is not None:
        raise ValueError(f"{file}, line {empty}: an empty caption, which would shift the pictures")
    return lines


def group(captions: list[str], pictures: int, what: str) -> list[list[str]]:
    """Cut captions into those of each picture: five, or as many as the counts say."""
    each, rest = divmod(len(captions), max(pictures, 1))
    if rest or not each:
        raise ValueError(
            f"{what}: {len(captions)} captions cannot belong to {pictures} pictures, "
            f"{CAPTIONS_A_PICTURE} consecutive ones each; is one of the files cut short?"
        )
    return [captions[begin : begin + each] for begin in range(0, len(captions), each)]


def read_ids(folder: Path, name: str) -> list[str] | None:
    """Lines of `{name}_ids.txt`; None if there is no such file."""
    file = folder / f"{name}_ids.txt"
    return read_lines(file) if file.is_file() else None


def stand_in_fives(ids: list[str]) -> bool:
    """Whether ids come in runs of five: a line for each caption, not for each picture."""
    first = ids[::CAPTIONS_A_PICTURE]
    return len(ids) % CAPTIONS_A_PICTURE == 0 and all(
        ids[i::CAPTIONS_A_PICTURE] == first for i in range(CAPTIONS_A_PICTURE)
    )


def ids_of_pictures(ids: list[str], pictures: int, what: str) -> list[str]:
    """One id a picture, of lines that are one a picture or one a caption."""
    each, rest = divmod(len(ids), max(pictures, 1))
    if rest or not each:
        raise ValueError(f"{what}: {len(ids)} ids cannot belong to {pictures} pictures")
    return ids[::each]
