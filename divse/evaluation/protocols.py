"""Protocols: which queries are asked, what fits them, and which figures are reported.

PROTOCOLS maps a name to a function that makes a `Protocol` for a corpus. A protocol is a list of
tasks, each one direction of one ground truth; tasks of one way (i2t, say) are averaged: the five
folds of COCO 1K, the three thresholds of PMRP. All tasks of all protocols on one matrix of scores
are measured in one go (`answer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from divse.evaluation.corpus import Corpus
from divse.evaluation.correlation import Rated, correlations
from divse.evaluation.cxc import read_cxc
from divse.evaluation.eccv import listed, read_eccv
from divse.evaluation.figures import FULL, RECALLS, Figure, Part, mean_of, measure, with_rsum
from divse.evaluation.judgement import Array, Judgement, both_ways
from divse.evaluation.plausible import read_plausible
from divse.evaluation.ranking import Progress, negatives_ahead
from divse.evaluation.scores import Scores

MATRIX = {"i2t": "i2t", "t2i": "i2t", "i2i": "i2i", "t2t": "t2t"}  # way -> which scores


@dataclass(frozen=True)
class Sources:
    """Files of ground truth; None: take it from the package eccv-caption, where it has it."""

    cxc: Path | None = None
    eccv: Path | None = None
    plausible: Path | None = None
    split: str = "test"


@dataclass(frozen=True)
class Task:
    """One direction of one ground truth."""

    way: str
    judgement: Judgement
    pictures: Array  # (Q,), the picture of each query
    metrics: Sequence[str] = RECALLS


@dataclass(frozen=True)
class Protocol:
    """Tasks and rated pairs; `title` names what is measured, `notes` say what was left out."""

    name: str
    title: str
    tasks: list[Task]
    rated: dict[str, Rated] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def without(self, missing: Iterable[str]) -> Protocol:
        """The protocol on the matrices that are there."""
        gone = set(missing)
        tasks = [task for task in self.tasks if MATRIX[task.way] not in gone]
        rated = {name: pairs for name, pairs in self.rated.items() if pairs.matrix not in gone}
        notes = list(self.notes)
        if len(tasks) + len(rated) < len(self.tasks) + len(self.rated):
            notes.append(
                f"{self.title}: only scores between pictures and captions are there, so "
                f"{', '.join(sorted(gone))} is left out; give embeddings"
            )
        return Protocol(self.name, self.title, tasks, rated, notes)


@dataclass(frozen=True)
class Answer:
    """What a model scored: figures, and the resampled rank correlations (resamples,)."""

    protocol: Protocol
    figures: dict[str, Figure]
    correlations: dict[str, Array]


def answer(
    protocols: Sequence[Protocol],
    matrices: Mapping[str, Scores],
    *,
    block: int = 1024,
    progress: Progress | None = None,
) -> list[Answer]:
    """Measure protocols on a model's scores: i2t (I, T), i2i (I, I), t2t (T, T)."""
    ahead: dict[int, Array] = {}
    for name, scores in matrices.items():
        asked = [
            task.judgement
            for protocol in protocols
            for task in protocol.tasks
            if MATRIX[task.way] == name
        ]
        if asked:
            found = negatives_ahead(scores, asked, block=block, progress=progress)
            ahead |= {id(judgement): counts for judgement, counts in zip(asked, found, strict=True)}
    return [
        Answer(
            protocol,
            _figures(protocol.tasks, ahead),
            correlations(protocol.rated, matrices, progress),
        )
        for protocol in protocols
    ]


def _figures(tasks: Sequence[Task], ahead: Mapping[int, Array]) -> dict[str, Figure]:
    parts: dict[str, list[Part]] = {}
    for task in tasks:
        found = measure(task.judgement, ahead[id(task.judgement)], task.metrics, task.pictures)
        for metric, part in found.items():
            parts.setdefault(f"{task.way}_{metric}", []).append(part)
    return with_rsum({name: mean_of(some) for name, some in parts.items()})


def cross(
    corpus: Corpus, judgements: tuple[Judgement, Judgement], metrics: Sequence[str] = RECALLS
) -> list[Task]:
    """Tasks of pictures as queries and of captions as queries."""
    images, captions = judgements
    owners = corpus.image_of_caption[captions.queries]
    return [
        Task("i2t", images, images.queries, metrics),
        Task("t2i", captions, owners, metrics),
    ]


def own(corpus: Corpus, sources: Sources) -> Protocol:
    """R@K, mAP@R and R-Precision against every fitting pair, or the source pairs."""
    if corpus.relevance is None:
        pairs = corpus.image_of_caption, np.arange(corpus.captions)
        truth = "source pairs"
    else:
        images, captions = np.nonzero(corpus.relevance)
        pairs = images, captions
        truth = "all fitting pairs"
    title = f"{corpus.name}, {truth} ({corpus.images} pictures, {corpus.captions} captions)"
    tasks = cross(corpus, both_ways(*pairs, every=True), (*RECALLS, "map_at_r", "r_precision"))
    return Protocol("own", title, tasks)


def whole(corpus: Corpus, name: str, title: str) -> Protocol:
    """R@K of the source pairs, the first five captions a picture, all pictures at once."""
    kept = corpus.first_captions()
    judgements = both_ways(corpus.image_of_caption[kept], kept, caption_gallery=kept)
    return Protocol(name, f"{title} {corpus.size}", cross(corpus, judgements))


def coco_5k(corpus: Corpus, sources: Sources) -> Protocol:
    """COCO with all pictures of the test split."""
    return whole(corpus, "coco-5k", "COCO")


def coco_1k(corpus: Corpus, sources: Sources) -> Protocol:
    """COCO, the mean of five consecutive folds."""
    tasks = []
    for pictures, captions in corpus.folds():
        owners = corpus.image_of_caption[captions]
        judgements = both_ways(owners, captions, image_gallery=pictures, caption_gallery=captions)
        tasks += cross(corpus, judgements)
    size = corpus.images // 5
    title = "COCO 1K" if size == 1000 else f"COCO, folds of {size}"
    return Protocol("coco-1k", f"{title} (mean of 5 folds)", tasks)


def flickr30k(corpus: Corpus, sources: Sources) -> Protocol:
    """Flickr30K, all pictures of the test split."""
    return whole(corpus, "f30k", "Flickr30K")


def cxc(corpus: Corpus, sources: Sources) -> Protocol:
    """CxC: retrieval in four ways, and rank correlations with people's ratings."""
    found = read_cxc(sources.cxc, corpus, sources.split)
    kept = corpus.first_captions()
    owner = corpus.image_of_caption
    tasks = cross(corpus, both_ways(*found.fitting, caption_gallery=kept))
    if found.alike is not None:
        images = Judgement.of_pairs(*found.alike, skip_self=True)
        tasks.append(Task("i2i", images, images.queries))
    if found.same is not None:
        texts = Judgement.of_pairs(*found.same, gallery=kept, skip_self=True)
        tasks.append(Task("t2t", texts, owner[texts.queries]))
    return Protocol("cxc", f"CxC ({corpus.size})", tasks, found.rated, found.notes)


def eccv(corpus: Corpus, sources: Sources) -> Protocol:
    """ECCV Caption: mAP@R, R-Precision, R@1 against pairs that people have verified."""
    judgements = listed(*read_eccv(sources.eccv, corpus), gallery=corpus.first_captions())
    return Protocol("eccv", "ECCV Caption", cross(corpus, judgements, FULL))


def pmrp(corpus: Corpus, sources: Sources) -> Protocol:
    """PMRP: R-Precision of plausible matches, pictures of nearly the same classes."""
    found = read_plausible(sources.plausible, corpus, [None])
    tasks = [task for pair in found for task in cross(corpus, pair, ("r_precision",))]
    return Protocol("pmrp", f"PMRP {corpus.size}", tasks)


def pmrp_1k(corpus: Corpus, sources: Sources) -> Protocol:
    """PMRP, the mean of five consecutive folds."""
    folds = [pictures for pictures, _ in corpus.folds()]
    found = read_plausible(sources.plausible, corpus, folds)
    tasks = [task for pair in found for task in cross(corpus, pair, ("r_precision",))]
    return Protocol("pmrp-1k", f"PMRP {corpus.images // 5} (mean of 5 folds)", tasks)


PROTOCOLS: dict[str, Callable[[Corpus, Sources], Protocol]] = {
    "own": own,
    "coco-1k": coco_1k,
    "coco-5k": coco_5k,
    "f30k": flickr30k,
    "cxc": cxc,
    "eccv": eccv,
    "pmrp": pmrp,
    "pmrp-1k": pmrp_1k,
}
