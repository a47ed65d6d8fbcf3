"""The paper's ablation on data that fits a CPU: similarity, head, number of elements, alpha.

    python bench/ablation.py [--data scenes openmoji] [--openmoji FOLDER --weights FILE]
                             [--seeds 0 1 2] [--configs NAME ...] [--jobs 2]
    python bench/ablation.py --table

Every configuration is one preset (`scenes`, `captions`) with one choice changed, trained by
train.py on one thread; all runs of a seed see the same batches in the same order. Runs live in
--runs (kept if finished, continued if not); every finished one is a row of the CSV, which is
replaced at once. `--table` writes the tables of a CSV to a .md beside it: means over the seeds, the
difference to the reference (Smooth-Chamfer, set prediction, K = 4, alpha = 16) with its 95%
t-interval over the seeds (paired), and the order that the paper reports.

`share` is the part of a set's gradient that its most supervised element receives (1/K if all are
supervised alike, 1 if one is alone), mean over pictures and captions of the test batches.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from report import ROOT, environment, markdown

from divse.evaluation import seeds_interval

PRESETS = {"scenes": "scenes", "openmoji": "captions"}
EPOCHS = {"scenes": 20, "openmoji": 10}  # 2 to 4 minutes a run on one core of a CPU
REFERENCE = "smooth_chamfer"
CONFIGS: dict[str, list[str]] = {
    REFERENCE: [],
    "chamfer": ["--loss.similarity", "chamfer"],
    "mil": ["--loss.similarity", "mil"],
    "mp": ["--loss.similarity", "mp"],
    "pie_net": ["--model.head", "pie_net"],
    "transformer": ["--model.head", "transformer"],
    "k1": ["--model.head", "pooling", "--model.k", "1"],
    "k2": ["--model.k", "2"],
    "k6": ["--model.k", "6"],
    "alpha4": ["--loss.alpha", "4"],
    "alpha8": ["--loss.alpha", "8"],
    "alpha32": ["--loss.alpha", "32"],
    "alpha64": ["--loss.alpha", "64"],
}
# What is compared with what, and the RSUM that the paper reports (DivE, table 3, Flickr30K).
GROUPS: dict[str, dict[str, float | None]] = {
    "similarity": {"mp": 490.5, "mil": 491.7, "chamfer": 499.6, REFERENCE: 500.8},
    "head": {"pie_net": 483.3, "transformer": 496.1, REFERENCE: 500.8},
    "k": {"k1": 492.6, "k2": 495.5, REFERENCE: 500.8, "k6": 499.3},
    "alpha": {"alpha4": None, "alpha8": None, REFERENCE: None, "alpha32": None, "alpha64": None},
}
RECALLS = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
SHARES = [f"share_{side}_{i}" for side in ("images", "texts") for i in range(1, 7)]
COLUMNS = [
    *("data", "config", "seed", "similarity", "head", "k", "alpha", "loss", "epochs", "rsum"),
    *(*RECALLS, "log_var_images", "log_var_texts", *SHARES, "torch", "device", "commit", "date"),
]


def train(folder: Path, options: list[str]) -> None:
    """Train a run that is not finished, from its last checkpoint if it has one."""
    if (folder / "test.json").exists():
        return
    new = ["--out", str(folder), *options]
    words = ["--resume", str(folder)] if (folder / "settings.json").exists() else new
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{folder.name} failed; the last lines of {log}:\n{tail(log)}")


def tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text().splitlines()[-lines:])


def shares(folder: Path, cache: Path) -> dict[str, float]:
    """Share of the gradient of each element, the largest first, measured on the test split."""
    from divse import DivSE
    from divse.training.config import Config, read_file
    from divse.training.run import load_splits
    from divse.training.split import Split
    from divse.training.supervision import split_supervision

    config = Config.of(read_file(folder / "settings.json"))
    encoder = DivSE.from_pretrained(folder)
    test = Split.prepare(
        load_splits(config)["test"], encoder.tokenizer, encoder.model, config, cache
    )
    found = split_supervision(encoder.model, test, config)
    return {
        f"share_{side}_{i}": round(float(share), 4)
        for side, values in found._asdict().items()
        for i, share in enumerate(values, 1)
    }


def row_of(data: str, name: str, seed: int, folder: Path, cache: Path) -> dict[str, Any]:
    """The row of a finished run."""
    settings = json.loads((folder / "settings.json").read_text())
    figures = json.loads((folder / "test.json").read_text())
    model, loss = settings["model"], settings["loss"]
    where = environment(torch.device("cpu"))
    return {
        **{"data": data, "config": name, "seed": seed, "similarity": loss["similarity"]},
        **{"head": model["head"], "k": model["k"], "loss": loss["name"]},
        "alpha": loss["alpha"] if loss["similarity"] == "smooth_chamfer" else None,
        "epochs": settings["train"]["epochs"],
        **{name: figures[name] for name in figures if name in COLUMNS},
        **(shares(folder, cache) if model["k"] > 1 else {}),
        **{key: where[key] for key in ("torch", "device", "commit", "date")},
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, row: dict[str, Any]) -> int:
    """Add a row, in the order of data, configuration and seed; return how many there are.

    The file is replaced at once; other processes may add theirs meanwhile.
    """
    order = list(CONFIGS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        rows = [*read_rows(path), row]
        rows.sort(key=lambda r: (r["data"], order.index(r["config"]), int(r["seed"])))
        write_rows(path, rows)
    return len(rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def options_of(data: str, name: str, seed: int, args: argparse.Namespace) -> list[str]:
    """Arguments of train.py for a run."""
    words = ["--preset", PRESETS[data], "--seed", str(seed), "--train.threads", "1"]
    words += ["--train.device", "cpu", "--train.gallery", "false", *CONFIGS[name]]
    if data == "openmoji":
        words += ["--data", str(args.openmoji), "--data.cache", str(args.runs / data / "features")]
        words += ["--image.weights", str(args.weights)] if args.weights else []
    return [*words, "--epochs", str(args.epochs or EPOCHS[data])]


def run_all(args: argparse.Namespace) -> None:
    """Train what the CSV has no row for; seeds come one after the other, so that any stop is fair.

    The first run of a data set goes alone: it fills the store of frozen features.
    """
    held = {(r["data"], r["config"], int(r["seed"])) for r in read_rows(args.csv)}
    wanted = [(d, c, s) for s in args.seeds for d in args.data for c in args.configs]
    waiting = [run for run in wanted if run not in held]

    def finish(run: tuple[str, str, int]) -> tuple[str, str, int]:
        data, name, seed = run
        train(args.runs / data / f"{name}-{seed}", options_of(data, name, seed, args))
        return run

    def keep(run: tuple[str, str, int]) -> None:
        data, name, seed = run
        folder = args.runs / data / f"{name}-{seed}"
        row = row_of(data, name, seed, folder, args.runs / data / "features")
        rows = add_row(args.csv, row)
        print(f"{rows} rows; {data} {name} seed {seed}: RSUM {row['rsum']}", flush=True)

    first = [next(r for r in waiting if r[0] == d) for d in {r[0]: 0 for r in waiting}]
    for run in first:
        keep(finish(run))
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in pool.map(finish, [r for r in waiting if r not in first]):
            keep(run)


def number(row: dict[str, str], name: str) -> float:
    return float(row[name]) if row.get(name) else math.nan


def share(row: dict[str, str]) -> float:
    """Share of the most supervised element, mean of pictures and captions."""
    return (number(row, "share_images_1") + number(row, "share_texts_1")) / 2


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: list[dict[str, str]], data: str, group: str) -> list[dict[str, Any]]:
    """One row per configuration of a group that has runs."""
    runs: dict[str, dict[int, dict[str, str]]] = {}
    for row in rows:
        if row["data"] == data:
            runs.setdefault(row["config"], {})[int(row["seed"])] = row
    found = []
    for name, paper in GROUPS[group].items():
        mine = [runs[name][seed] for seed in sorted(runs.get(name, {}))]
        if not mine:
            continue
        line: dict[str, Any] = {
            "config": name,
            "seeds": len(mine),
            "RSUM": f"{mean([number(r, 'rsum') for r in mine]):.1f}",
            "log Var pictures": f"{mean([number(r, 'log_var_images') for r in mine]):.2f}",
            "log Var captions": f"{mean([number(r, 'log_var_texts') for r in mine]):.2f}",
            "share": f"{mean([share(r) for r in mine]):.2f}",
            **difference(runs, name),
        }
        found.append({k: "" if v == "nan" else v for k, v in line.items()} | {"paper": paper})
    return found


def difference(runs: dict[str, dict[int, dict[str, str]]], name: str) -> dict[str, str]:
    """RSUM of a configuration minus the reference's, over the seeds that both have."""
    seeds = sorted(set(runs.get(name, {})) & set(runs.get(REFERENCE, {})))
    if name == REFERENCE or len(seeds) < 2:
        return {"minus reference": "", "resolved": ""}
    a, b = ([number(runs[n][s], "rsum") for s in seeds] for n in (name, REFERENCE))
    interval = seeds_interval(a, b)
    return {
        "minus reference": str(interval),
        "resolved": "yes" if interval.excludes_zero else "no",
    }


def write_tables(path: Path) -> str:
    """Tables of all groups of all data, written beside the CSV."""
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path}: no runs yet")
    parts = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for group in GROUPS:
            parts.append(f"**{data}, {group}**\n\n{markdown(table(rows, data, group))}")
    text = "\n".join(parts)
    path.with_suffix(".md").write_text(text)
    return text


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--data", nargs="+", choices=list(PRESETS), default=["scenes"])
    result.add_argument("--openmoji", type=Path, help="folder of the data openmoji")
    result.add_argument("--weights", type=Path, help="its image encoder; default: found beside it")
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    result.add_argument("--epochs", type=int, help="default: 20 on scenes, 15 on openmoji")
    result.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    result.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    result.add_argument("--csv", type=Path, default=ROOT / "bench" / "results" / "ablation.csv")
    result.add_argument("--table", action="store_true", help="only write the tables of the CSV")
    args = result.parse_args()
    if "openmoji" in args.data and args.openmoji is None and not args.table:
        result.error("--data openmoji needs --openmoji FOLDER")
    return args


def main() -> int:
    args = arguments()
    if not args.table:
        run_all(args)
    print(write_tables(args.csv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
