"""webdataset: shards of `.tar` files, a sample being the members that share a name.

The picture is `.jpg`, `.jpeg`, `.png` or `.webp`; captions are `.txt` or `.caption` (one a line),
or a `.json` with captions by one of the usual names (and a split, if it says so). Everything else
is passed over, pickles above all. Where each member lies is found once and kept in INDEX beside the
shards; a picture is then one read at its offset, in any order.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from divse.data.captions import COLUMNS, flatten, split_of
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root
from divse.data.pictures import Picture, decode_picture
from divse.data.shards import relative_files, require_series, split_in_path

INDEX = "divse-index.json"
VERSION = 2
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
BLOCK = 512  # of tar
TEXTS = (".txt", ".caption", ".captions")
Sample = dict[str, Any]  # key, shard, offset, size, captions, split (None: the shard's name says)


def load(split: str, *, path: str | Path | None = None) -> ImageTextData:
    """Load a split of the shards in the folder `path`, or of one shard."""
    check_split(split)
    root = data_root(path, "WebDataset shards")
    shards = find_shards(root)
    require_series(shards, f"shards of {root.name}")
    folder = root if root.is_dir() else root.parent
    chosen = [
        sample
        for shard, samples in read_index(folder, shards).items()
        for sample in samples
        if _split(sample, shard) == split
    ]
    if not chosen:
        raise ValueError(
            f"{root} has no samples of split {split!r} in {len(shards)} shards: name the shards or "
            "their folders by split, e.g. train-00000.tar"
        )

    def read_image(index: int) -> Picture:
        sample = chosen[index]
        with (folder / sample["shard"]).open("rb") as file:
            file.seek(sample["offset"])
            return decode_picture(file.read(sample["size"]), f"{sample['shard']}/{sample['key']}")

    return ImageTextData.gather(
        root.resolve().stem,
        split,
        [f"{sample['shard'].removesuffix('.tar')}/{sample['key']}" for sample in chosen],
        [sample["captions"] for sample in chosen],
        read_image=read_image,
    )


def recognise(path: Path) -> bool:
    """Whether there are tar files at a path."""
    return bool(relative_files(path, ["*.tar"]))


def find_shards(root: Path) -> list[Path]:
    """Shards at a path; compressed ones are refused, for they cannot be read at an offset."""
    packed = relative_files(root, ["*.tar.gz", "*.tgz", "*.tar.zst"])
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed: unpack it to .tar, which can be read in any order"
        )
    shards = relative_files(root, ["*.tar"])
    if not shards:
        raise FileNotFoundError(f"no .tar shards in {root}")
    return shards


def read_index(folder: Path, shards: list[Path]) -> dict[str, list[Sample]]:
    """Samples by shard; read from INDEX if it fits the shards, else found and written there."""
    from tqdm import tqdm

    known, changed = _known(folder / INDEX), False
    names = [shard.relative_to(folder).as_posix() for shard in shards]
    for shard, name in zip(
        tqdm(shards, desc="index of shards", delay=1, disable=None), names, strict=True
    ):
        state = shard.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        if known.get(name, {}).get("stamp") != stamp:
            known[name] = {"stamp": stamp, "samples": list(scan(shard, name))}
            changed = True
    if changed and os.access(folder, os.W_OK):
        partial = folder / f"{INDEX}.{os.getpid()}.partial"
        partial.write_text(json.dumps({"version": VERSION, "shards": known}))
        partial.replace(folder / INDEX)
    return {name: known[name]["samples"] for name in names}


def _known(file: Path) -> dict[str, Any]:
    """What an index holds; nothing if there is none, or one that this code did not write."""
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(content["shards"]) if content.get("version") == VERSION else {}


def scan(shard: Path, name: str) -> Iterator[Sample]:
    """Samples of a shard that have a picture and captions."""
    size, key = shard.stat().st_size, ""
    sample: Sample = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(f"{shard} is cut short: {member.name} goes beyond its end")
                stem, ending = split_name(member.name)
                if stem != key:
                    yield from _complete(sample, key, name)
                    sample, key = {}, stem
                sample |= _member(tar, member, ending, f"{shard}: {member.name}")
            _require_end(shard, tar.offset)
    except tarfile.TarError as error:
        raise ValueError(f"{shard} cannot be read as tar: {error}") from None
    yield from _complete(sample, key, name)


def _require_end(shard: Path, offset: int) -> None:
    """Refuse a shard that stops between two members: tar files end with blocks of zeros."""
    with shard.open("rb") as file:
        file.seek(max(0, offset - BLOCK))  # tarfile stands before or behind the first of them
        rest = file.read(2 * BLOCK)
    if rest[-BLOCK:] != bytes(BLOCK):
        raise ValueError(
            f"{shard} is cut short, or was never closed by its writer: it has no end mark"
        )


def split_name(name: str) -> tuple[str, str]:
    """Cut a member's name at the first dot of its last part: the key, and the ending."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, dot + ending.lower()


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, where: str) -> Sample:
    """What a member adds to its sample."""
    if ending in PICTURES:
        return {"offset": member.offset_data, "size": member.size}
    if ending not in (*TEXTS, ".json"):
        return {}
    file = tar.extractfile(member)
    assert file is not None
    try:
        text = file.read().decode()
        if ending != ".json":
            return {"captions": [line.strip() for line in text.splitlines() if line.strip()]}
        return _described(json.loads(text), where)
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}") from None


def _described(values: Any, where: str) -> Sample:
    """What a sample's JSON says: a split, and captions that a text member would replace."""
    if not isinstance(values, Mapping):
        return {}
    cells = [values[name] for name in COLUMNS["captions"] if values.get(name)][:1]
    return {"described": list(flatten(where, cells)), "split": values.get("split")}


def _complete(sample: Sample, key: str, shard: str) -> Iterator[Sample]:
    captions = sample.get("captions") or sample.get("described")
    if "offset" in sample and captions:
        yield {
            "key": key,
            "shard": shard,
            "offset": sample["offset"],
            "size": sample["size"],
            "captions": captions,
            "split": sample.get("split"),
        }


def _split(sample: Sample, shard: str) -> str:
    """A sample's split: as its JSON says, else as the shard's name says, else by a hash."""
    said = sample["split"] or split_in_path(Path(shard))
    return split_of(f"{shard}/{sample['key']}", sample["key"], [said] if said else [])
