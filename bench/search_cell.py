"""One peer on one data set: what it builds, its cheapest setting, its time, memory and gate."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Verdict, gate
from search_data import TOPK, Data
from search_peers import PeerError, PeerProcess, PeerSpec

BATCH, ROUNDS = 32, 3
SWEEP_SHARE, SETTING_SHARE = 4, 80  # of the time limit: one in so many for all settings, for one
HARDLY = 0.002  # recall: with much more effort for so little, a knob has done what it can
Row = dict[str, Any]


def bytes_of(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Cell:
    """One peer on one data set."""

    def __init__(self, spec: PeerSpec, data: Data, args: argparse.Namespace) -> None:
        self.spec, self.data, self.args = spec, data, args
        self.folder = data.folder / "built" / spec.build_name
        self.answers = data.folder / "answers.npz"
        self.python = spec.python(args.venvs)
        self.intro: dict[str, Any] = {}

    def process(self) -> PeerProcess:
        """A fresh process of the peer."""
        return PeerProcess(self.spec, self.python, self.args.threads, self.data.folder / "log.txt")

    def build(self) -> dict[str, Any]:
        """Seconds and bytes of building, which peers that share what is built do once."""
        record = self.folder.with_suffix(".json")
        if not record.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            took: dict[str, Any] = {}
            try:
                with self.process() as process:
                    took = process.ask(self.args.limit, do="build", **self.files())
                took["bytes"] = bytes_of(self.folder)
            except PeerError as error:
                took = {"error": str(error)}
            record.write_text(json.dumps(took))
        found: dict[str, Any] = json.loads(record.read_text())
        if "error" in found:
            raise PeerError(found["error"])
        return found

    def files(self) -> dict[str, str]:
        """Where the peer finds its input and what it built."""
        return {"gallery": str(self.data.gallery), "folder": str(self.folder)}

    def ask(
        self, process: PeerProcess, setting: Row, batch: int, budget: float, **more: int
    ) -> Row:
        """Answers of a peer to the queries: ms, memory, scores, ids."""
        words = {"queries": str(self.data.queries), "out": str(self.answers), "topk": TOPK}
        words |= {"setting": setting, "batch": batch, "budget": budget, "clock": self.args.clock}
        found = process.ask(self.args.limit, do="answer", **words, **more)
        with np.load(self.answers) as arrays:
            return found | {"scores": arrays["scores"], "ids": arrays["ids"]}

    def sweep(self, process: PeerProcess) -> Row:
        """Answers by the cheapest setting that reaches the recall, or that comes nearest to it."""
        tried: list[Row] = []
        until = time.monotonic() + self.args.limit / SWEEP_SHARE
        for ladder in self.intro["ladders"]:
            low, high, capped = 0, len(ladder), -1.0
            while low < high and time.monotonic() < until:
                middle = (low + high) // 2
                known = [row["single"] for row in tried if row["recall"] >= self.args.recall]
                tried.append(self.attempt(process, ladder[middle]))
                enough = tried[-1]["recall"] >= self.args.recall
                if not enough:
                    slow = tried[-1]["single"] > min(known, default=float("inf"))
                    if slow or tried[-1]["recall"] - capped < HARDLY:
                        break  # what could reach the recall here is slower still, or nothing does
                    capped = tried[-1]["recall"]
                low, high = (low, middle) if enough else (middle + 1, high)
        reached = [row for row in tried if row["recall"] >= self.args.recall]
        if reached:
            return min(reached, key=lambda row: row["single"])
        return max(tried, key=lambda row: row["recall"])

    def attempt(self, process: PeerProcess, setting: Row) -> Row:
        """Answers to single queries with a setting, their recall and median time."""
        found = self.ask(process, setting, 1, self.args.limit / SETTING_SHARE)
        recall = self.data.recall(self.intro["similarity"], found["ids"])
        single = statistics.median(found["ms"])
        return found | {"setting": setting, "recall": recall, "single": single}

    def round(self, process: PeerProcess, setting: Row, yardstick: Yardstick) -> Row:
        """Single queries, then the yardstick on the same queries: a slow machine slows both."""
        budget = self.args.seconds / ROUNDS
        found = self.ask(process, setting, 1, budget, warm=3)
        own = statistics.median(found["ms"])
        return found | {"x numpy": yardstick.ms(self.intro["similarity"], budget) / own}

    def measure(self, yardstick: Yardstick) -> tuple[Verdict | None, Row]:
        """Everything: build, sweep, then time and memory of a fresh process."""
        built, batch = self.build(), min(BATCH, len(self.data.asked))
        with self.process() as process:
            self.intro = process.ask(self.args.limit, do="open", **self.files())
            best = self.sweep(process)
        setting, similarity = best["setting"], self.intro["similarity"]
        with self.process() as process:
            process.ask(self.args.limit, do="open", **self.files())
            rounds = [self.round(process, setting, yardstick) for _ in range(ROUNDS)]
            batched = self.ask(process, setting, batch, self.args.seconds)
        most = max(best, batched, key=lambda found: len(found["ids"]))  # slow peers had few alone
        ids, recall = most["ids"], self.data.recall(similarity, most["ids"])
        verdict = judge(self.data, self.intro, most["scores"], ids, recall)
        disk = built["bytes"] + self.intro["reads_gallery"] * self.data.gallery.stat().st_size
        row = {
            "similarity": similarity,
            "setting": " ".join(f"{k}={v}" for k, v in setting.items()),
            "recall@10": round(recall, 4),
            "SC recall": round(self.data.recall("smooth_chamfer", ids), 4),
            "reached": "yes" if recall >= self.args.recall else "no",
            "build s": round(built["seconds"], 1),
            "disk MB": round(disk / 1e6),
            "RSS MB": round(batched["memory"] / 1e6),
        }
        if verdict is None or verdict.green:
            row["ms"] = statistics.median(ms for found in rounds for ms in found["ms"])
            row["ms batched"] = statistics.median(batched["ms"]) / batch
            row["x numpy"] = statistics.median(found["x numpy"] for found in rounds)
        return verdict, row


class Yardstick:
    """Exact numpy, kept open beside the peers of one data set and timed in turn with each."""

    def __init__(self, data: Data, args: argparse.Namespace) -> None:
        self.data, self.args = data, args
        self.running: dict[str, PeerProcess] = {}

    def __enter__(self) -> Yardstick:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.__exit__()

    def ms(self, similarity: str, budget: float) -> float:
        """Median of single queries, by a process that is started when it is first needed."""
        if similarity not in self.running:
            for process in self.running.values():
                process.__exit__()
            spec = PeerSpec("yardstick", "exact_numpy", {"similarity": similarity})
            log = self.data.folder / "yardstick.txt"
            process = PeerProcess(spec, Path(sys.executable), self.args.threads, log)
            self.running = {similarity: process}
            files = {"gallery": str(self.data.gallery), "folder": str(self.data.folder)}
            process.ask(self.args.limit, do="open", **files)
        out = str(self.data.folder / "yardstick.npz")
        words = {"queries": str(self.data.queries), "out": out, "topk": TOPK, "setting": {}}
        words |= {"batch": 1, "budget": budget, "clock": self.args.clock}
        found = self.running[similarity].ask(self.args.limit, do="answer", **words)
        return statistics.median(found["ms"])


def judge(
    data: Data, intro: Row, scores: np.ndarray, ids: np.ndarray, recall: float
) -> Verdict | None:
    """Gate: every set once, best first, with the score that it has in float64.

    An engine that claims to be exact must have found all of the ten best, too: those of the sets as
    they are, or where it keeps them rounded, those that the first such engine found. An engine that
    estimates scores gets no verdict on them.
    """
    real, bad = ids >= 0, Verdict(float("nan"), 0.0)
    once = all(len(set(row[row >= 0])) == (row >= 0).sum() for row in ids)
    if not once or ids.max() >= len(data.sets) or (scores[:, 1:] > scores[:, :-1]).any():
        return bad
    if intro["stored"] is None:
        return None
    name, stored = intro["similarity"], np.dtype(intro["stored"])
    exact, plain = (data.scores(name, ids, kind, stored) for kind in (np.float64, np.float32))
    verdict = gate(*(torch.from_numpy(found[real]) for found in (scores, exact, plain)))
    if not intro["exact"]:
        return verdict
    if stored == np.float32:
        return verdict if recall == 1 else bad
    known = data.folder / f"exact-{name}-{stored}.npy"
    if not known.exists():
        np.save(known, exact)
    first = np.load(known)
    rows = min(len(first), len(exact))
    missed = float(np.abs(first[:rows] - exact[:rows]).max())
    return Verdict(float(np.maximum(verdict.error, missed)), verdict.allowed)
