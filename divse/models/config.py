"""Settings of the two-tower model: plain dataclasses, one per command-line section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field that carries its help text and, if closed, its valid values."""
    metadata = {"help": text, "choices": choices}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ImageConfig:
    """Image encoder: `--image.*`."""

    encoder: str = setting("cnn", "a small CNN trained from scratch, or a timm backbone's grid")
    size: int = setting(64, "pictures are resized to size x size pixels")
    width: int = setting(64, "cnn: channels of the grid")
    name: str = setting("", "timm: model name, e.g. tf_efficientnet_lite0")
    weights: str = setting(
        "",
        "timm: local weights file (empty: random; if frozen, looked for in folders called "
        "weights in and beside the data)",
    )
    level: int = setting(-1, "timm: an earlier feature map, joined to the grid cell by cell")
    pool: list[str] = setting(
        ["mean"],
        "parts of the global feature: mean and max of the grid, detail (the whole earlier map)",
        ("mean", "max", "detail"),
    )
    frozen: bool = setting(False, "keep the encoder fixed; its features are computed once")
    center: bool = setting(False, "frozen: centre and scale the global feature on the train split")
    global_dropout: float = setting(0.0, "dropout on the global feature")
    input_dropout: float = setting(0.0, "share of grid cells hidden while training")


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
    center: bool = setting(False, "frozen: centre and scale the global feature on the train split")
    global_dropout: float = setting(0.0, "dropout on the global feature")
    input_dropout: float = setting(0.0, "transformer: share of tokens hidden while training")
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
    dropout: float = setting(0.1, "dropout inside the head")
    gate: float = setting(1.0, "weight of the slots beside the global feature at the start")
    positions: str = setting("sine", "positions, added to attention keys only", ("none", "sine"))


@dataclass(frozen=True)
class TwoTowerConfig:
    """Everything that fixes the shapes of a TwoTower model."""

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: HeadConfig = field(default_factory=HeadConfig)
