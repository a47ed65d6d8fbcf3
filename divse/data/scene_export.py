"""Write scenes as files, so that any model can be measured on them: pictures, captions, truth.

images/<id>.png    64 x 64 RGB
captions.jsonl     a picture a line: id, image, captions, split, and its objects in words
relevance.npz      train, val, test: bool (I, T), every fitting pair; rows are the pictures and
                   columns the captions of the split in the order of captions.jsonl;
                   train_image_of_caption, ...: (T,) int64
scenes.json        name, version, dials; of each split its digest and statistics
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.data.dataset import SPLITS, ImageTextData
from divse.data.scene_objects import FACT, FACTS
from divse.data.scene_options import SceneOptions
from divse.data.scenes import describe, digest, load

DESCRIPTION = "scenes.json"
BATCH = 50  # of which `batch_ambiguity` speaks


def export(
    folder: str | Path,
    options: SceneOptions | None = None,
    splits: Sequence[str] = SPLITS,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the splits of a world into a folder; returns what scenes.json holds.

    A stopped export goes on: pictures that are there are kept. A folder of another world is
    refused. `report` is told a line a split.
    """
    folder, options = Path(folder), options or SceneOptions()
    _claim(folder, options)
    settings = asdict(options)
    told: dict[str, Any] = {"name": options.name, "options": settings, "splits": {}}
    lines: list[str] = []
    truth: dict[str, NDArray[Any]] = {}
    for split in splits:
        data = load(split, **settings)
        _write_pictures(data, folder)
        lines += _rows(data, options)
        truth[split] = _relevance(data)
        truth[f"{split}_image_of_caption"] = data.image_of_caption
        told["splits"][split] = {"digest": digest(data), **statistics(truth[split])}
        report(f"{split}: {len(data)} pictures, {len(data.captions)} captions")
    np.savez_compressed(folder / "relevance.npz", **truth)  # type: ignore[arg-type]
    _write(folder / "captions.jsonl", "".join(lines))
    _write(folder / DESCRIPTION, json.dumps(told, indent=1) + "\n")
    return told


def statistics(relevance: NDArray[np.bool_]) -> dict[str, Any]:
    """Measure the ambiguity of a split from its fitting pairs (I, T).

    fits_per_caption, fits_per_picture: quartiles of the number of fitting pairs
    fitting: share of all pairs that fit
    alone: share of captions that fit one picture only
    batch_ambiguity: share of captions that fit at least one of the other pictures in a random
        batch of 50: so many of its "hardest negatives" can be false
    """
    pictures, captions = relevance.shape
    per_caption, per_picture = relevance.sum(axis=0), relevance.sum(axis=1)
    none = np.ones(captions)  # probability that none of the others fits, drawn one by one
    for drawn in range(min(BATCH, pictures) - 1):
        none *= np.clip(pictures - per_caption - drawn, 0, None) / (pictures - 1 - drawn)
    return {
        "pictures": pictures,
        "captions": captions,
        "fits_per_caption": np.percentile(per_caption, (25, 50, 75)).tolist(),
        "fits_per_picture": np.percentile(per_picture, (25, 50, 75)).tolist(),
        "fitting": round(float(relevance.mean()), 6),
        "alone": round(float((per_caption == 1).mean()), 4),
        "batch_ambiguity": round(float(1 - none.mean()), 4),
    }


def _claim(folder: Path, options: SceneOptions) -> None:
    """Make the folder this world's own, or refuse."""
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / DESCRIPTION
    if held.exists():
        name = json.loads(held.read_text())["name"]
        if name != options.name:
            raise ValueError(
                f"{folder} holds {name}, {options.name} was asked for: take another folder"
            )
    elif any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {DESCRIPTION}: take a new folder")
    else:
        (folder / "images").mkdir()
        _write(held, json.dumps({"name": options.name, "options": asdict(options)}) + "\n")


def _write_pictures(data: ImageTextData, folder: Path) -> None:
    from PIL import Image

    for index, name in enumerate(data.image_ids):
        path = folder / "images" / f"{name}.png"
        if not path.exists():
            partial = path.with_suffix(".partial")
            Image.fromarray(data.image(index)).save(partial, "PNG")
            partial.replace(path)


def _rows(data: ImageTextData, options: SceneOptions) -> list[str]:
    """Lines of captions.jsonl."""
    scenes = describe(data.split, replace(options, pictures=len(data))).scenes
    rows = []
    for index, name in enumerate(data.image_ids):
        objects = [
            {fact: FACTS[fact][thing[place]] for fact, place in FACT.items()}
            for thing in scenes[index]
            if thing[0] >= 0
        ]
        row = {"id": name, "image": f"images/{name}.png", "captions": data.captions_of(index)}
        rows.append(json.dumps(row | {"split": data.split, "objects": objects}) + "\n")
    return rows


def _relevance(data: ImageTextData) -> NDArray[np.bool_]:
    assert data.relevance is not None
    return data.relevance


def _write(path: Path, text: str) -> None:
    """Replace a file at once."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
