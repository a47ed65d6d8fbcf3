"""The paper's ablation on data that fits a CPU: similarity, head, number of elements, alpha.

    python bench/ablation.py [--data scenes openmoji] [--openmoji FOLDER --weights FILE]
                             [--seeds 0 1 2] [--configs NAME ...] [--jobs 2]
    python bench/ablation.py --checks [--seeds 0]
    python bench/ablation.py --table

Every configuration is one preset (`scenes`, `captions`) with one choice changed, trained by
train.py on one thread; all runs of a seed see the same batches in the same order. Runs live in
--runs (kept if finished, continued if not, refused if they have other settings); every finished one
is a row of the CSV, which is replaced at once. `--table` writes the tables of a CSV, and what their
columns mean, to a .md beside it: means over the seeds, the difference to the reference
(Smooth-Chamfer, set prediction, K = 4, alpha = 16), and the order that the paper reports.

`--checks` looks for the reason where the order is not the paper's: set prediction with
Smooth-Chamfer and with Chamfer, and PIE-Net, each with the paper's triplet loss, with that loss
after InfoNCE for half of the epochs, and for twice as many epochs; and attention pooling with
K = 4, a step between the Transformer and PIE-Net. They are rows of the same CSV, and tables of
their own.

`share` is the part of a set's gradient that its most supervised element receives (1/K if all are
supervised alike, 1 if one is alone), mean over pictures and captions of the test batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ablation_configs import CHECKS, CONFIGS, EVERY, PRESETS, READINGS, epochs_of, words_of
from ablation_rows import COLUMNS, add_row, read_rows
from ablation_tables import write_tables
from report import ROOT, environment

from divse.evaluation.seeds import run_name

PLACES = {("train", "out"), ("data", "cache")}  # settings that say where, not what
Run = tuple[str, str, int]  # data, configuration, seed


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


def loss_name(loss: dict[str, Any]) -> str:
    """The loss, and what the first epochs were trained with if it is another."""
    warmup = loss["warmup_epochs"]
    return loss["name"] + (f" after {warmup} epochs of info_nce" if warmup else "")


def row_of(data: str, name: str, seed: int, folder: Path, cache: Path) -> dict[str, Any]:
    """The row of a finished run."""
    settings = json.loads((folder / "settings.json").read_text())
    figures = json.loads((folder / "test.json").read_text())
    model, loss = settings["model"], settings["loss"]
    where = environment(torch.device("cpu"))
    return {
        **{"data": data, "config": name, "seed": seed, "similarity": loss["similarity"]},
        **{"head": model["head"], "k": model["k"], "loss": loss_name(loss)},
        "alpha": loss["alpha"] if loss["similarity"] == "smooth_chamfer" else None,
        "epochs": settings["train"]["epochs"],
        "check": "reading" if name in READINGS and name not in CONFIGS else None,
        **{name: figures[name] for name in figures if name in COLUMNS},
        **(shares(folder, cache) if model["k"] > 1 else {}),
        **{key: where[key] for key in ("torch", "device", "commit", "date")},
    }


def options_of(data: str, name: str, seed: int, args: argparse.Namespace) -> list[str]:
    """Arguments of train.py for a run."""
    words = ["--preset", PRESETS[data], "--seed", str(seed), "--train.threads", "1"]
    words += ["--train.device", "cpu", "--train.gallery", "false"]
    if data == "openmoji":
        words += ["--data", str(args.openmoji), "--data.cache", str(args.runs / data / "features")]
        words += ["--image.weights", str(args.weights)] if args.weights else []
    return [*words, *words_of(data, name, args.epochs)]


def check_settings(folder: Path, options: list[str]) -> None:
    """Refuse a folder that holds a run with other settings than are asked for."""
    from divse.training.command_line import parse
    from divse.training.config import Config, read_file

    if not (folder / "settings.json").exists():
        if (folder / "test.json").exists():
            raise SystemExit(f"{folder} does not say its settings: remove it")
        return
    try:
        there = Config.of(read_file(folder / "settings.json")).to_dict()
    except ValueError as error:
        raise SystemExit(f"{folder}: {error}") from None
    asked = parse(options)[0].to_dict()
    other = [
        f"{section}.{name} is {there[section][name]!r} there, {value!r} was asked"
        for section, settings in asked.items()
        for name, value in settings.items()
        if there[section][name] != value and (section, name) not in PLACES
    ]
    if other:
        raise SystemExit(
            f"{folder} holds a run with other settings: {'; '.join(other)}. Remove it, or give "
            "another --runs"
        )


def check_rows(wanted: list[Run], args: argparse.Namespace) -> list[Run]:
    """The runs that have no row yet; a row with other epochs than are asked for is refused."""
    rows = {(r["data"], r["config"], int(r["seed"])): r for r in read_rows(args.csv)}
    for run in wanted:
        epochs = args.epochs or epochs_of(*run[:2])
        if run in rows and int(rows[run]["epochs"]) != epochs:
            raise SystemExit(
                f"{args.csv} has {' '.join(map(str, run))} with {rows[run]['epochs']} epochs, "
                f"{epochs} were asked: give another --csv"
            )
    return [run for run in wanted if run not in rows]


def run_all(args: argparse.Namespace) -> None:
    """Train what the CSV has no row for; seeds come one after the other, so that any stop is fair.

    The first run of a data set goes alone: it fills the store of frozen features.
    """
    waiting = check_rows(
        [(d, c, s) for s in args.seeds for d in args.data for c in args.configs], args
    )
    folders = {run: args.runs / run[0] / run_name(*run[1:]) for run in waiting}
    for run in waiting:
        check_settings(folders[run], options_of(*run, args))

    def finish(run: Run) -> Run:
        train(folders[run], options_of(*run, args))
        return run

    def keep(run: Run) -> None:
        data, name, seed = run
        row = row_of(data, name, seed, folders[run], args.runs / data / "features")
        rows = add_row(args.csv, row)
        print(f"{rows} rows; {data} {name} seed {seed}: RSUM {row['rsum']}", flush=True)

    first = [next(r for r in waiting if r[0] == d) for d in {r[0]: 0 for r in waiting}]
    for run in first:
        keep(finish(run))
    with ThreadPoolExecutor(args.jobs) as pool:
        for run in pool.map(finish, [r for r in waiting if r not in first]):
            keep(run)


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--data", nargs="+", choices=list(PRESETS), default=["scenes"])
    result.add_argument("--openmoji", type=Path, help="folder of the data openmoji")
    result.add_argument("--weights", type=Path, help="its image encoder; default: found beside it")
    result.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, of --checks 0")
    result.add_argument("--configs", nargs="+", choices=list(EVERY), help="default: all")
    result.add_argument("--checks", action="store_true", help="train the checks instead")
    result.add_argument("--epochs", type=int, help="default: 20 on scenes, 10 on openmoji")
    result.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    result.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    result.add_argument("--csv", type=Path, default=ROOT / "bench" / "results" / "ablation.csv")
    result.add_argument("--table", action="store_true", help="only write the tables of the CSV")
    args = result.parse_args()
    args.seeds = args.seeds or ([0] if args.checks else [0, 1, 2])
    args.configs = args.configs or list(CHECKS if args.checks else CONFIGS)
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
