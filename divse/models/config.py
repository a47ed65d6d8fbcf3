"""Settings of the two-tower model: plain dataclasses, one per command-line section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field that carries its help text and, if closed, its valid values."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class ImageConfig:
    """Image encoder: `--image.*`."""

    encoder: str = setting("cnn", "a small CNN trained from scratch, or a timm backbone's grid")
    size: int = setting(64, "pictures are resized to size x size pixels")
    width: int = setting(128, "channels of the cnn's grid")
    name: str = setting("", "timm: model name, e.g. tf_efficientnet_lite0")
    weights: str = setting("", "timm: local weights file (empty: random initialisation)")
    frozen: bool = setting(False, "keep the encoder fixed; its features are computed once")


@dataclass(frozen=True)
class TextConfig:
    """Text encoder: `--text.*`."""

    encoder: str = setting("gru", "a Bi-GRU over words, or a transformers encoder")
    word_dim: int = setting(300, "gru: width of the word embeddings")
    hidden: int = setting(256, "gru: width of the hidden state, per direction")
    inputs: str = setting(
        "words", "gru: what the head attends to (the paper: words)", ("words", "states")
    )
    path: str = setting("", "transformer: local model folder, or package:NAME that carries one")
    frozen: bool = setting(False, "keep the encoder fixed; its features are computed once")
    max_length: int = setting(48, "captions are cut to this many tokens")


@dataclass(frozen=True)
class HeadConfig:
    """Set-prediction heads of both towers: `--model.*`."""

    head: str = setting("set_prediction", "how a set of embeddings is drawn from the features")
    k: int = setting(4, "elements of an embedding set")
    dim: int = setting(256, "dimensions of an element")
    blocks: int = setting(4, "aggregation blocks (set_prediction)")
    shared: bool = setting(True, "the blocks share one set of weights")
    heads: int = setting(4, "attention heads")
    head_dim: int = setting(64, "dimensions of an attention head")
    feedforward: int = setting(4, "width of the feed-forward layer, as a multiple of dim")
    dropout: float = setting(0.1, "dropout inside the head and on the global feature")
    positions: str = setting("sine", "positions added to the attention keys only", ("none", "sine"))


@dataclass(frozen=True)
class TwoTowerConfig:
    """Everything that fixes the shapes of a TwoTower model."""

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: HeadConfig = field(default_factory=HeadConfig)
