"""butd: region features in the TSV files of Bottom-Up Attention, with Karpathy splits.

A line is a picture: image_id, image_w, image_h, num_boxes, boxes, features, the last two float32 in
base64. The files of a folder (`*.tsv`, `*.tsv.0`, ...) are converted once, on first use, to one
packed float16 file that is memory-mapped (divse.data.packed), with the ids beside it. The number of
regions differs from picture to picture.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from divse.data import karpathy
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, read_json
from divse.data.packed import Block, Packed, write_packed

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
PATTERNS = ("*.tsv", "*.tsv.[0-9]*")
STORE = "regions.npy"
IDS = "regions.ids.json"


def load(
    split: str,
    *,
    path: str | Path | None = None,
    cache: str | Path | None = None,
    convert: bool = True,
) -> ImageTextData:
    """Load a split of the folder `path`, which holds TSV files and a Karpathy JSON.

    cache: folder of the converted features, if not `path`
    convert: False only looks at what is there; features cannot be read
    """
    check_split(split)
    root = data_root(path, "BUTD features")
    file = karpathy.find_json(root)
    records = karpathy.read_split(file, split)
    folder = Path(cache or root)
    store = converted(root, folder) if convert else None
    rows = {name: row for row, name in enumerate(ids_of(root, folder))}
    places = [rows.get(karpathy.picture_id(record), -1) for record in records]
    missing = [r["filename"] for r, place in zip(records, places, strict=True) if place < 0]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(records)} pictures of {split} are in none of the TSV files "
            f"of {root}: {', '.join(missing[:5])}; is a file missing or cut short?"
        )
    return ImageTextData.gather(
        karpathy.source(file),
        split,
        [karpathy.picture_id(record) for record in records],
        [karpathy.captions(record) for record in records],
        read_features=None if store is None else lambda index: store.item(places[index]),
    )


def recognise(path: Path) -> bool:
    """Whether there are TSV files of regions, or what became of them, in a folder."""
    return path.is_dir() and (bool(tsv_files(path)) or (path / STORE).is_file())


def tsv_files(folder: Path) -> list[Path]:
    """TSV files of regions in a folder, by name; tables with a header are none."""
    files = {file for pattern in PATTERNS for file in folder.glob(pattern)}
    return sorted(file for file in files if _is_regions(file))


def converted(root: Path, folder: Path) -> Packed:
    """Open the features of the TSV files in `root`, converted into `folder` if they are not yet."""
    if (folder / STORE).is_file():
        return Packed.open(folder / STORE)
    files = tsv_files(root)
    folder.mkdir(parents=True, exist_ok=True)

    def blocks(done: int) -> Iterator[Block]:
        ids = []
        for number, (where, cells) in enumerate(_lines(files)):
            ids.append(cells[0].decode())
            if number >= done:
                rows = decode(where, cells)
                yield rows, np.array([len(rows)])
        (folder / IDS).write_text(json.dumps(ids))

    return write_packed(folder / STORE, blocks)


def ids_of(root: Path, folder: Path) -> list[str]:
    """Picture ids in the order of the lines."""
    if (folder / STORE).is_file():
        ids: list[str] = read_json(folder / IDS)
        return ids
    return [cells[0].decode() for _, cells in _lines(tsv_files(root))]


def decode(where: str, cells: list[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    """Features (R, C) of a line."""
    try:
        count = int(cells[3])
        values = np.frombuffer(base64.b64decode(cells[5], validate=True), "<f4")
        rows = values.reshape(count, -1)
    except (ValueError, binascii.Error) as error:
        raise ValueError(
            f"{where}: features of {cells[3]!r} boxes cannot be read ({error})"
        ) from None
    if count < 1 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"{where}: expected finite features of at least one box")
    return rows.astype(np.float16)


def _lines(files: list[Path]) -> Iterator[tuple[str, list[bytes]]]:
    """Lines of all files, each with where it stands, under a bar of bytes."""
    from tqdm import tqdm

    total = sum(file.stat().st_size for file in files)
    with tqdm(
        desc="BUTD regions", total=total, unit="B", unit_scale=True, delay=1, disable=None
    ) as bar:
        for file in files:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    bar.update(len(line))
                    if line.strip():
                        where = f"{file}, line {number}"
                        yield where, _fields(where, line)


def _fields(where: str, line: bytes) -> list[bytes]:
    """Fields of a line, the last of a length that can be features of its boxes."""
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != len(FIELDS):
        raise ValueError(
            f"{where}: expected the {len(FIELDS)} fields {', '.join(FIELDS)}, "
            f"got {len(cells)}; is the file cut short?"
        )
    count, text = int(cells[3]) if cells[3].isdigit() else 0, cells[5]
    size = len(text) // 4 * 3 - text[-2:].count(b"=")
    if not count or not size or len(text) % 4 or size % (4 * count):
        raise ValueError(
            f"{where}: {len(text)} characters cannot be features of {cells[3]!r} boxes; "
            "is the file cut short?"
        )
    return cells


def _is_regions(file: Path) -> bool:
    with file.open("rb") as lines:
        cells = lines.read(200).split(b"\t")
    return len(cells) >= 4 and cells[0].isdigit() and cells[3].isdigit()
