"""Evaluation against the package eccv-caption: the same figures first, then the time of both.

    python bench/bench_eval.py [--part N] [--json] [--out [DIR]]

Scores of all of COCO's test split (5000 pictures, 25,000 captions) are made up, without ties, for
ties are where codes differ by choice. Both compute COCO 1K (five folds) and 5K, CxC and ECCV
Caption on the ground truth that eccv-caption carries, which the package needs full rankings for:
cut short they under-count COCO 1K. Every figure must agree to 1e-9, or no time is shown.

`eccv-caption` is timed from rankings that are there already, as lists of ids; the row `with
rankings` adds sorting the scores and writing those lists. divse is timed from the scores, with
reading the ground truth, on one thread. `cpu s` counts the time of the processor alone, which other
programs on the machine change little. `--part N` keeps the first N pictures (and COCO alone), to
try the bench out.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from report import Report, parser

from divse.evaluation.corpus import Corpus
from divse.evaluation.eccv import coco_test_ids, coco_test_images
from divse.evaluation.judgement import Array
from divse.evaluation.protocols import PROTOCOLS, Protocol, Sources, answer
from divse.evaluation.scores import MatrixScores

PRIME = 65_537  # more than captions: sums modulo it differ within every row and column
LEAD = 20_000  # by how much fitting pairs score higher
ALLOWED = 1e-9
NAMES = {
    "coco-1k": {f"r{k}": f"coco_1k_r{k}" for k in (1, 5, 10)},
    "coco-5k": {f"r{k}": f"coco_5k_r{k}" for k in (1, 5, 10)},
    "cxc": {f"r{k}": f"cxc_r{k}" for k in (1, 5, 10)},
    "eccv": {"map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision", "r1": "eccv_r1"},
}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--part", type=int, default=0, help="pictures; 0: all of them")
    args = arguments.parse_args()
    report = Report("bench_eval", args)
    data = corpus(args.part)
    protocols = list(NAMES)[: 2 if args.part else None]
    scores = made_up(data, [PROTOCOLS[name](data, Sources()) for name in protocols])
    ours, divse_s = timed(lambda: measured(data, scores, protocols))
    rankings, rankings_s = timed(lambda: ranked(data, scores))
    theirs, package_s = timed(lambda: package(data, rankings, protocols))
    worst = compare(ours, theirs)
    row: dict[str, Any] = {"figures": len(ours), "largest difference": worst}
    if worst > ALLOWED:
        report.red.append(f"figures differ by {worst}")
        report.add(what="eccv-caption", gate="RED", **row)
        return report.finish()
    for what, (seconds, cpu) in (
        ("divse", divse_s),
        ("eccv-caption", package_s),
        ("eccv-caption with rankings", package_s + rankings_s),
    ):
        told = {"seconds": round(seconds, 2), "ratio": seconds / divse_s[0]}
        told |= {"cpu s": round(cpu, 2), "cpu ratio": cpu / divse_s[1]}
        report.add(what=what, gate="green", **row, **told)
    return report.finish()


def corpus(part: int) -> Corpus:
    """COCO's test split in its usual order, or the first pictures of it."""
    captions = coco_test_ids()
    images = coco_test_images(captions)
    if part:
        images, captions = images[:part], captions[: 5 * part]
    owner = np.arange(len(captions)) // 5
    return Corpus("COCO", len(images), owner, image_ids=images, caption_ids=captions)


def made_up(data: Corpus, protocols: list[Protocol]) -> Array:
    """Scores (I, T) fp32, distinct within every row and column; what fits in any truth leads."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.permutation(PRIME)[:n].astype(np.int32)  # noqa: E731
    rows, columns = draw(data.images), draw(data.captions)
    scores = ((rows[:, None] + columns) % PRIME).astype(np.float32)
    scores += PRIME
    rows, columns = draw(data.images), draw(data.captions)
    for protocol in protocols:
        for task in protocol.tasks:
            judgement = task.judgement
            first, second = np.repeat(judgement.queries, judgement.counts), judgement.items
            i, t = (second, first) if judgement.by_column else (first, second)
            scores[i, t] = (rows[i] + columns[t]) % PRIME + PRIME + LEAD + 0.5
    return scores


def measured(data: Corpus, scores: Array, names: list[str]) -> dict[str, float]:
    """Figures of divse, as shares, under the names of eccv-caption."""
    protocols = [PROTOCOLS[name](data, Sources()) for name in names]
    found = {}
    for each in answer(protocols, {"i2t": MatrixScores(scores)}):
        for ours, theirs in NAMES[each.protocol.name].items():
            for way in ("i2t", "t2i"):
                found[f"{theirs} {way}"] = each.figures[f"{way}_{ours}"].value / 100
    return found


def ranked(data: Corpus, scores: Array) -> dict[str, dict[int, list[int]]]:
    """Full rankings as eccv-caption takes them: ids of all items, best first, for every query."""
    assert data.image_ids is not None and data.caption_ids is not None
    ids = [np.array(side.tolist(), dtype=object) for side in (data.image_ids, data.caption_ids)]
    return {
        "i2t": {
            i: ids[1][np.argsort(-row)].tolist() for i, row in zip(ids[0], scores, strict=True)
        },
        "t2i": {
            t: ids[0][np.argsort(-row)].tolist() for t, row in zip(ids[1], scores.T, strict=True)
        },
    }


def package(
    data: Corpus, rankings: dict[str, dict[int, list[int]]], names: list[str]
) -> dict[str, float]:
    """Figures of eccv-caption."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for ujson
        from eccv_caption import Metrics

        metrics = Metrics()
        if data.images < 5000:
            keep_part(metrics, data)
        targets = ["coco_1k_recalls", "coco_5k_recalls"]
        if len(names) > 2:
            targets += ["cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1"]
        found = metrics.compute_all_metrics(rankings["i2t"], rankings["t2i"], targets)
    return {f"{name} {way}": float(v) for name, ways in found.items() for way, v in ways.items()}


def keep_part(metrics: Any, data: Corpus) -> None:
    """Let the package's COCO be these pictures alone."""
    assert data.image_ids is not None and data.caption_ids is not None
    images, metrics.coco_ids = set(data.image_ids.tolist()), data.caption_ids
    captions = set(data.caption_ids.tolist())
    gts = metrics.coco_gts
    metrics.coco_gts = {
        "i2t": {i: fits for i, fits in gts["i2t"].items() if i in images},
        "t2i": {t: fits for t, fits in gts["t2i"].items() if t in captions},
    }


def compare(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference of any figure; both must have the same figures."""
    if set(ours) != set(theirs):
        raise ValueError(f"figures of one side only: {sorted(set(ours) ^ set(theirs))}")
    return max(abs(ours[name] - theirs[name]) for name in ours)


def timed(call: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a call returns; the seconds that it took, and those of the processor."""
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    start = clocks()
    return call(), clocks() - start


if __name__ == "__main__":
    sys.exit(main())
