"""Figures of a split, and how they are shown; what a gallery tells of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from torch import Tensor

from divse.data import ImageTextData
from divse.evaluation.retrieval import evaluate_sets
from divse.evaluation.variance import log_variance
from divse.sets import EmbeddingSets
from divse.training.config import Config
from divse.training.losses import similarity_options
from divse.training.run import choose_device

ROWS = (("image to text", "i2t"), ("text to image", "t2i"))


def evaluate(
    images: EmbeddingSets,
    texts: EmbeddingSets,
    data: ImageTextData,
    config: Config,
    learned: Mapping[str, Tensor],
) -> dict[str, float]:
    """R@K both ways, RSUM and log Var of a split, against all fitting pairs if they are known.

    `learned` are the similarity's parameters that the model holds. Sets of one element have no
    variance, and then no log Var.
    """
    figures = evaluate_sets(
        images,
        texts,
        data.image_of_caption,
        relevance=data.relevance,
        impl=config.train.impl,
        device=choose_device(config.train.device),
        **similarity_options(config.loss)
        | {name: float(p.detach()) for name, p in learned.items()},
    )
    spread = {"log_var_images": log_variance(images), "log_var_texts": log_variance(texts)}
    figures |= {name: value for name, value in spread.items() if isfinite(value)}
    return {name: round(value, 4) for name, value in figures.items()}


def summary(
    epoch: int,
    averages: dict[str, float],
    figures: dict[str, float],
    best: bool,
    seconds: float,
    left: float,
) -> str:
    """Show a validation in one line; * marks the best so far; time of the epoch, and time left."""
    i2t, t2i = (
        "/".join(f"{figures[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
    )
    state = f"loss {averages['loss']:.4f}" if epoch else "untrained  "
    return (
        f"epoch {epoch:3d}  {state}  val i2t {i2t}  t2i {t2i}  "
        f"RSUM {figures['rsum']:.1f}{' *' if best else '  '}  {seconds:.0f} s"
        + (f", {duration(left)} left" if epoch and left else "")
    )


def duration(seconds: float) -> str:
    """Write a time as 2 h 05 min, 4 min or 12 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def table(figures: dict[str, float], data: ImageTextData) -> str:
    """Test figures as text."""
    truth = "all fitting pairs" if data.relevance is not None else "the source pairs"
    lines = [
        f"{data.name}/{data.split}: {len(data)} pictures, {len(data.captions)} captions, "
        f"against {truth}",
        f"{'':15}{'R@1':>7}{'R@5':>7}{'R@10':>7}",
    ]
    for title, way in ROWS:
        lines.append(f"{title:15}" + "".join(f"{figures[f'{way}_r{k}']:7.1f}" for k in (1, 5, 10)))
    lines.append(f"RSUM {figures['rsum']:.1f}")
    if "log_var_images" in figures and "log_var_texts" in figures:
        lines[-1] += (
            f"   log Var {figures['log_var_images']:.2f} (pictures) "
            f"{figures['log_var_texts']:.2f} (captions)"
        )
    return "\n".join(lines)


def gallery_columns(data: ImageTextData) -> dict[str, list[str]]:
    """What a gallery of a split's pictures tells of each: its captions, and its file if any."""
    columns = {"caption": [" | ".join(data.captions_of(i)) for i in range(len(data))]}
    if data.image_paths is not None:
        columns["path"] = [str(path.resolve()) for path in data.image_paths]
    return columns
