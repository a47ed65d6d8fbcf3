"""Combinations of settings that cannot work, refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields

from divse.data import AUGMENTATIONS, DATASETS
from divse.models import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from divse.similarity import SIMILARITIES
from divse.training.config import SECTIONS, Config, unknown
from divse.training.losses import LOSSES

# settings whose valid values are the keys of a table
TABLES: dict[str, Iterable[str]] = {
    "data.name": DATASETS,
    "data.augment": AUGMENTATIONS,
    "image.encoder": IMAGE_ENCODERS,
    "text.encoder": TEXT_ENCODERS,
    "model.head": HEADS,
    "loss.name": LOSSES,
    "loss.similarity": SIMILARITIES,
}

Rule = tuple[Callable[[Config], bool], str]

IMPOSSIBLE: list[Rule] = [
    (
        lambda c: c.image.encoder == "timm" and not c.image.name,
        "image.encoder timm needs a model name: --image.name tf_efficientnet_lite0",
    ),
    (
        lambda c: c.image.encoder == "transformer" and not c.image.name,
        "image.encoder transformer needs a model: --image.name FOLDER, package:NAME or "
        "hub:OWNER/NAME",
    ),
    (
        lambda c: c.image.encoder in ("cnn", "regions") and bool(c.image.name),
        "image.name belongs to --image.encoder timm or transformer",
    ),
    (
        lambda c: c.image.encoder != "timm" and bool(c.image.weights or c.image.options),
        "image.weights and image.options belong to --image.encoder timm",
    ),
    (
        lambda c: c.image.encoder == "regions" and c.image.crop_pct > 0,
        "image.crop_pct is for pixels: --image.encoder regions reads features",
    ),
    (
        lambda c: c.image.encoder == "regions" and c.image.frozen,
        "image.encoder regions has no backbone to freeze: a detector has run before",
    ),
    (
        lambda c: any(
            side.encoder in ("cnn", "regions", "gru")
            and (side.tuned_blocks >= 0 or side.layer_decay != 1)
            for side in (c.image, c.text)
        ),
        "tuned_blocks and layer_decay are for pretrained backbones of blocks: timm, transformer",
    ),
    (
        lambda c: any(side.frozen and side.tuned_blocks >= 0 for side in (c.image, c.text)),
        "frozen keeps the whole backbone fixed: leave tuned_blocks at -1, or frozen false",
    ),
    (
        lambda c: any(side.center and side.projection != "global" for side in (c.image, c.text)),
        "center fixes statistics of the backbone's feature: it goes with projection global",
    ),
    (
        lambda c: "detail" in c.image.pool and c.image.projection != "global",
        "image.pool detail is the earlier map itself: it goes with image.projection global",
    ),
    (
        lambda c: c.text.encoder == "gru" and c.text.projection.startswith("local"),
        "text.encoder gru has no local features to project: --text.projection global or none",
    ),
    (
        lambda c: (
            c.text.projection == "none" and c.text.encoder == "gru" and c.text.hidden != c.model.dim
        ),
        "text.projection none takes the GRU's state as it is: make text.hidden equal model.dim",
    ),
    (
        lambda c: c.text.encoder != "gru" and bool(c.text.vectors or c.text.word_dropout),
        "text.vectors and text.word_dropout belong to --text.encoder gru",
    ),
    (
        lambda c: c.image.encoder == "cnn" and c.image.frozen,
        "image.encoder cnn starts from random weights: frozen, it would never learn",
    ),
    (
        lambda c: c.image.encoder == "timm" and c.image.frozen and not c.image.weights,
        "a frozen image encoder needs trained weights: --image.weights FILE, or NAME.safetensors "
        "in a folder called weights, in or beside --data",
    ),
    (
        lambda c: c.text.encoder == "transformer" and not c.text.path,
        "text.encoder transformer needs a local model: --text.path FOLDER or package:NAME",
    ),
    (
        lambda c: c.text.encoder != "transformer" and bool(c.text.path),
        "text.path belongs to --text.encoder transformer",
    ),
    (
        lambda c: c.text.encoder == "gru" and c.text.frozen,
        "text.encoder gru starts from random weights: frozen, it would never learn",
    ),
    (
        lambda c: c.text.encoder != "gru" and c.data.word_drop > 0,
        "data.word_drop works on the words of --text.encoder gru",
    ),
    (
        lambda c: c.image.frozen and set(c.data.augment) - {"flip"} != set(),
        "of data.augment only flip works with a frozen image encoder, which sees pictures once",
    ),
    (
        lambda c: c.image.encoder != "timm" and c.image.level >= 0,
        "image.level belongs to --image.encoder timm",
    ),
    (
        lambda c: "detail" in c.image.pool and c.image.level < 0,
        "image.pool detail is the map of --image.level N",
    ),
    (
        lambda c: any(side.center and not side.frozen for side in (c.image, c.text)),
        "center fixes statistics of the features, which only a frozen encoder keeps",
    ),
    (
        lambda c: c.text.encoder == "gru" and c.text.input_dropout > 0,
        "text.input_dropout is for transformers; with gru use --data.word_drop",
    ),
    (
        lambda c: c.data.name != "scenes" and not c.data.path,
        "data that is not generated needs its folder or file: --data PATH",
    ),
    (
        lambda c: c.loss.log_mean and c.loss.similarity != "smooth_chamfer",
        "loss.log_mean belongs to --loss.similarity smooth_chamfer",
    ),
    (
        lambda c: c.train.batch_size < 2,
        "train.batch_size must be at least 2: a batch of one picture has no negatives",
    ),
    (
        lambda c: c.train.sync_batchnorm and bool(c.train.sub_batch),
        "train.sync_batchnorm joins whole parts of a batch: leave train.sub_batch at 0",
    ),
]

# setting -> (smallest, largest) valid value
RANGES: dict[str, tuple[float, float]] = {
    "image.size": (8, 4096),
    "image.crop_pct": (0, 1),
    "image.width": (4, 4096),
    "model.k": (1, 256),
    "model.dim": (1, 1 << 16),
    "model.blocks": (1, 64),
    "model.heads": (1, 256),
    "model.head_dim": (1, 4096),
    "model.dropout": (0, 0.9),
    "data.word_drop": (0, 0.9),
    "data.region_drop": (0, 0.9),
    "loss.alpha": (1e-6, 1000),
    "loss.margin": (0, 4),
    "loss.temperature": (1e-4, 100),
    "image.global_dropout": (0, 0.95),
    "image.input_dropout": (0, 0.95),
    "image.projection_dropout": (0, 0.95),
    "text.projection_dropout": (0, 0.95),
    "text.word_dropout": (0, 0.95),
    "image.layer_decay": (1e-3, 1),
    "text.layer_decay": (1e-3, 1),
    "image.tuned_blocks": (-1, 1 << 10),
    "text.tuned_blocks": (-1, 1 << 10),
    "image.region_dim": (1, 1 << 20),
    "text.global_dropout": (0, 0.95),
    "text.input_dropout": (0, 0.95),
    "optim.beta2": (0, 0.99999),
    "optim.ema": (0, 0.99999),
    "optim.lr": (0, 10),
    "optim.frozen_epochs": (0, 1 << 20),
    "optim.step_epochs": (1, 1 << 20),
    "optim.gamma": (0, 1),
    "optim.clip": (0, float("inf")),
    "train.epochs": (0, 1 << 20),
    "train.sub_batch": (0, 1 << 20),
    "train.seed": (0, (1 << 63) - 1),
    "train.threads": (0, 1 << 12),
    "train.checkpoint_steps": (0, 1 << 40),
    "data.min_count": (1, 1 << 30),
    "text.word_dim": (1, 1 << 16),
    "text.hidden": (1, 1 << 16),
    "text.max_length": (1, 1 << 20),
    "model.feedforward": (1, 64),
    "loss.mmd": (0, 1e6),
    "loss.diversity": (0, 1e6),
    "loss.warmup_epochs": (0, 1 << 20),
    "optim.warmup_epochs": (0, 1 << 20),
    "optim.weight_decay": (0, 1e6),
    "optim.image_scale": (0, 1e6),
    "optim.text_scale": (0, 1e6),
}


def check(config: Config) -> Config:
    """Return the config, or raise ValueError that says what cannot work and what would."""
    for section in SECTIONS:
        for field in fields(getattr(config, section)):
            name = f"{section}.{field.name}"
            check_value(name, getattr(getattr(config, section), field.name), field.metadata)
    for applies, message in IMPOSSIBLE:
        if applies(config):
            raise ValueError(message)
    return config


def check_value(name: str, value: object, metadata: object) -> None:
    """Refuse a value that is not in the setting's table, choices or range."""
    choices = TABLES.get(name) or metadata["choices"]  # type: ignore[index]
    for word in value if isinstance(value, list) else [value]:
        if choices and word not in choices:
            raise ValueError(unknown(f"value of {name}:", str(word), choices))
    low, high = RANGES.get(name, (float("-inf"), float("inf")))
    if isinstance(value, int | float) and not low <= value <= high:
        raise ValueError(f"{name}: got {value}, expected {low:g} to {high:g}")
