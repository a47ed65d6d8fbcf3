"""Settings of the two-tower model: plain dataclasses, one per command-line section."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

PROJECTION = (
    "what is learned between backbone and head: global (a linear layer on the global feature), "
    "local or local_mlp (fc, or fc + MLP of it, on every local feature; the global feature is "
    "pooled from these), none"
)
PROJECTIONS = ("global", "local", "local_mlp", "none")


def setting(
    default: Any, text: str, choices: tuple[str, ...] = (), training_only: bool = False
) -> Any:
    """Return a dataclass field that carries its help text and, if closed, its valid values.

    `training_only` settings change how weights come about, not what a trained model computes.
    """
    metadata = {"help": text, "choices": choices, "training_only": training_only}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def field_types(settings: type) -> dict[str, Any]:
    """Map the settings of a section's dataclass to their types."""
    hints = get_type_hints(settings)
    return {f.name: hints[f.name] for f in fields(settings)}


def check_type(name: str, value: Any, expected: Any) -> None:
    """Refuse a value of another type than the setting's; whole numbers serve as floats."""
    plain = getattr(expected, "__origin__", expected)
    numeric = plain is float and type(value) is int
    if not (type(value) is plain or numeric):
        raise ValueError(
            f"{name}: got {value!r} ({type(value).__name__}), expected {plain.__name__}"
        )


@dataclass(frozen=True)
class ImageConfig:
    """Image encoder: `--image.*`."""

    encoder: str = setting(
        "cnn",
        "a small CNN trained from scratch, the grid of a timm or transformers backbone, or regions "
        "(features of detected regions, as they are)",
    )
    size: int = setting(64, "pictures become size x size pixels")
    crop_pct: float = setting(
        0.0,
        "the shorter side is resized to size / crop_pct and the centre is cut out, as timm says it "
        "(0: the whole picture is squeezed into the square)",
    )
    width: int = setting(64, "cnn: channels of the grid")
    region_dim: int = setting(2048, "regions: channels of a region's feature")
    name: str = setting(
        "",
        "timm: model name, e.g. tf_efficientnet_lite0; transformer: local folder, package:NAME or "
        "hub:OWNER/NAME",
    )
    weights: str = setting(
        "",
        "timm: local weights file, or hub for those that timm knows under this name (empty: "
        "random; if frozen, looked for in folders called weights in and beside the data)",
        training_only=True,
    )
    options: dict[str, Any] = setting({}, "timm: further arguments of the model, as name=value ...")
    level: int = setting(-1, "timm: an earlier feature map, joined to the grid cell by cell")
    pool: list[str] = setting(
        ["mean"],
        "parts of the global feature: mean and max of the grid, detail (the whole earlier map)",
        ("mean", "max", "detail"),
    )
    projection: str = setting("global", PROJECTION, PROJECTIONS)
    projection_dropout: float = setting(
        0.0, "dropout on the projected local features", training_only=True
    )
    positions: bool = setting(True, "add model.positions to the keys of a grid")
    frozen: bool = setting(
        False, "keep the encoder fixed; its features are computed once", training_only=True
    )
    tuned_blocks: int = setting(
        -1, "last blocks of the backbone that are trained (-1: all)", training_only=True
    )
    layer_decay: float = setting(
        1.0, "learning rate of a backbone's block, as a multiple of the next", training_only=True
    )
    center: bool = setting(False, "frozen: centre and scale the global feature on the train split")
    global_dropout: float = setting(0.0, "dropout on the global feature", training_only=True)
    input_dropout: float = setting(
        0.0, "share of grid cells hidden while training", training_only=True
    )


@dataclass(frozen=True)
class TextConfig:
    """Text encoder: `--text.*`."""

    encoder: str = setting("gru", "a Bi-GRU over words, or a transformers encoder")
    word_dim: int = setting(300, "gru: width of the word embeddings")
    vectors: str = setting(
        "",
        "gru: word vectors to start from, a GloVe or fastText text file as it is (empty: random)",
        training_only=True,
    )
    hidden: int = setting(256, "gru: width of the hidden state, per direction")
    inputs: str = setting(
        "words", "gru: what the head attends to (the paper: words)", ("words", "states")
    )
    path: str = setting(
        "",
        "transformer: local model folder, package:NAME that carries one, or hub:OWNER/NAME",
        training_only=True,
    )
    pool: list[str] = setting(
        ["direction"],
        "transformer: parts of the global feature: direction of the mean, mean, max, first or last "
        "token",
        ("direction", "mean", "max", "first", "last"),
    )
    projection: str = setting("global", PROJECTION, PROJECTIONS)
    projection_dropout: float = setting(
        0.0, "dropout on the projected local features", training_only=True
    )
    frozen: bool = setting(
        False, "keep the encoder fixed; its features are computed once", training_only=True
    )
    tuned_blocks: int = setting(
        -1, "last blocks of the backbone that are trained (-1: all)", training_only=True
    )
    layer_decay: float = setting(
        1.0, "learning rate of a backbone's block, as a multiple of the next", training_only=True
    )
    center: bool = setting(False, "frozen: centre and scale the global feature on the train split")
    word_dropout: float = setting(0.0, "gru: dropout on the word embeddings", training_only=True)
    global_dropout: float = setting(0.0, "dropout on the global feature", training_only=True)
    input_dropout: float = setting(
        0.0, "transformer: share of tokens hidden while training", training_only=True
    )
    max_length: int = setting(48, "captions are cut to this many tokens")


@dataclass(frozen=True)
class HeadConfig:
    """Set-prediction heads of both towers: `--model.*`."""

    head: str = setting("set_prediction", "how a set of embeddings is drawn from the features")
    k: int = setting(4, "elements of an embedding set")
    dim: int = setting(256, "dimensions of an element")
    blocks: int = setting(4, "aggregation blocks (set_prediction, transformer)")
    shared: bool = setting(True, "the blocks share one set of weights")
    heads: int = setting(4, "attention heads")
    head_dim: int = setting(64, "dimensions of an attention head")
    feedforward: int = setting(4, "width of the feed-forward layer, as a multiple of dim")
    dropout: float = setting(0.1, "dropout inside the head", training_only=True)
    gate: float = setting(
        1.0, "weight of the slots beside the global feature at the start", training_only=True
    )
    positions: str = setting(
        "sine",
        "positions, added to attention keys only: none, sine, or spread (sine, from 0 to 2 pi over "
        "the whole input, as in the published code)",
        ("none", "sine", "spread"),
    )


@dataclass(frozen=True)
class TwoTowerConfig:
    """Everything that fixes the shapes of a TwoTower model."""

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: HeadConfig = field(default_factory=HeadConfig)
