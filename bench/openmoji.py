"""Make the data set "OpenMoji pictures with captions" from a release of OpenMoji 17.0.0.

    npm pack openmoji@17.0.0 && tar xzf openmoji-17.0.0.tgz      # or unpack GitHub's source archive
    pip install resvg_py
    python bench/openmoji.py package --out openmoji [--compare FOLDER] [--png]

The release is read as it was published: data/openmoji.json (or openmoji.json) and color/svg/*.svg.
Nothing else is needed: the tags of emojibase-data are those that OpenMoji's own metadata carry.

    pictures  everything but flags, components (skin tones, hair) and variants of skin tone, in the
              order of the metadata; 128 x 128 on white, drawn from the SVG by resvg
    captions  the first is the annotation. The words of `tags`, then of `openmoji_tags`, each
              once and without the annotation (upper and lower case are equal), are dealt to
              n = ceil(words / 4) phrases like cards, words[i::n]; the first four are kept
    split     SHA-1 of the id modulo 10: 0 is test, 1 is val, the rest train

`--compare FOLDER` holds the result against another copy of the folder: captions.jsonl as bytes,
pictures pixel by pixel; it prints the differences and exits with 1 if there is any. Against the
folder that the project's figures rest on, the npm package openmoji 17.0.0 gave no difference in
2,186 pictures and 6,125 captions with resvg_py 0.5.0. Another version of resvg may draw a
pixel otherwise. `--png` shrinks the release's color/618x618/*.png instead (GitHub's archive has
them, the npm package does not): captions and split are the same, pixels along outlines are not.
That way was tested on a small release made by the tests, not on OpenMoji's own PNG files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RELEASE = "17.0.0"
SIDE = 128
WORDS, PHRASES = 4, 4  # words a phrase, phrases a picture behind its annotation
LEFT_OUT = ("flags", "component")
SPLITS = {0: "test", 1: "val"}
Entry = dict[str, Any]


def read_entries(release: Path) -> list[Entry]:
    """The metadata of every emoji and variant."""
    for path in (release / "data" / "openmoji.json", release / "openmoji.json"):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise SystemExit(
        f"{release} holds neither data/openmoji.json nor openmoji.json: give the folder of an "
        f"unpacked OpenMoji release {RELEASE}"
    )


def warn_of_version(release: Path) -> None:
    """Say on stderr if the release names another version than the data set's."""
    package = release / "package.json"
    found = json.loads(package.read_text()).get("version", "") if package.is_file() else RELEASE
    if found != RELEASE:
        print(f"this is OpenMoji {found}; the data set is made of {RELEASE}", file=sys.stderr)


def belongs(entry: Entry) -> bool:
    """Whether an emoji is part of the data set."""
    return entry["group"] not in LEFT_OUT and not entry["skintone"]


def captions_of(entry: Entry) -> list[str]:
    """The annotation, and up to four phrases of the other words."""
    annotation = entry["annotation"]
    words: dict[str, str] = {}
    for word in f"{entry['tags']},{entry['openmoji_tags']}".split(","):
        words.setdefault(word.strip().lower(), word.strip())
    told = [word for key, word in words.items() if key not in ("", annotation.lower())]
    phrases = -(-len(told) // WORDS)
    dealt = [", ".join(told[i::phrases]) for i in range(phrases)]
    return [annotation, *dealt[:PHRASES]]


def split_of(name: str) -> str:
    """The split of a picture, by its id alone."""
    return SPLITS.get(int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10, "train")


def row_of(entry: Entry) -> dict[str, Any]:
    """The line of captions.jsonl of an emoji."""
    name = entry["hexcode"]
    return {
        "id": name,
        "image": f"images/{name}.png",
        "captions": captions_of(entry),
        "group": entry["group"],
        "split": split_of(name),
    }


def on_white(data: bytes) -> Image.Image:
    """A picture file as 128 x 128 RGB, transparent parts white."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(ground, picture).convert("RGB")
    same = picture.size == (SIDE, SIDE)
    return picture if same else picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def svg_painter(release: Path) -> Callable[[str], Image.Image]:
    """Draws an emoji by its id from its SVG file."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise SystemExit(
            "drawing SVG files needs resvg: pip install resvg_py; or take --png, which shrinks "
            "the release's PNG files"
        ) from None

    def paint(name: str) -> Image.Image:
        path = str(release / "color" / "svg" / f"{name}.svg")
        # White under the strokes while they are drawn: blending afterwards rounds otherwise.
        options = {"width": SIDE, "height": SIDE, "background": "#ffffff"}
        return on_white(bytes(svg_to_bytes(svg_path=path, skip_system_fonts=True, **options)))

    return paint


def png_painter(release: Path) -> Callable[[str], Image.Image]:
    """Shrinks the PNG file of an emoji."""
    return lambda name: on_white((release / "color" / "618x618" / f"{name}.png").read_bytes())


def require_pictures(release: Path, names: list[str], png: bool) -> None:
    """Refuse a release that lacks a picture, before a folder is half made."""
    folder, suffix = ("618x618", "png") if png else ("svg", "svg")
    missing = [n for n in names if not (release / "color" / folder / f"{n}.{suffix}").is_file()]
    if missing:
        raise SystemExit(
            f"{release / 'color' / folder} lacks {len(missing)} of {len(names)} pictures, e.g. "
            f"{missing[0]}.{suffix}: unpack the whole release"
        )


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all, so that an interrupted run can go on."""
    partial = path.with_suffix(".partial")
    picture.save(partial, "PNG", optimize=True)
    partial.replace(path)


def make(release: Path, out: Path, png: bool) -> int:
    """Write the folder; pictures that are there are kept. The captions come last."""
    rows = [row_of(entry) for entry in read_entries(release) if belongs(entry)]
    require_pictures(release, [row["id"] for row in rows], png)
    paint = (png_painter if png else svg_painter)(release)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        if not (out / row["image"]).is_file():
            write_picture(out / row["image"], paint(row["id"]))
    license_file = release / "LICENSE.txt"
    if license_file.is_file():
        (out / license_file.name).write_bytes(license_file.read_bytes())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "captions.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of a captions.jsonl by id, in their order."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def differences(made: Path, other: Path) -> list[str]:
    """Say in what two folders differ: rows, their order, and pixels."""
    ours, theirs = read_rows(made), read_rows(other)
    found = [f"{name}: only in {made}" for name in ours if name not in theirs]
    found += [f"{name}: only in {other}" for name in theirs if name not in ours]
    shared = [name for name in ours if name in theirs]
    if not found and list(ours) != list(theirs):
        found.append("the order of the pictures differs")
    for name in shared:
        a, b = ours[name], theirs[name]
        keys = [key for key in a | b if a.get(key) != b.get(key)]
        found += [f"{name}: {key} {a.get(key)!r}, expected {b.get(key)!r}" for key in keys]
        pixels = [np.array(Image.open(f / r["image"])) for f, r in ((made, a), (other, b))]
        if not np.array_equal(*pixels):
            found.append(f"{name}: {difference_of(*pixels)}")
    return found


def difference_of(a: np.ndarray, b: np.ndarray) -> str:
    """In how many pixels and by how much two pictures differ."""
    if a.shape != b.shape:
        return f"picture of shape {a.shape}, expected {b.shape}"
    apart = np.abs(a.astype(int) - b)
    return f"{(apart.max(-1) > 0).sum()} pixels differ, by up to {apart.max()} of 255"


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("release", type=Path, help="folder of the unpacked release")
    result.add_argument("--out", type=Path, required=True, help="folder to write")
    result.add_argument("--compare", type=Path, metavar="FOLDER", help="another copy of the data")
    result.add_argument("--png", action="store_true", help="shrink PNG files, draw no SVG")
    args = result.parse_args()
    if args.compare and not (args.compare / "captions.jsonl").is_file():
        result.error(f"--compare {args.compare}: no captions.jsonl there")
    return args


def main() -> int:
    args = arguments()
    warn_of_version(args.release)
    count = make(args.release, args.out, args.png)
    print(f"{count} pictures -> {args.out}")
    if args.compare is None:
        return 0
    found = differences(args.out, args.compare)
    print("\n".join(found) if found else f"no difference to {args.compare}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
