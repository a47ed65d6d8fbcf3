"""A tiny COCO for the tests of evaluation: ids, ground truth in files, and plain references."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from divse.cli.eval_app import main
from divse.evaluation.corpus import Corpus
from divse.evaluation.protocols import PROTOCOLS, Sources, answer
from divse.evaluation.scores import MatrixScores
from divse.sets import EmbeddingSets

PICTURES = 10


def corpus(seed: int = 0, extra: bool = True) -> Corpus:
    """Ten pictures of five captions, two of them with a sixth; ids in no order."""
    rng = np.random.default_rng(seed)
    sizes = np.full(PICTURES, 5)
    if extra:
        sizes[[2, 7]] = 6
    owner = np.repeat(np.arange(PICTURES), sizes)
    images = rng.permutation(1000)[:PICTURES]
    captions = 5000 + rng.permutation(1000)[: len(owner)]
    return Corpus("tiny", PICTURES, owner, image_ids=images, caption_ids=captions)


def sets(count: int, seed: int, k: int = 3, dim: int = 8) -> EmbeddingSets:
    generator = torch.Generator().manual_seed(seed)
    return EmbeddingSets.of(torch.randn(count, k, dim, generator=generator))


def first_five(data: Corpus) -> list[int]:
    owners = data.image_of_caption.tolist()
    return [t for t, owner in enumerate(owners) if owners[:t].count(owner) < 5]


def write_csv(file: Path, rows: list[tuple[str, str, float]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id1", "id2", "agg_score", "sampling_method"))
        writer.writerows((*row, "c2i_original") for row in rows)


def image_name(data: Corpus, place: int) -> str:
    return f"COCO_val2014_{data.image_ids[place]:012d}.jpg"


def caption_name(data: Corpus, place: int) -> str:
    return f"COCO_val2014:sentid:{data.caption_ids[place]}"


def write_cxc(folder: Path, data: Corpus, seed: int = 1) -> dict[str, list[tuple[int, int, float]]]:
    """Write the three CSV files of a split; return their rows as positions."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"image": image_name, "caption": caption_name}
    limits = {"image": data.images, "caption": data.captions}
    rows = {}
    for kind, sides, count in (
        ("sits", ("caption", "image"), 200),
        ("sis", ("image", "image"), 12),
        ("sts", ("caption", "caption"), 120),
    ):
        pairs = {tuple(int(rng.integers(limits[side])) for side in sides) for _ in range(count)}
        pairs = {(a, b) for a, b in pairs if sides[0] != sides[1] or a < b}
        rows[kind] = [(a, b, round(float(rng.random() * 5), 1)) for a, b in sorted(pairs)]
        text = [(names[sides[0]](data, a), names[sides[1]](data, b), r) for a, b, r in rows[kind]]
        write_csv(folder / f"{kind}_test.csv", text)
    return rows


def write_pairs(folder: Path, data: Corpus, prefix: str, seed: int = 2) -> tuple[dict, dict]:
    """Write {prefix}_image_to_caption.json and its counterpart; return them as positions."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kept = first_five(data)
    i2t = {i: sorted(rng.permutation(kept)[: rng.integers(1, 9)].tolist()) for i in range(0, 10, 2)}
    t2i = {t: sorted(rng.permutation(10)[: rng.integers(1, 4)].tolist()) for t in kept[::3]}
    ids = data.image_ids.tolist(), data.caption_ids.tolist()
    (folder / f"{prefix}_image_to_caption.json").write_text(
        json.dumps({str(ids[0][i]): [ids[1][t] for t in fits] for i, fits in i2t.items()})
    )
    (folder / f"{prefix}_caption_to_image.json").write_text(
        json.dumps({str(ids[1][t]): [ids[0][i] for i in fits] for t, fits in t2i.items()})
    )
    return i2t, t2i


def write_instances(file: Path, data: Corpus, seed: int = 3) -> np.ndarray:
    """Write COCO instances of 4 classes; picture 4 has none. Return the labels (I, 4)."""
    rng = np.random.default_rng(seed)
    labels = rng.random((data.images, 4)) < 0.5
    labels[:, 0] |= ~labels.any(1)
    labels[4] = False
    rows = [
        {"image_id": int(data.image_ids[i]), "category_id": int(c) * 7 + 1}
        for i, c in np.argwhere(labels)
    ]
    rows += [{"image_id": 999_999, "category_id": 3}, *rows[:2]]  # of another split; twice
    file.write_text(json.dumps({"annotations": rows}))
    return labels


def ranking(scores: np.ndarray, gallery: list[int], fits: set[int]) -> list[int]:
    """Items by falling score, those that fit last among equals."""
    return sorted(gallery, key=lambda item: (-scores[item], item in fits))


def recall(scores: np.ndarray, gallery: list[int], fits: set[int], k: int) -> float:
    return float(bool(set(ranking(scores, gallery, fits)[:k]) & fits))


def r_precision(scores: np.ndarray, gallery: list[int], fits: set[int]) -> float:
    return len(set(ranking(scores, gallery, fits)[: len(fits)]) & fits) / len(fits)


def map_at_r(scores: np.ndarray, gallery: list[int], fits: set[int]) -> float:
    order = ranking(scores, gallery, fits)[: len(fits)]
    found = [len(set(order[: r + 1]) & fits) / (r + 1) for r in range(len(order))]
    return sum(p for p, item in zip(found, order, strict=True) if item in fits) / len(fits)


def mean(values) -> float:
    return 100 * float(np.mean(list(values)))


DATA = corpus()
KEPT = first_five(DATA)
OWNER = DATA.image_of_caption
IMAGES = list(range(DATA.images))
WAYS = ("image_to_caption", "caption_to_image")
needs_package = pytest.mark.skipif(
    find_spec("eccv_caption") is None, reason="eccv-caption is not installed"
)


def matrix(levels=6, seed=0):
    """Scores with many ties."""
    return np.random.default_rng(seed).integers(0, levels, (DATA.images, DATA.captions)) / levels


def measured(name, scores, sources=None, data=DATA):
    """Figures of a protocol, and the protocol."""
    protocol = PROTOCOLS[name](data, sources or Sources()).without({"i2i", "t2t"})
    (found,) = answer([protocol], {"i2t": MatrixScores(scores)}, block=7)
    return {name: figure.value for name, figure in found.figures.items()}, protocol


@pytest.fixture
def call(capsys, monkeypatch):
    """Run divse-eval in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


def figures(out, model=0, protocol="own"):
    found = json.loads(out)["models"][model]["protocols"][protocol]["figures"]
    return {name: figure["value"] for name, figure in found.items()}
