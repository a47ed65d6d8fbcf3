"""The smallest run of train.py that still has every part; shared by several test files."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CAPTIONS = ["a red circle", "a large blue star on the left", "a ring"]

SETTINGS = {
    "data.name": "scenes",
    "data.options": ["pictures=16"],
    "image.width": 8,
    "image.size": 16,
    "text.word_dim": 8,
    "text.hidden": 8,
    "model.k": 2,
    "model.dim": 8,
    "model.blocks": 2,
    "model.heads": 2,
    "model.head_dim": 4,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.epochs": 3,
    "train.device": "cpu",
}


def arguments(**changes: object) -> list[str]:
    """Command line of the tiny run; `model__k=3` changes model.k."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    words: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words


def write_bert(folder: Path) -> Path:
    """Write a tiny random transformers encoder with a tokenizer that knows CAPTIONS."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    shape = BertConfig(
        vocab_size=4 + len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(shape).save_pretrained(folder)
    return folder


def frozen_image(folder: Path) -> dict[str, object]:
    """Write weights of a tiny timm model, and return the settings that freeze it."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "weights.safetensors")
    return {
        "image__encoder": "timm",
        "image__name": "test_resnet",
        "image__weights": folder / "weights.safetensors",
        "image__frozen": True,
        "image__size": 32,
    }


def write_captions(folder: Path, pictures: int = 12) -> Path:
    """Write a folder of pictures with captions.jsonl, as anybody would bring it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(pictures):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
        split = ("train", "train", "val", "test")[i % 4]
        captions = CAPTIONS[: 1 + i % 3]
        rows.append({"id": f"p{i}", "image": f"{i}.png", "captions": captions, "split": split})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(lines)
    return folder
