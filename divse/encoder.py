"""DivSE: a trained model with everything it needs to embed pictures and captions as sets.

A model folder stands on its own. It holds config.json, model.safetensors (what training changed),
backbones.safetensors (weights of frozen encoders, if any), and vocabulary.json or text_encoder/
(configuration and tokenizer of a transformers encoder).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.data.pictures import Picture, as_rgb, read_picture, resize
from divse.data.vocabulary import Vocabulary
from divse.models import HeadConfig, ImageConfig, SetOutput, TextConfig, TwoTower, TwoTowerConfig
from divse.models.text import SubwordTokenizer
from divse.models.weights import fingerprint, read_tensors, write_json, write_tensors
from divse.sets import EmbeddingSets

CONFIG, WEIGHTS, BACKBONES = "config.json", "model.safetensors", "backbones.safetensors"
TEXT_ENCODER = "text_encoder"
FORMAT = 1
Tokenizer = Vocabulary | SubwordTokenizer


class DivSE:
    """Embeds pictures and captions as sets; made by `from_pretrained` or by training.

    Args:
        model: The two towers.
        config: Their settings.
        tokenizer: Captions -> token ids and lengths.
        similarity: Keyword arguments of divse.score that the model was trained with.

    """

    def __init__(
        self,
        model: TwoTower,
        config: TwoTowerConfig,
        tokenizer: Tokenizer,
        similarity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.similarity = dict(similarity or {})
        self._backbones_in: Path | None = None  # the folder that holds this model's frozen weights

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> DivSE:
        """Load a model folder, e.g. a run of train.py."""
        folder = Path(folder)
        content = read_config(folder)
        config = towers(content, folder)
        tokenizer = load_tokenizer(config, folder)
        model = TwoTower(config, vocabulary_size(tokenizer), pretrained=False)
        weights, _ = read_tensors(folder / WEIGHTS)
        if (folder / BACKBONES).exists():
            weights |= read_tensors(folder / BACKBONES)[0]
        model.load_state_dict(weights)
        return cls(model.to(device), config, tokenizer, content["similarity"])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder; frozen weights are written the first time only."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config
        if isinstance(self.tokenizer, Vocabulary):
            self.tokenizer.save(folder)
        else:
            self.tokenizer.save(folder / TEXT_ENCODER)
            shape: Any = self.model.text.encoder.get_submodule("backbone").config
            shape.save_pretrained(folder / TEXT_ENCODER)
            config = replace(config, text=replace(config.text, path=TEXT_ENCODER))
        config = replace(config, image=replace(config.image, weights=""))
        content = {name: asdict(getattr(config, name)) for name in ("image", "text", "model")}
        write_json(folder / CONFIG, {"format": FORMAT, **content, "similarity": self.similarity})
        frozen, path = self.model.frozen_state(), folder / BACKBONES
        if not frozen:
            path.unlink(missing_ok=True)  # of another model that was saved here before
        elif self._backbones_in != folder:
            write_tensors(path, frozen)
            self._backbones_in = folder
        write_tensors(folder / WEIGHTS, self.model.trained_state())

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what an embedding is; galleries carry it."""
        shape = json.dumps([asdict(self.config.model), self.config.image.size])
        words = json.dumps(self.tokenizer.words)
        return fingerprint(self.model.state_dict(), shape, words)

    def record(self, folder: str | Path) -> dict[str, Any]:
        """What a gallery remembers, in its metadata as "model", of the model that embedded it."""
        return {
            "path": str(Path(folder).resolve()),
            "fingerprint": self.fingerprint,
            "similarity": dict(self.similarity),
        }

    def encode_images(
        self, images: Sequence[str | Path | Picture | Any], batch_size: int = 64
    ) -> EmbeddingSets:
        """Pictures (paths, PIL images or uint8 arrays (H, W, 3)) -> sets (N, K, D), on the CPU."""

        def embed(some: Sequence[Any]) -> SetOutput:
            arrays = [resize(picture_array(image), self.config.image.size) for image in some]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            return self.model.images(pixels.contiguous().to(self.device))

        return self._encode(images, embed, batch_size, "images")

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> EmbeddingSets:
        """Captions -> sets (N, K, D), on the CPU."""

        def embed(some: Sequence[str]) -> SetOutput:
            wrong = next((text for text in some if not isinstance(text, str)), None)
            if wrong is not None:
                raise TypeError(f"texts: got a {type(wrong).__name__} among them, expected str")
            if not all(text.strip() for text in some):
                raise ValueError("texts: got an empty one, expected words")
            tokens, lengths = self.tokenizer(some)
            return self.model.texts(tokens.to(self.device), lengths.to(self.device))

        return self._encode(texts, embed, batch_size, "texts")

    @torch.no_grad()
    def _encode(
        self,
        items: Sequence[Any],
        embed: Callable[[Sequence[Any]], SetOutput],
        batch_size: int,
        name: str,
    ) -> EmbeddingSets:
        if isinstance(items, str | Path) or not isinstance(items, Sequence | np.ndarray):
            raise TypeError(f"{name}: got {type(items).__name__}, expected a list; wrap it in [ ]")
        if len(items) == 0:
            raise ValueError(f"{name}: got an empty list, nothing to encode")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        self.model.eval()
        starts = range(0, len(items), batch_size)
        sets: list[Tensor] = [embed(items[i : i + batch_size]).sets.cpu() for i in starts]
        return EmbeddingSets(torch.cat(sets))


def picture_array(image: Any) -> Picture:
    """Read a path, PIL image or array as uint8 (H, W, 3)."""
    if isinstance(image, str | Path):
        return read_picture(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"images: got an array {image.dtype} {image.shape}, expected uint8 (H, W, 3)"
            )
        return image
    if hasattr(image, "has_transparency_data"):
        return as_rgb(image)
    raise TypeError(
        f"images: got a {type(image).__name__}, expected a path, a PIL image or a uint8 array"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder, and say what is missing if it is not one."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no model folder, it has no {name}; "
                "give the run folder of train.py, or what save_pretrained wrote"
            )
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has format {content.get('format')}, this divse reads {FORMAT}"
        )
    return content


def towers(content: Mapping[str, Any], folder: Path) -> TwoTowerConfig:
    """Settings of the towers, with paths resolved against the model folder."""
    config = TwoTowerConfig(
        ImageConfig(**content["image"]),
        TextConfig(**content["text"]),
        HeadConfig(**content["model"]),
    )
    if config.text.path:
        config = replace(config, text=replace(config.text, path=str(folder / config.text.path)))
    return config


def build_tokenizer(config: TextConfig, captions: Sequence[str], min_count: int = 1) -> Tokenizer:
    """Make the tokenizer of a text encoder: its own, or a vocabulary of the training captions."""
    if config.encoder == "transformer":
        return SubwordTokenizer(config.path, config.max_length)
    return Vocabulary.build(captions, min_count, config.max_length)


def load_tokenizer(config: TwoTowerConfig, folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder."""
    if config.text.encoder == "transformer":
        return SubwordTokenizer(config.text.path, config.text.max_length)
    return Vocabulary.load(folder)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Words that the model must embed itself; none for a transformers encoder."""
    return len(tokenizer) if isinstance(tokenizer, Vocabulary) else 0
