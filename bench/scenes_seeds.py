"""Sets against single vectors on scenes: K=4 and K=1 of equal storage, paired over seeds.

    python bench/scenes_seeds.py --out DIR [--seeds 0 1 2] [--epochs N] [--jobs 2] [-- OPTIONS]

Each seed trains two models with train.py: "k4", the preset (set prediction, K = 4), and "k1", one
vector by ordinary attention pooling, four times the dimensions, so the same bytes per item and the
same data, order and number of steps. Finished runs are kept, interrupted ones continue; every
finished run is a row of DIR/runs.csv. Prints the differences k4 - k1 with their 95% t-intervals
over the seeds (paired: both models of a seed share it). OPTIONS go to every run of train.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from report import ROOT, markdown

from divse.evaluation import seeds_interval
from divse.training.config import read_preset

METRICS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


def model_options(name: str, preset: str) -> list[str]:
    """What makes the two models: nothing for the set model, one wide vector for the other."""
    if name == "k4":
        return []
    settings = read_preset(preset)["model"]
    wide = settings["k"] * settings["dim"]
    return ["--model.k", "1", "--model.dim", str(wide), "--model.head", "pooling"]


def train(folder: Path, options: list[str]) -> dict[str, float]:
    """Test figures of a run: kept, continued or trained now."""
    if not (folder / "test.json").exists():
        new = ["--out", str(folder), *options]
        words = ["--resume", str(folder)] if (folder / "settings.json").exists() else new
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True)
    return json.loads((folder / "test.json").read_text())


def write_rows(path: Path, rows: list[dict]) -> None:
    """Rows of all finished runs as CSV, replaced at once."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def differences(rows: list[dict], seeds: list[int]) -> list[dict]:
    """One row per metric: means of both models, and their paired difference with its interval."""
    figures = {(row["model"], row["seed"]): row for row in rows}
    found = []
    for metric in METRICS:
        k4, k1 = ([figures[name, seed][metric] for seed in seeds] for name in ("k4", "k1"))
        interval = seeds_interval(k4, k1)
        found.append(
            {
                "metric": metric,
                "k4": sum(k4) / len(k4),
                "k1": sum(k1) / len(k1),
                "k4 - k1": f"{interval.estimate:+.2f}",
                "95% interval": f"[{interval.low:+.2f}, {interval.high:+.2f}]",
                "by seed": ", ".join(f"{a - b:+.1f}" for a, b in zip(k4, k1, strict=True)),
            }
        )
    return found


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--epochs", type=int, help="default: the preset's")
    result.add_argument("--preset", default="scenes")
    result.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the threads")
    result.add_argument("--json", action="store_true", help="print one JSON line instead")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = result.parse_args(words[:cut])
    args.extra = words[cut + 1 :]
    if len(set(args.seeds)) < 2:
        result.error("an interval needs at least two different seeds")
    return args


def main() -> int:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    common = ["--preset", args.preset, "--train.gallery", "false", *args.extra]
    if args.epochs is not None:
        common += ["--epochs", str(args.epochs)]
    if args.jobs > 1:
        common += ["--train.threads", str(max(1, torch.get_num_threads() // args.jobs))]
    runs = [(name, seed) for seed in args.seeds for name in ("k4", "k1")]

    def figures_of(run: tuple[str, int]) -> dict[str, float]:
        name, seed = run
        options = [*common, "--seed", str(seed), *model_options(name, args.preset)]
        return train(args.out / f"{name}-{seed}", options)

    rows: list[dict] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for (name, seed), figures in zip(runs, pool.map(figures_of, runs), strict=True):
            rows.append({"model": name, "seed": seed, **figures})
            write_rows(args.out / "runs.csv", rows)
    found = differences(rows, args.seeds)
    (args.out / "differences.md").write_text(markdown(found))
    print(json.dumps({"bench": "scenes_seeds", "rows": found}) if args.json else markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
