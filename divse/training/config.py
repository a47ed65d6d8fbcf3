"""Settings of a run: dataclasses by section, read from small TOML or JSON files, checked.

Later sources win: defaults < preset < --config FILE < command line (command_line.py).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from divse.models.config import TwoTowerConfig, check_type, field_types, setting

PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class DataConfig:
    """Pictures and captions: `--data.*`."""

    name: str = setting("scenes", "which data set")
    path: str = setting("", "its folder or captions file")
    options: dict[str, Any] = setting({}, "further options of the data set, as name=value ...")
    augment: list[str] = setting([], "random changes of the training pictures")
    equal_captions: bool = setting(
        False, "a caption also fits pictures that have one equal word for word"
    )
    word_drop: float = setting(0.0, "gru: probability that a word is masked, replaced or deleted")
    region_drop: float = setting(0.0, "probability that a region is left out while training")
    min_count: int = setting(1, "gru: words seen fewer times become unknown words")
    cache: str = setting("", "folder of the frozen encoders' features (empty: inside the run)")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: `--loss.*`."""

    name: str = setting("triplet", "loss on the similarity matrix of a batch")
    similarity: str = setting("smooth_chamfer", "similarity of two sets")
    alpha: float = setting(16.0, "sharpness of smooth_chamfer")
    log_mean: bool = setting(False, "smooth_chamfer: log of a mean, not of a sum")
    margin: float = setting(0.2, "triplet: by how much a positive must lead the hardest negative")
    temperature: float = setting(0.05, "info_nce: scores are divided by it")
    warmup_epochs: int = setting(0, "first epochs, trained with info_nce instead")
    mmd: float = setting(0.01, "weight of the maximum mean discrepancy of the two modalities")
    diversity: float = setting(0.01, "weight of the diversity of a set's elements")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: `--optim.*`."""

    lr: float = setting(1e-3, "peak learning rate of heads and projections")
    image_scale: float = setting(1.0, "learning rate of the image encoder, as a multiple of lr")
    text_scale: float = setting(1.0, "learning rate of the text encoder, as a multiple of lr")
    frozen_epochs: int = setting(0, "first epochs, in which the encoders' backbones stay fixed")
    weight_decay: float = setting(1e-4, "decay of weights; biases, norms and slots have none")
    schedule: str = setting("cosine", "of the learning rate", ("cosine", "step", "constant"))
    step_epochs: int = setting(20, "step: epochs between two steps")
    gamma: float = setting(0.1, "step: factor of each step")
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up of the learning rate")
    beta2: float = setting(0.999, "decay of AdamW's second moment")
    clip: float = setting(1.0, "largest norm of the gradient (0: no clipping)")
    ema: float = setting(0.0, "decay of an average of the weights that is validated (0: none)")


@dataclass(frozen=True)
class TrainConfig:
    """The run: `--train.*`."""

    epochs: int = setting(20, "passes over the training pictures")
    batch_size: int = setting(100, "pictures in a batch, each with all its captions")
    out: str = setting("", "run folder (empty: runs/<data>-<time>)")
    seed: int = setting(0, "of weights, order, dropout and augmentation")
    impl: str = setting(
        "auto", "what computes the similarities", ("auto", "reference", "native", "triton")
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1 ...")
    precision: str = setting("fp32", "of the model's forward pass", ("fp32", "bf16"))
    sub_batch: int = setting(
        0, "pictures that pass the model at a time, by gradient caching (0: the whole batch)"
    )
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    compile: str = setting("", "torch.compile backend of backbones and heads, such as inductor")
    sync_batchnorm: bool = setting(
        False, "batch norms take the statistics of all processes (CUDA devices only)"
    )
    deterministic: bool = setting(True, "kernels that repeat bit for bit; false: the fastest")
    threads: int = setting(0, "CPU threads of torch (0: its own choice)")
    checkpoint_steps: int = setting(0, "steps between checkpoints (0: one after every epoch)")
    tensorboard: bool = setting(False, "also write a TensorBoard log into the run folder")
    gallery: bool = setting(True, "build a gallery of the test pictures at the end")


@dataclass(frozen=True)
class Config(TwoTowerConfig):
    """All settings of a run, one attribute per section."""

    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def of(cls, *sources: Mapping[str, Mapping[str, Any]]) -> Config:
        """Build a config of nested mappings {section: {setting: value}}; later ones win."""
        config = cls()
        for source in sources:
            config = config.updated(source)
        return config

    def updated(self, values: Mapping[str, Mapping[str, Any]]) -> Config:
        """Return a copy with some settings replaced; refuse names and types that do not fit."""
        sections = {}
        for section, settings in values.items():
            if section not in SECTIONS:
                raise ValueError(unknown("section", section, SECTIONS))
            if not isinstance(settings, Mapping):
                raise ValueError(f"{section} is a section: write its settings below [{section}]")
            old, types = getattr(self, section), setting_types(section)
            if settings.get("encoder", old_encoder := getattr(old, "encoder", None)) != old_encoder:
                old = type(old)()  # the settings of one encoder mean nothing to another
            new = dict(settings)
            for name, value in settings.items():
                if name not in types:
                    names = [f"{section}.{known}" for known in types]
                    raise ValueError(unknown("setting", f"{section}.{name}", names))
                check_type(f"{section}.{name}", value, types[name])
                if isinstance(value, dict):
                    new[name] = getattr(old, name) | value
            sections[section] = replace(old, **new)
        return replace(self, **sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return nested plain dicts, ready for JSON."""
        return asdict(self)


SECTIONS = ("data", "image", "text", "model", "loss", "optim", "train")


def setting_types(section: str) -> dict[str, Any]:
    """Map the settings of a section to their types."""
    return field_types(get_type_hints(Config)[section])


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest valid one."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    hint = f"did you mean {near[0]}?" if near else f"known: {some}"
    return f"unknown {kind} {name}; {hint}"


def read_file(path: str | Path) -> dict[str, Any]:
    """Read settings from a .toml or .json file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no settings file at {path}")
    text = path.read_text(encoding="utf-8")
    try:
        loaded: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return loaded


def find_weights(config: Config) -> Config:
    """Fill in weights of a frozen image encoder that lie in or beside the data, if not given."""
    if not config.image.frozen or config.image.weights or not config.data.path:
        return config
    data = Path(config.data.path)
    for folder in (data / "weights", data.parent / "weights"):
        file = folder / f"{config.image.name}.safetensors"
        if file.is_file():
            return replace(config, image=replace(config.image, weights=str(file)))
    return config


def presets() -> dict[str, Path]:
    """Map the names of the presets to their files."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def read_preset(name: str) -> dict[str, Any]:
    """Read a preset by name."""
    if name not in presets():
        raise ValueError(unknown("preset", name, presets()))
    return read_file(presets()[name])
