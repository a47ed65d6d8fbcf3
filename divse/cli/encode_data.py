"""`divse-data encode`: run the frozen encoders of a training once, and keep what they give."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from divse.cli.check_data import choose
from divse.encoder import build_model, build_tokenizer
from divse.training.command_line import parse
from divse.training.config import Config
from divse.training.losses import similarity_options
from divse.training.run import check_encoders, choose_device, load_splits
from divse.training.split import Split

FOLDER = "features"


def encode_data(path: Path, layout: str, arguments: Sequence[str]) -> None:
    """Encode every split with the frozen encoders that settings of train.py name."""
    settings = [*arguments, "--data", str(path), "--data.name", choose(path, layout)[0].name]
    if "--data.cache" not in arguments:
        folder = path if path.is_dir() else path.parent
        settings += ["--data.cache", str(folder / FOLDER)]
    config, _ = parse(settings)
    if not (config.image.frozen or config.text.frozen):
        raise ValueError(
            "no encoder is frozen, so every training changes its features: "
            "--image.frozen true, --text.frozen true, or a preset that has it"
        )
    check_encoders(config)
    encode_splits(config)
    print(f"features in {config.data.cache}; train with them:")
    print("  " + shlex.join(["python", "train.py", *settings]))


def encode_splits(config: Config) -> None:
    """Write the features of all splits, or find them written."""
    data = load_splits(config)
    tokenizer = build_tokenizer(config.text, data["train"].captions, config.data.min_count)
    model = build_model(config, tokenizer, similarity_options(config.loss))
    model = model.to(choose_device(config.train.device))
    Path(config.data.cache).mkdir(parents=True, exist_ok=True)
    for split in data.values():
        Split.prepare(split, tokenizer, model, config, Path(config.data.cache))
