"""The whole path in one go: train on generated scenes, build a gallery, search it by text.

`make demo` runs this. Every step is a command that you could type; each is printed before it
runs. It leaves in demo/: the runs, the test pictures, the gallery, table.md and results.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from divse.data.scene_captions import fitting, parse
from divse.data.scenes import describe, load

ROOT = Path(__file__).resolve().parent.parent
QUERIES = ("a red star", "a striped blue circle", "a green thing above a yellow square")
# K=1 with ordinary attention pooling stores as much for a picture: one vector, four times as long.
MODELS = {
    "untrained sets": ["--epochs", "0", "--train.gallery", "false"],
    "one pooled vector": ["--model.head", "pooling", "--model.k", "1", "--model.dim", "512"],
    "sets, K=4": [],
}
MADE_HERE = ".made-by-divse-demo"


def main() -> None:
    """Train, compare, build, search, and say what to look at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        help="folder to fill, seen from the project [demo]",
    )
    parser.add_argument("--epochs", help="train for so many epochs [as the preset says]")
    arguments = parser.parse_args()
    out: Path = arguments.out
    start = perf_counter()
    os.chdir(ROOT)
    fresh_folder(out)

    runs = {name: out / name.replace(" ", "-").replace(",", "") for name in MODELS}
    shorter = ["--epochs", arguments.epochs] if arguments.epochs else []
    for name, settings in MODELS.items():
        run("python", "train.py", "--preset", "scenes", "--out", runs[name],
            *shorter, *settings)  # fmt: skip
    best = runs["sets, K=4"]
    (out / "table.md").write_text(table(runs))

    pictures = save_pictures(out / "pictures")
    run("divse-search", "build", out / "gallery", "--model", best, "--images", out / "pictures")
    texts = [word for query in QUERIES for word in ("--text", query)]
    sheet = out / "results.png"
    run("divse-search", "query", out / "gallery", *texts, "--topk", "6", "--contact-sheet", sheet)
    found = run("divse-search", "query", out / "gallery", *texts, "--topk", "10",
                "--json", capture=True)  # fmt: skip

    print(f"\n{(out / 'table.md').read_text()}")
    for query, line in zip(QUERIES, found.splitlines(), strict=True):
        ids = [Path(str(hit["id"])).stem for hit in json.loads(line)["hits"]]
        fits = fitting_pictures(query, pictures)
        right = sum(name in fits for name in ids)
        print(f'"{query}": {right} of the first 10 fit ({len(fits)} of {len(pictures)} do)')
    print(f"\n{perf_counter() - start:.0f} s. Now look at {sheet}")


def fresh_folder(out: Path) -> None:
    """Empty the folder if an earlier demo made it; never touch anybody else's."""
    if out.exists() and any(out.iterdir()) and not (out / MADE_HERE).exists():
        sys.exit(f"demo: {out} holds something else; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MADE_HERE).touch()


def run(*command: object, capture: bool = False) -> str:
    """Print a command and run it; stop the demo if it fails."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    words[:1] = {
        "python": [sys.executable],
        "divse-search": [sys.executable, "-m", "divse.cli"],
    }[words[0]]
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(f"demo: the command above ended with exit code {done.returncode}")
    return done.stdout or ""


def table(runs: dict[str, Path]) -> str:
    """Test figures of the runs, side by side, as Markdown."""
    lines = [
        "| test, against all fitting pairs | i2t R@1 | R@5 | R@10 | t2i R@1 | R@5 | R@10 | RSUM |"
        " log Var |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, folder in runs.items():
        figures = json.loads((folder / "test.json").read_text())
        recalls = [f"{figures[f'{way}_r{k}']:.1f}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
        spread = "–" if "pooled" in name else f"{figures['log_var_images']:.2f}"
        lines.append(f"| {name} | {' | '.join(recalls)} | {figures['rsum']:.1f} | {spread} |")
    return "\n".join(lines) + "\n"


def save_pictures(folder: Path) -> list[str]:
    """Write the test pictures as PNG files, enlarged threefold for the eye; return their names."""
    folder.mkdir()
    data = load("test")
    for index, name in enumerate(data.image_ids):
        picture = Image.fromarray(data.image(index))
        picture.resize((192, 192), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return data.image_ids


def fitting_pictures(query: str, names: list[str]) -> set[str]:
    """Return the test pictures that the query truly fits, by the scenes' oracle."""
    fits = fitting(describe("test").scenes, [parse(query)])[:, 0]
    return {names[index] for index in np.flatnonzero(fits)}


if __name__ == "__main__":
    main()
