"""The tables of bench/ablation.py: what a CSV of runs says."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ablation_configs import CHECKED, CONFIGS, EVERY, GROUPS, READINGS, REFERENCE, TRAININGS
from ablation_rows import read_rows
from report import markdown

from divse.evaluation.seeds import Comparison, compare, mean_interval

Row = dict[str, str]
NOTES = f"""\
- RSUM, log Var, share: means over the seeds. share: the part of a set's gradient that its most
  supervised element receives, mean of pictures and captions.
- minus reference: RSUM less that of {REFERENCE}, with the 95% t-interval of this difference alone.
  Least squares of configuration + seed over all configurations of a data set, the scatter taken to
  be the same for all of them.
- p: of the same t-test, corrected by Holm for all comparisons with the reference on that data;
  resolved: p < 0.05. It speaks of other trainings, not of other pictures: queries are not drawn.
- k1 changes two things, the number of elements and the head (attention pooling instead of set
  prediction), so its difference is that of both together.
- paper: RSUM on Flickr30K in the paper's table; orders can be compared, heights cannot.
"""
READING_NOTES = """\
- Steps from set prediction to PIE-Net: transformer is set prediction without competition,
  attention_pooling has no block either (each element is one weighted mean of the input, K = 4),
  pie_net reads as that does, by a small network and without positions, and joins the global
  feature before the norm.
- minus reference, p, resolved: as above, of these configurations alone. They were chosen after the
  ablation was seen, to find the step that makes the difference.
"""
CHECK_NOTES = f"""\
- The same seeds in every row; minus {REFERENCE}: of the same training; paper: the same difference
  there. One seed has no interval: a difference of a size that seeds make says nothing.
- They can tell whether an order that differs from the paper's goes with the loss, or with too short
  a training. They cannot tell how the paper's loss fares where its hardest negatives are negatives:
  on scenes a caption often fits another picture of its batch (docs/scenes.md: 40% of the captions
  for batches of 50), more than one expects of the paper's batches of 128 photographs. A loss that
  stays at twice its margin has all scores equal and an RSUM of chance: it orders no models. Sizes
  of batches, learning rates and schedules stay those of the preset.
"""


def tables_of(rows: list[Row]) -> str:
    """All tables of the rows of a CSV, and what their columns mean."""
    parts = []
    for data in dict.fromkeys(row["data"] for row in rows):
        runs = by_config(rows, data)
        for group, members in GROUPS.items():
            if found := table(runs, members, CONFIGS):
                parts.append(f"**{data}, {group}**\n\n{markdown(found)}")
    parts.append(NOTES)
    for data in dict.fromkeys(row["data"] for row in rows):
        runs = by_config(rows, data)
        if any(name in runs for name in READINGS if name not in CONFIGS):
            found = table(runs, dict.fromkeys(READINGS), READINGS)
            parts.append(f"**{data}, how an element reads**\n\n{markdown(found)}\n{READING_NOTES}")
        if found := checks(runs):
            parts.append(f"**{data}, looking for the reason**\n\n{markdown(found)}")
            parts.append(CHECK_NOTES)
    if unknown := sorted({row["config"] for row in rows} - set(EVERY)):
        parts.append(f"Configurations in no table: {', '.join(unknown)}.\n")
    return "\n".join(parts)


def write_tables(path: Path) -> str:
    """Tables of a CSV, written beside it."""
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path}: no runs yet")
    text = tables_of(rows)
    path.with_suffix(".md").write_text(text)
    return text


Runs = dict[str, dict[str, Row]]  # configuration -> seed -> row


def by_config(rows: list[Row], data: str) -> Runs:
    """Runs on some data, by configuration and seed."""
    runs: Runs = {}
    for row in rows:
        if row["data"] == data:
            runs.setdefault(row["config"], {})[row["seed"]] = row
    return runs


def table(
    runs: Runs, members: Mapping[str, float | None], among: Container[str]
) -> list[dict[str, Any]]:
    """One row per member that has runs: what the paper reports, where it does, beside ours.

    among: the configurations that are compared with the reference together
    """
    figures = {
        name: {seed: number(row, "rsum") for seed, row in mine.items()}
        for name, mine in runs.items()
        if name in among
    }
    compared = compare(figures, REFERENCE) if REFERENCE in figures else {}
    found = [
        {"config": name, **means(list(runs[name].values())), **told(compared.get(name))}
        | ({"paper": paper} if any(members.values()) else {})
        for name, paper in members.items()
        if name in runs
    ]
    return found if any(line["config"] != REFERENCE for line in found) else []


def means(rows: list[Row]) -> dict[str, Any]:
    """Means of a configuration's runs."""
    figures = {
        "RSUM": (".1f", [number(row, "rsum") for row in rows]),
        "log Var pictures": (".2f", [number(row, "log_var_images") for row in rows]),
        "log Var captions": (".2f", [number(row, "log_var_texts") for row in rows]),
        "share": (".2f", [share(row) for row in rows]),
    }
    found = {"seeds": len(rows)}
    for name, (form, values) in figures.items():
        value = mean_interval(values).estimate
        found[name] = "" if math.isnan(value) else format(value, form)
    return found


def told(comparison: Comparison | None) -> dict[str, str]:
    """The difference to the reference; blank for the reference and where there is one seed."""
    if comparison is None:
        return {"minus reference": "", "p": "", "resolved": ""}
    return {
        "minus reference": str(comparison.interval),
        "p": f"{comparison.p:.3f}" if comparison.p >= 0.001 else "< 0.001",
        "resolved": "yes" if comparison.resolved else "no",
    }


def checks(runs: Runs) -> list[dict[str, Any]]:
    """The checks that have runs, after the ablation's own runs of the same seeds."""
    trained = [[f"{config}_{name}" for config in CHECKED] for name in TRAININGS]
    seeds = {seed for names in trained for name in names for seed in runs.get(name, ())}
    found = []
    for names in ([*CHECKED], *trained):
        kept = [{s: r for s, r in runs.get(name, {}).items() if s in seeds} for name in names]
        for name, mine, paper in zip(names, kept, CHECKED.values(), strict=True):
            if mine:
                first = next(iter(mine.values()))
                line = {"config": name, "loss": first["loss"], "epochs": first["epochs"]}
                line |= means(list(mine.values()))
                less = "" if mine is kept[0] else minus(mine, kept[0])
                line[f"minus {REFERENCE}"] = less
                line["paper"] = f"{paper - CHECKED[REFERENCE]:+.1f}" if less else ""
                found.append(line)
    return found


def minus(mine: dict[str, Row], reference: dict[str, Row]) -> str:
    """RSUM less the reference's, over the seeds of both."""
    gaps = [number(mine[s], "rsum") - number(reference[s], "rsum") for s in mine if s in reference]
    if len(gaps) < 2:
        return f"{gaps[0]:+.1f}" if gaps else ""
    return str(mean_interval(gaps))


def number(row: Row, name: str) -> float:
    """A number of a row; nan where there is none."""
    return float(row[name]) if row.get(name) else math.nan


def share(row: Row) -> float:
    """Share of the most supervised element, mean of pictures and captions."""
    return (number(row, "share_images_1") + number(row, "share_texts_1")) / 2
