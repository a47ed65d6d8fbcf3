"""Tiny random models of the real classes, and the settings that put them into a preset."""

import json
from pathlib import Path

import numpy as np
import tiny
import torch

RESNET = ["layers=[1,1,1,1]", "channels=[8,8,16,16]"]
HEAD = "--model.dim 16 --model.heads 2 --model.head_dim 8"


def write_clip(folder: Path, kind: str = "clip") -> Path:
    """Write both towers of a tiny CLIP or SigLIP, with a tokenizer that knows tiny.CAPTIONS."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    tiny.write_bert(folder)  # its tokenizer; the model is written over
    (folder / "model.safetensors").unlink()
    words = len((folder / "vocab.txt").read_text().split())
    shared = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    texts = {**shared, "vocab_size": words, "max_position_embeddings": 80}
    texts |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    images = {**shared, "image_size": 32, "patch_size": 8}
    shape, model = {
        "clip": (CLIPConfig, CLIPModel),
        "siglip": (SiglipConfig, SiglipModel),
    }[kind]
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    torch.manual_seed(3)
    model(shape(text_config=texts, vision_config=images)).save_pretrained(folder)
    return folder


def write_glove(file: Path, words: str, dim: int = 300) -> Path:
    """Write vectors of some words as GloVe's files have them."""
    rng = np.random.default_rng(0)
    lines = (f"{word} " + " ".join(f"{x:.4f}" for x in rng.random(dim)) for word in words.split())
    file.write_text("\n".join(lines) + "\n")
    return file
