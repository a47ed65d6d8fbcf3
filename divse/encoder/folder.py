"""Files of a model folder, and what of its settings decides an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from divse.data.files import read_json
from divse.models import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    HeadConfig,
    ImageConfig,
    TextConfig,
    TwoTowerConfig,
)
from divse.models.config import check_type, field_types
from divse.models.features import Encoder
from divse.models.image import GridEncoder
from divse.models.weights import write_json

CONFIG, WEIGHTS, BACKBONES = "config.json", "model.safetensors", "backbones.safetensors"
TEXT_ENCODER, IMAGE_ENCODER, CARD = "text_encoder", "image_encoder", "README.md"
FORMAT = 1
# of a transformers configuration, what says nothing of what the model computes
ABOUT_FILES = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
)
SECTIONS = {"image": ImageConfig, "text": TextConfig, "model": HeadConfig}
SIDES = tuple(SECTIONS)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder, and say what is missing if it is not one."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no model folder, it has no {name}; "
                "give the run folder of train.py, or what save_pretrained wrote"
            )
    content = read_json(folder / CONFIG)
    missing = {"format", "similarity", *SIDES} - (
        set(content) if isinstance(content, dict) else set()
    )
    if missing:
        raise ValueError(f"{folder / CONFIG} has no {', '.join(sorted(missing))}: is it whole?")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has format {content['format']}, this divse reads {FORMAT}"
        )
    check_types(content, folder / CONFIG)
    return dict(content)


def check_types(content: Mapping[str, Any], path: Path) -> None:
    """Refuse values of a wrong type; names that are not known are refused where they are used."""
    types = {side: field_types(cls) for side, cls in SECTIONS.items()}
    types["similarity"] = {"similarity": str, "alpha": float, "log_mean": bool}
    for section, known in types.items():
        check_type(f"{path}: {section}", content[section], dict)
        for name, value in content[section].items():
            # what a similarity has learned is a number
            expected = known.get(name, float if section == "similarity" else type(value))
            check_type(f"{path}: {section}.{name}", value, expected)


def towers(content: Mapping[str, Any], folder: Path) -> TwoTowerConfig:
    """Settings of the towers, with paths resolved against the model folder."""
    try:
        config = TwoTowerConfig(
            ImageConfig(**content["image"]),
            TextConfig(**content["text"]),
            HeadConfig(**content["model"]),
        )
        IMAGE_ENCODERS[config.image.encoder], TEXT_ENCODERS[config.text.encoder]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / CONFIG} has a setting that this divse does not know ({error}): "
            "was it written by a newer one?"
        ) from None
    if config.text.path:
        config = replace(config, text=replace(config.text, path=str(folder / config.text.path)))
    if config.image.encoder == "transformer":
        config = replace(config, image=replace(config.image, name=str(folder / IMAGE_ENCODER)))
    return config


def embedding_settings(config: Any) -> dict[str, Any]:
    """Settings that a trained model computes with; the name of a folder says nothing of it."""
    kept = (f.name for f in fields(config) if not f.metadata["training_only"])
    values = {name: getattr(config, name) for name in kept}
    if values.get("encoder") == "transformer":
        values.pop("name", None)
    if not values.get("crop_pct", True):  # galleries are older than this setting
        values.pop("crop_pct")
    return values


def encoder_shape(encoder: Encoder) -> dict[str, Any]:
    """Configuration of a transformers encoder, and how its pixels are normalised."""
    shape = {} if encoder.config is None else without(encoder.config.to_diff_dict(), ABOUT_FILES)
    if isinstance(encoder, GridEncoder):
        shape["pixels"] = [encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()]
    return shape


def without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Copy nested mappings without the entries of some names."""
    return {
        name: without(value, names) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in names
    }


def save_image_encoder(encoder: Encoder, folder: Path) -> None:
    """Write the configuration of a transformers image encoder, and how it normalises pixels."""
    encoder.config.save_pretrained(folder)
    mean, std = (getattr(encoder, name).flatten().tolist() for name in ("mean", "std"))
    write_json(folder / "preprocessor_config.json", {"image_mean": mean, "image_std": std})
