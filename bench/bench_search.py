"""Search of sets: divse's plans against every other engine, on the same data, at equal recall.

Each peer (the table PEERS in search_peers.py) runs in a process of its own, with the Python of its
own virtual environment where it needs one (bench/peers/install.sh FOLDER makes them), all with the
same number of threads on the same cores. It builds from a .npy file, then its settings are swept
for the cheapest that finds 0.99 of the ten best sets, then a fresh process is timed and its memory
taken. "smooth_chamfer" peers are held to the ten best by exact Smooth-Chamfer; "maxsim" peers to
those by exact MaxSim, and the column SC recall says what their answers are worth in Smooth-Chamfer.

Columns: recall@10, build s, disk MB (with the .npy file where it is read at search time), RSS MB
(peak of the searching process beyond its imports, pages of mapped files included), ms (median of
single queries), ms batched (a query, in batches of 32), x numpy (times faster than exact numpy for
the same similarity, timed in turn with the peer). `reached` is "no" where no setting reaches the
recall: then the row is the best recall that was reached.
The method is described in docs/comparison.md.

Rows are kept in the work folder as they finish, and a run that is started again goes on there;
--fresh measures again, --kept reports what there is.

    python bench/bench_search.py [--sizes N ...] [--runs RUN ...] [--venvs FOLDER] [--out [DIR]]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import growth
from harness import Verdict
from report import Report, parser, results_folder
from search_cell import Cell, Yardstick
from search_data import Data, clustered, of_run
from search_peers import OUT_OF_TIME, PEERS, PeerError, PeerSpec

SHAPES = ("4x256", "32x128")
MOST_OF_LONG_SETS = 100_000  # sets of more than eight elements
HOPELESS = 1.5  # times the limit that building would take, by the number of sets
GOALS = {"divse certified": 5, "divse prefilter": 30}  # times faster than numpy at a million sets
Row = dict[str, Any]


class Kept:
    """Finished rows in the work folder, by data and peer."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.exists() and not fresh:
            self.rows = json.loads(path.read_text())

    def add(self, key: str, verdict: Verdict | None, row: Row, origin: Row) -> None:
        """Keep a row; on disk, unless the peer could not run at all."""
        judged = None if verdict is None else asdict(verdict)
        self.rows[key] = {"row": row, "verdict": judged, **origin}
        whole = {k: v for k, v in self.rows.items() if "ms" in v["row"] or OUT_OF_TIME in str(v)}
        self.path.write_text(json.dumps(whole, indent=1))


def galleries(args: argparse.Namespace) -> list[Data]:
    """Data sets to search, made where they are missing; small ones first."""
    found = []
    for shape in args.shapes:
        k, dim = map(int, shape.split("x"))
        for sets in sorted(args.sizes):
            if k <= 8 or sets <= MOST_OF_LONG_SETS:
                found.append(clustered(args.work, sets, k, dim, args.queries))
    for run in args.runs:
        found += [of_run(args.work, run, sets, args.queries) for sets in sorted(args.run_sizes)]
    return found


def search(
    data: Data, report: Report, kept: Kept, specs: list[PeerSpec], yardstick: Yardstick
) -> None:
    """All peers on one data set."""
    args, (sets, k, dim) = report.args, data.sets.shape
    commit = report.environment["commit"]
    for similarity in ("smooth_chamfer", "maxsim"):
        data.tenth(similarity)
    for i, spec in enumerate(specs):
        head = {"data": data.name, "K": k, "D": dim, "N": sets, "peer": spec.name}
        key = f"{data.folder.name} {spec.name} {args.recall} {args.threads} {args.clock}"
        if key not in kept.rows and args.kept:
            continue
        if key not in kept.rows:
            verdict, row, versions = None, {}, {}
            try:
                if (slow := too_slow(report.rows, head, args.limit)) is not None:
                    raise PeerError(f"not tried: {slow}")
                cell = Cell(spec, data, args)
                verdict, row = cell.measure(yardstick)
                versions = cell.intro["versions"]
            except PeerError as error:
                row = {"note": str(error)}
            kept.add(key, verdict, row, {"versions": versions, "commit": commit})
        if not any(later.build_name == spec.build_name for later in specs[i + 1 :]):
            shutil.rmtree(data.folder / "built" / spec.build_name, ignore_errors=True)
            (data.folder / "built" / f"{spec.build_name}.json").unlink(missing_ok=True)
        known = kept.rows[key]
        row = head | known["row"]
        report.add(None if known["verdict"] is None else Verdict(**known["verdict"]), **row)
        report.note(packages=report.environment.get("packages", {}) | known["versions"])
        report.note(commits=sorted({row["commit"] for row in kept.rows.values()}))
        print(" ".join(f"{name}={value}" for name, value in row.items()), file=sys.stderr)


def too_slow(rows: list[Row], head: Row, limit: float) -> str | None:
    """Why a peer is not tried: its row on fewer sets of the kind tells that it takes too long."""
    like = {name: head[name] for name in ("data", "K", "D", "peer")}
    for row in (row for row in rows if like.items() <= row.items()):
        sets = f"with {row['N']:,} sets"
        if OUT_OF_TIME in row.get("note", ""):
            return f"{row['note']} {sets}"
        if row.get("build s", 0) * head["N"] / row["N"] > HOPELESS * limit:
            took = f"{row['build s']} s {sets}"
            return f"build: {OUT_OF_TIME}{limit / 60:.1f} minutes, as it took {took}"
    return None


def goals(rows: list[Row]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    lines, fast = [], [row for row in rows if row.get("ms") and row["reached"] == "yes"]
    keys = dict.fromkeys((r["data"], r["K"], r["D"], r["N"], r["similarity"]) for r in fast)
    for key in keys:
        there = [r for r in fast if (r["data"], r["K"], r["D"], r["N"], r["similarity"]) == key]
        best = {
            ours: [r for r in there if r["peer"].startswith("divse") == ours] for ours in (0, 1)
        }
        if best[0] and best[1]:
            other, own = (max(best[ours], key=lambda row: row["x numpy"]) for ours in (0, 1))
            times = own["x numpy"] / other["x numpy"]
            lines.append(
                f"{'reached' if times > 1 else 'MISSED'}: {key[0]} K={key[1]} D={key[2]} "
                f"N={key[3]:,} {key[4]}: {own['peer']} is {times:.2f} x as fast as {other['peer']}"
            )
    for row in fast:
        goal = GOALS.get(row["peer"])
        if goal and row["N"] >= 1_000_000:
            word = "reached" if row["x numpy"] >= goal else "MISSED"
            lines.append(
                f"{word}: {row['peer']} at {row['N']:,} sets is {row['x numpy']:.1f} x as fast as "
                f"numpy (goal {goal}), {row['RSS MB']:,} MB resident, {row['disk MB']:,} MB on disk"
            )
    return lines


def arguments() -> argparse.Namespace:
    """Of the command line."""
    words = parser(__doc__)
    work = Path(tempfile.gettempdir()) / "divse-bench-search"
    words.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    words.add_argument("--shapes", nargs="+", default=list(SHAPES), help="KxD of clustered sets")
    words.add_argument("--runs", type=Path, nargs="+", default=[], help="trained models' folders")
    words.add_argument("--run-sizes", type=int, nargs="+", default=[10_000, 100_000])
    words.add_argument("--peers", nargs="+", default=[], help="those whose name contains a word")
    words.add_argument("--venvs", type=Path, help="folder of install.sh [WORK/venvs]")
    words.add_argument("--work", type=Path, default=work, help="folder for data and kept rows")
    words.add_argument("--queries", type=int, default=96)
    words.add_argument("--recall", type=float, default=0.99)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--limit", type=float, default=240, help="seconds of a peer's every step")
    words.add_argument(
        "--clock",
        default="perf_counter",
        choices=("perf_counter", "process_time"),
        help="process_time, with --threads 1, for a look on a busy machine",
    )
    words.add_argument("--kept", action="store_true", help="report what is kept, measure nothing")
    words.add_argument("--fresh", action="store_true", help="measure again what is kept")
    words.set_defaults(seconds=1.0)
    args = words.parse_args()
    args.device, args.venvs = "cpu", args.venvs or args.work / "venvs"
    return args


def main() -> int:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    report, kept = Report("bench_search", args), Kept(args.work / "rows.json", args.fresh)
    report.note(threads=args.threads, queries=args.queries, recall=args.recall, clock=args.clock)
    specs = [s for s in PEERS if not args.peers or any(word in s.name for word in args.peers)]
    for data in galleries(args):
        with Yardstick(data, args) as yardstick:
            search(data, report, kept, specs, yardstick)
    lines = goals(report.rows)
    report.note(goals=lines)
    status = report.finish()
    print("\n".join(lines), file=sys.stderr)
    if args.out is not None:
        folder = args.out if str(args.out) != "." else results_folder(report.device)
        growth.write(report.rows, folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
