"""What the elements of a picture's set read: how many of its objects, and how much ground.

    python bench/scenes_reading.py RUNS ... [--pictures 500] [--out [DIR]]

RUNS are run folders of train.py on scenes, or folders of such. The attention map of each element
(of its last read, mean over the heads) is summed over the cells of the picture's objects, whose
places scenes knows. One row a run:

    objects      objects that some element looks at, mean over the pictures: it gives one half of
                 its attention or more to that object's cell
    of           objects in a picture
    blank        elements that look at no object, in percent
    on objects   attention on the cells of objects, in percent; an even spread would give the next
    even         objects a picture, divided by nine cells
    cells        over how many of the encoder's cells an element spreads: exp of the map's entropy
    rsum         of the run's test.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, parser
from scenes_benchmark import find_runs

from divse import DivSE
from divse.data.scene_objects import FACT, FACTS
from divse.data.scene_options import SceneOptions
from divse.data.scenes import describe, load

SIDE = len(FACTS["row"])  # cells along a side of a picture
HALF = 0.5  # of an element's attention: no two objects can have so much of it
Array = np.ndarray[Any, Any]


def overlaps(cells: int) -> Array:
    """Share of each of `cells` along a side that lies in each of a picture's three, (3, cells)."""
    edges = np.linspace(0, SIDE, cells + 1)
    own = np.arange(SIDE)[:, None]
    inside = np.minimum(edges[1:], own + 1) - np.maximum(edges[:-1], own)
    return np.maximum(inside, 0.0) * cells / SIDE


def on_cells(maps: Array) -> Array:
    """Attention maps (N, K, h, w) -> attention on a picture's nine cells, (N, K, 9)."""
    rows, columns = (overlaps(size) for size in maps.shape[2:])
    return np.einsum("rh,nkhw,cw->nkrc", rows, maps, columns).reshape(*maps.shape[:2], -1)


def occupied(scenes: Array) -> Array:
    """Which of the nine cells hold an object, bool (N, 9)."""
    found = np.zeros((len(scenes), SIDE * SIDE), dtype=bool)
    picture, thing = np.nonzero(scenes[:, :, 0] >= 0)
    places = scenes[picture, thing]
    found[picture, places[:, FACT["row"]] * SIDE + places[:, FACT["column"]]] = True
    return found


def reading(maps: Array, scenes: Array) -> dict[str, float]:
    """Figures of attention maps (N, K, h, w), each of sum one, of so many scenes."""
    objects = occupied(scenes)
    mass = np.where(objects[:, None], on_cells(maps), 0.0)  # (N, K, 9)
    looked = mass >= HALF
    entropy = -(maps * np.log(np.maximum(maps, 1e-30))).sum((2, 3))
    return {
        "objects": float(looked.any(1).sum(1).mean()),
        "of": float(objects.sum(1).mean()),
        "blank": 100 * float(1 - looked.any(2).mean()),
        "on objects": 100 * float(mass.sum(2).mean()),
        "even": 100 * float(objects.mean()),
        "cells": float(np.exp(entropy).mean()),
    }


def maps_of(folder: Path, options: dict[str, Any], pictures: int) -> tuple[Array, Array]:
    """Attention maps of a run on the first test pictures of its own data, and their scenes."""
    data, scenes = load("test", **options), describe("test", SceneOptions.of(**options)).scenes
    count = min(pictures, len(data))
    model = DivSE.from_pretrained(folder)
    some = [list(range(start, min(start + 100, count))) for start in range(0, count, 100)]
    maps = [model.attend_images([data.image(i) for i in part]).numpy() for part in some]
    return np.concatenate(maps), scenes[:count]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("runs", type=Path, nargs="+")
    arguments.add_argument("--pictures", type=int, default=500)
    args = arguments.parse_args()
    report = Report("scenes_reading", args)
    for run in find_runs(args.runs):
        settings = json.loads((run.folder / "settings.json").read_text())
        found = reading(*maps_of(run.folder, json.loads(run.dials), args.pictures))
        rsum = json.loads((run.folder / "test.json").read_text())["rsum"]
        told = {"head": settings["model"]["head"], "epochs": settings["train"]["epochs"]}
        report.add(model=run.model, seed=run.seed, **told, **found, rsum=rsum)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
