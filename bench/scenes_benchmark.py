"""The table of the benchmark scenes: R@1, mAP@R and R-Precision against all fitting pairs.

    python bench/scenes_benchmark.py [RUNS ...] [--out [DIR]] [--scores NAME=FILE.npy ...]

RUNS are run folders of train.py, or folders of such; default runs/ablation/scenes, where
bench/ablation.py keeps its own. Runs named NAME-SEED are one model, its figures the mean over seeds
with the 95% t-interval. Only finished runs on scenes count, each on the world that its settings
name. What a run scored is kept in RUN/scenes-benchmark.json and taken again while its weights and
the data are the same, so the table can be made as often as runs finish.

--scores adds anybody's similarities of the test split at --level, an array (pictures, captions) in
the order of `divse-data scenes`. Three rows show the scale: `chance` is the exact expectation of a
random ranking, `source pairs` knows nothing but which caption was written about which picture
(everything else ties, and ties count against it), `truth` scores 1 what fits and 0 what does not.
Writes scenes_benchmark.json and .md, and every run as a row of scenes_benchmark.csv.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import ROOT, Report, parser, results_folder

from divse import DivSE, score
from divse.data.dataset import ImageTextData
from divse.data.scenes import LEVELS, digest, load
from divse.evaluation import Interval, evaluate, map_at_r, mean_interval
from divse.evaluation.seeds import model_name

METRICS = ("r1", "map_at_r", "r_precision")
FIGURES = [f"{way}_{metric}" for way in ("i2t", "t2i") for metric in METRICS]
KEPT = "scenes-benchmark.json"
Array = np.ndarray[Any, Any]


class Mean(Interval):
    """A mean over seeds; written as mean and half width."""

    def __str__(self) -> str:
        return f"{self.estimate:.1f} ± {(self.high - self.low) / 2:.1f}"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, model name, seed, and the dials of its data as JSON."""

    folder: Path
    model: str
    seed: int
    dials: str


@lru_cache
def world(dials: str) -> tuple[ImageTextData, str]:
    """The test split of some dials (as JSON), and its digest."""
    data = load("test", **json.loads(dials))
    return data, digest(data)


def find_runs(paths: list[Path]) -> Iterator[Run]:
    """Finished runs on scenes at some paths or in the folders there, by name."""
    for path in paths:
        folders = [path] if (path / "settings.json").exists() else sorted(path.glob("*/"))
        for folder in folders:
            if not (folder / "test.json").exists():
                continue
            settings = json.loads((folder / "settings.json").read_text())
            if settings["data"]["name"] == "scenes":
                seed = settings["train"]["seed"]
                model = model_name(folder.resolve().name, seed)
                dials = json.dumps(settings["data"]["options"])
                yield Run(folder, model, seed, dials)


def figures_of(scores: Array, data: ImageTextData) -> dict[str, float]:
    """R@1, mAP@R and R-Precision both ways in percent, of scores (I, T)."""
    found = evaluate(scores, data.image_of_caption, data.relevance)
    found |= map_at_r(scores, data.relevance)
    return {name: found[name] for name in FIGURES}


def run_figures(run: Run) -> dict[str, float]:
    """Figures of a run, from the file beside its weights if that is still true."""
    data, contents = world(run.dials)
    parts = {"weights": "model.safetensors", "config": "config.json"}  # it names the similarity
    state = {"data": data.name, "digest": contents} | {
        part: hashlib.sha256((run.folder / name).read_bytes()).hexdigest()
        for part, name in parts.items()
    }
    kept = run.folder / KEPT
    if kept.exists():
        held = json.loads(kept.read_text())
        if {name: held.get(name) for name in state} == state:
            return held["figures"]
    model = DivSE.from_pretrained(run.folder)
    images = model.encode_images([data.image(i) for i in range(len(data))])
    texts = model.encode_texts(data.captions)
    with torch.no_grad():
        scores = score(images, texts, unit_norm=False, **model.similarity)
    figures = figures_of(np.asarray(scores), data)
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(state | {"figures": figures}, indent=1) + "\n")
    partial.replace(kept)
    return figures


def chance(relevance: Array) -> dict[str, float]:
    """Expected figures in percent of a ranking drawn at random, exactly.

    With R positives among N, any place holds one with p = R / N, and given that place k does, each
    earlier place does with (R - 1) / (N - 1): the precision there is (1 + (k-1)(R-1)/(N-1)) / k.
    """
    found = {}
    for way, fits in (("i2t", relevance), ("t2i", relevance.T)):
        positives, total = fits.sum(1), fits.shape[1]
        positives = positives[positives > 0]
        average = [expected_precision(int(r), total) for r in positives]
        share = 100 * float(np.mean(positives / total))
        figures = (share, 100 * float(np.mean(average)), share)
        found |= {f"{way}_{name}": value for name, value in zip(METRICS, figures, strict=True)}
    return found


def expected_precision(positives: int, total: int) -> float:
    """Expected AP@R of a random ranking of `total` items."""
    place = np.arange(1, positives + 1)
    earlier = (place - 1) * (positives - 1) / max(total - 1, 1)
    return float(((1 + earlier) / place).sum()) / total


def baselines(data: ImageTextData) -> dict[str, dict[str, float]]:
    """The rows that show the scale."""
    relevance = data.relevance
    own = np.arange(len(data))[:, None] == data.image_of_caption
    return {
        "chance": chance(relevance),
        "source pairs": figures_of(own.astype(np.float32), data),
        "truth": figures_of(relevance.astype(np.float32), data),
    }


def over_seeds(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, with intervals if there are several."""
    found: dict[str, Any] = {"seeds": len(rows)}
    for name in FIGURES:
        values = [row[name] for row in rows]
        several = len(values) > 1
        found[name] = Mean(*mean_interval(values)) if several else round(values[0], 2)
    return found


def read_scores(word: str, data: ImageTextData) -> tuple[str, Array]:
    """NAME=FILE.npy as a name and an array (I, T)."""
    name, separator, path = word.partition("=")
    if not separator:
        raise SystemExit(f"--scores: got {word!r}, expected NAME=FILE.npy")
    scores = np.load(path)
    if scores.shape != (len(data), len(data.captions)):
        raise SystemExit(
            f"{path}: scores of {data.name}/test have shape {(len(data), len(data.captions))}, "
            f"pictures by captions; got {scores.shape}"
        )
    return name, scores


def row_of(run: Run) -> dict[str, Any]:
    """Figures of a run; a note on stderr if train.py measured something else."""
    data, contents = world(run.dials)
    figures = run_figures(run)
    told = json.loads((run.folder / "test.json").read_text())
    apart = max(abs(told[f"{way}_r1"] - figures[f"{way}_r1"]) for way in ("i2t", "t2i"))
    if apart > 100 * 2 / len(data):  # rounding may turn a query or two
        print(
            f"{run.folder}: its test.json is {apart:.1f} points off in R@1: was it made from "
            "other weights or data?",
            file=sys.stderr,
        )
    head = {"data": data.name, "model": run.model, "seed": run.seed}
    return head | {name: round(figures[name], 4) for name in FIGURES} | {"digest": contents}


def scores_row(word: str, dials: str) -> dict[str, Any]:
    """Figures of somebody's scores, given as NAME=FILE.npy."""
    data, contents = world(dials)
    name, scores = read_scores(word, data)
    figures = {key: round(value, 4) for key, value in figures_of(scores, data).items()}
    return {"data": data.name, "model": name, "seed": None, **figures, "digest": contents}


def models_of(rows: list[dict[str, Any]], data: str) -> dict[str, dict[str, Any]]:
    """Means of each model on some data, the best mAP@R first."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["data"] == data:
            found.setdefault(row["model"], []).append(row)
    means = {model: over_seeds(own) for model, own in found.items()}
    return dict(sorted(means.items(), key=lambda item: -quality(item[1])))


def quality(line: dict[str, Any]) -> float:
    """Mean of both mAP@R."""
    values = (line[f"{way}_map_at_r"] for way in ("i2t", "t2i"))
    return sum(v.estimate if isinstance(v, Mean) else v for v in values) / 2


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a run, replaced at once."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["data", "model", "seed", *FIGURES, "digest"])
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def arguments() -> argparse.Namespace:
    result = parser(__doc__)
    default = ROOT / "runs" / "ablation" / "scenes"
    result.add_argument("runs", type=Path, nargs="*", default=[default])
    result.add_argument("--scores", action="append", default=[], metavar="NAME=FILE.npy")
    result.add_argument("--level", choices=list(LEVELS), default="default", help="of --scores")
    result.set_defaults(out=ROOT / "bench" / "results" / "scenes")
    return result.parse_args()


def main() -> int:
    args = arguments()
    runs = list(find_runs(args.runs))
    if not runs:
        places = ", ".join(map(str, args.runs))
        print(f"no finished run on scenes in {places}", file=sys.stderr)
    level = json.dumps({"level": args.level})
    rows = [row_of(run) for run in runs] + [scores_row(word, level) for word in args.scores]
    used = {run.dials: None for run in runs} | ({level: None} if args.scores or not runs else {})
    report = Report("scenes_benchmark", args)
    for data in {world(dials)[0].name: world(dials)[0] for dials in used}.values():
        for name, figures in baselines(data).items():
            report.add(data=data.name, model=name, **over_seeds([figures]) | {"seeds": None})
        for name, line in models_of(rows, data.name).items():
            report.add(data=data.name, model=name, **line)
    folder = args.out if str(args.out) != "." else results_folder(report.device)
    write_csv(folder / "scenes_benchmark.csv", rows)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
