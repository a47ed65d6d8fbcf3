"""Plots of `bench_score.json`: share of the floor against D and against the number of queries.

    python bench/plot.py RESULTS.json [MORE.json ...] --out DIR

Reads files of bench_score.py or gpu.py and writes floor_by_dim.svg and floor_by_batch.svg: one
panel for each K, one line for each variant, the median over the cells of a point. Of a file of
bench_search.py it writes search_growth.svg (growth.py). Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import growth

Row = dict[str, Any]
Lines = dict[str, list[tuple[float, float]]]  # by variant: (x, share of the floor)
COLORS = {
    "triton": "#d62728",
    "cuda": "#8c564b",
    "native": "#d62728",
    "matmul": "#1f77b4",
    "compiled": "#2ca02c",
    "eager": "#7f7f7f",
    "reference": "#9467bd",
}
WIDTH, HEIGHT, MARGIN, TOP = 260, 240, 42, 46  # of a panel, pixels


def rows_of(document: Any) -> list[Row]:
    """Rows of a Smooth-Chamfer bench, wherever a document has them."""
    if isinstance(document, list):
        return [row for part in document for row in rows_of(part)]
    if not isinstance(document, dict):
        return []
    if document.get("bench") == "bench_score":
        return [r for r in document["rows"] if r.get("of floor") and r["K"] == r["L"]]
    return [row for part in document.values() for row in rows_of(part)]


def lines(rows: Iterable[Row], axis: str) -> Lines:
    """Median share of the floor for each variant and value of the axis."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["variant"], {}).setdefault(row[axis], []).append(row["of floor"])
    return {
        variant: sorted((x, statistics.median(shares)) for x, shares in points.items())
        for variant, points in found.items()
    }


def panel(found: Lines, title: str, left: float) -> list[str]:
    """One panel: the axes, then a line for each variant; x is logarithmic, y from 0 to 1."""
    xs = sorted({x for points in found.values() for x, _ in points})
    low, span = math.log2(xs[0]), max(math.log2(xs[-1]) - math.log2(xs[0]), 1e-9)
    inner_w, inner_h = WIDTH - MARGIN - 12, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - low) / span if len(xs) > 1 else 0.5
        return left + MARGIN + across * inner_w, TOP + (1 - min(y, 1.05)) * inner_h

    parts = [f'<text x="{left + MARGIN}" y="{TOP - 8}" font-weight="bold">{title}</text>']
    for y in (0, 0.25, 0.5, 0.75, 1):
        (x0, y0), x1 = place(xs[0], y), left + WIDTH - 12
        parts.append(f'<path d="M{left + MARGIN} {y0:.1f}H{x1}" stroke="#ddd"/>')
        parts.append(f'<text x="{left + MARGIN - 5}" y="{y0 + 4:.1f}" class="y">{y:g}</text>')
    for x in xs:
        x0, _ = place(x, 0)
        parts.append(f'<text x="{x0:.1f}" y="{TOP + inner_h + 16}" class="x">{x:g}</text>')
    for variant, points in sorted(found.items()):
        color = COLORS.get(variant, "#ff7f0e")
        at = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in at]
    return parts


def svg(rows: list[Row], axis: str, label: str) -> str:
    """A panel for each K, the legend on top."""
    rows = [row for row in rows if row["similarity"] == "smooth_chamfer"]
    sizes = sorted({row["K"] for row in rows})
    width = max(1, len(sizes)) * WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 12}" '
        'font-family="sans-serif" font-size="11">',
        "<style>.y{text-anchor:end}.x{text-anchor:middle}</style>",
        f'<rect width="{width}" height="{HEIGHT + 12}" fill="#fff"/>',
    ]
    for i, variant in enumerate(sorted({row["variant"] for row in rows})):
        color = COLORS.get(variant, "#ff7f0e")
        parts.append(f'<text x="{8 + 78 * i}" y="16" fill="{color}">{variant}</text>')
    for i, k in enumerate(sizes):
        of_k = [row for row in rows if row["K"] == k]
        parts += panel(lines(of_k, axis), f"K = {k}", i * WIDTH)
    text = f"share of the floor against {label}"
    parts.append(f'<text x="8" y="{HEIGHT + 6}" fill="#555">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(rows: list[Row], folder: Path, prefix: str = "") -> list[Path]:
    """Write both plots; nothing where there are no rows."""
    if not rows:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"floor_by_dim": ("D", "D"), "floor_by_batch": ("B", "the number of queries")}
    found = []
    for name, (axis, label) in plots.items():
        path = folder / f"{prefix}{name}.svg"
        path.write_text(svg(rows, axis, label))
        found.append(path)
    return found


def main() -> int:
    """Plot the files that were named."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("results", nargs="+", type=Path)
    arguments.add_argument("--out", type=Path, required=True)
    args = arguments.parse_args()
    documents = [json.loads(path.read_text()) for path in args.results]
    paths = write(rows_of(documents), args.out)
    for document in documents:
        if isinstance(document, dict) and document.get("bench") == "bench_search":
            paths += growth.write(document["rows"], args.out)
    print("\n".join(map(str, paths)) or "no row has a share of the floor, or a time of a search")
    return 0 if paths else 1


if __name__ == "__main__":
    sys.exit(main())
