"""DivSE: a trained model with everything it needs to embed pictures and captions as sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.data.pictures import Picture, fit
from divse.data.published_vocabulary import published_vocabulary
from divse.data.vocabulary import Vocabulary
from divse.encoder.build import Tokenizer, build_model, load_tokenizer
from divse.encoder.folder import (
    BACKBONES,
    CARD,
    CONFIG,
    FORMAT,
    IMAGE_ENCODER,
    SIDES,
    TEXT_ENCODER,
    WEIGHTS,
    embedding_settings,
    encoder_shape,
    read_config,
    save_image_encoder,
    towers,
)
from divse.encoder.inputs import picture_array, region_array
from divse.models import SetOutput, TwoTower, TwoTowerConfig
from divse.models.hub import download, model_card, upload
from divse.models.published import read_published
from divse.models.text import SubwordTokenizer
from divse.models.weights import (
    fingerprint,
    load_weights,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from divse.sets import EmbeddingSets


class DivSE:
    """Embeds pictures and captions as sets; made by `from_pretrained` or by training.

    Args:
        model: The two towers.
        config: Their settings.
        tokenizer: Captions -> token ids and lengths.
        similarity: Keyword arguments of divse.score that the model was trained with; what the model
            has learned of them is added.

    """

    def __init__(
        self,
        model: TwoTower,
        config: TwoTowerConfig,
        tokenizer: Tokenizer,
        similarity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self._similarity = dict(similarity or {})
        self._backbones_in: Path | None = None  # the folder that holds this model's frozen weights

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", revision: str | None = None
    ) -> DivSE:
        """Load a model folder, e.g. a run of train.py, or OWNER/NAME of the Hugging Face hub."""
        folder = download(folder, CONFIG, revision)
        content = read_config(folder)
        config = towers(content, folder)
        tokenizer = load_tokenizer(config, folder)
        model = build_model(config, tokenizer, content["similarity"], pretrained=False)
        weights, _ = read_tensors(folder / WEIGHTS)
        if (folder / BACKBONES).exists():
            weights |= read_tensors(folder / BACKBONES)[0]
        load_weights(model, weights, folder)
        return cls(model.to(device), config, tokenizer, content["similarity"])

    @classmethod
    def from_published(
        cls,
        checkpoint: str | Path,
        vocabulary: Sequence[str] | None = None,
        heads: int = 0,
        bert: str | Path = "",
    ) -> DivSE:
        """Load a checkpoint of the paper's published code.

        Args:
            checkpoint: `ckpt.pth.tar` or `model_best.pth.tar`.
            vocabulary: Words of its vocabulary file in the order of their ids, as
                divse.data.older_vocabulary.read_words gives them; not for BERT.
            heads: Attention heads, see divse.models.published.read_published.
            bert: Folder with BERT's configuration and tokenizer; empty takes them from the hub.

        """
        published = read_published(checkpoint, heads)
        config, weights = published.config, dict(published.weights)
        if bert:
            config = replace(config, text=replace(config.text, path=str(bert)))
        tokenizer: Tokenizer
        if config.text.encoder == "transformer":
            tokenizer = SubwordTokenizer(config.text.path, config.text.max_length)
        else:
            tokenizer, order = published_vocabulary(vocabulary, published.words)
            words = weights["text.encoder.words.weight"]
            weights["text.encoder.words.weight"] = words[order]
        model = build_model(config, tokenizer, published.similarity, pretrained=False)
        load_weights(model, weights, Path(checkpoint))
        return cls(model, config, tokenizer, published.similarity)

    @property
    def similarity(self) -> dict[str, Any]:
        """Keyword arguments of divse.score, with what the model has learned of them."""
        learned = self.model.similarity_parameters()
        return self._similarity | {name: float(value.detach()) for name, value in learned.items()}

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write a model folder; frozen weights are written the first time only.

        Args:
            folder: Where; made if need be.
            card: Text of the model card, README.md; None writes one from the settings.

        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config
        text_path, name = "", config.image.name
        if isinstance(self.tokenizer, Vocabulary):
            self.tokenizer.save(folder)
        else:
            text_path = TEXT_ENCODER
            self.tokenizer.save(folder / TEXT_ENCODER)
            self.model.text.encoder.config.save_pretrained(folder / TEXT_ENCODER)
        if self.model.image.encoder.config is not None:
            name = IMAGE_ENCODER
            save_image_encoder(self.model.image.encoder, folder / IMAGE_ENCODER)
        config = replace(
            config,
            image=replace(config.image, weights="", name=name),
            text=replace(config.text, path=text_path, vectors=""),
        )
        content = {name: asdict(getattr(config, name)) for name in SIDES}
        write_json(folder / CONFIG, {"format": FORMAT, **content, "similarity": self.similarity})
        frozen, path = self.model.frozen_state(), folder / BACKBONES
        if not frozen:
            path.unlink(missing_ok=True)  # of another model that was saved here before
        elif self._backbones_in != folder:
            write_tensors(path, frozen)
            self._backbones_in = folder
        write_tensors(folder / WEIGHTS, self.model.trained_state())
        write_atomically(folder / CARD, (card or model_card(self.config, self.similarity)).encode())

    def push_to_hub(self, name: str, private: bool = False, card: str | None = None) -> str:
        """Save into OWNER/NAME of the Hugging Face hub and return its address.

        It needs huggingface_hub and that you are logged in (`hf auth login`).
        """
        with TemporaryDirectory() as folder:
            kept, self._backbones_in = self._backbones_in, None
            try:
                self.save_pretrained(folder, card)
            finally:
                self._backbones_in = kept
            return upload(Path(folder), name, private)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what an embedding is; galleries carry it.

        That is all weights, all settings but those of training alone, the tokenizer with its rules,
        and the configurations of transformers encoders.
        """
        settings = [embedding_settings(getattr(self.config, side)) for side in SIDES]
        rules = [self.tokenizer.words, getattr(self.tokenizer, "rules", "")]
        shapes = [encoder_shape(tower.encoder) for tower in (self.model.image, self.model.text)]
        parts = (json.dumps(part, sort_keys=True) for part in (settings, rules, shapes))
        return fingerprint(self.model.state_dict(), *parts)

    def record(self, folder: str | Path) -> dict[str, Any]:
        """What a gallery remembers, in its metadata as "model", of the model that embedded it."""
        return {
            "path": str(Path(folder).resolve()),
            "fingerprint": self.fingerprint,
            "similarity": self.similarity,
        }

    def encode_images(
        self, images: Sequence[str | Path | Picture | Any], batch_size: int = 64
    ) -> EmbeddingSets:
        """Pictures (paths, PIL images or uint8 arrays (H, W, 3)) -> sets (N, K, D), on the CPU.

        For a model that reads regions: arrays (R, C) of features, R from picture to picture.
        """

        def embed(some: Sequence[Any]) -> SetOutput:
            return self.model.images(*self._image_inputs(some))

        return self._encode(images, embed, batch_size, "images")

    @torch.no_grad()
    def attend_images(self, images: Sequence[str | Path | Picture | Any]) -> Tensor:
        """Attention map of each element of a few pictures, taken as by `encode_images`.

        Returns (N, K, rows, columns) of the encoder's grid, or (N, K, R) of regions, which are
        padded with zeros; a map sums to one. A grid lies over the whole picture, or over its centre
        where image.crop_pct is set (divse.data.pictures.fitted_part).
        """
        if isinstance(images, str | Path) or not len(images):
            raise ValueError("images: got no list of pictures; wrap a single one in [ ]")
        self.model.eval()
        maps = self.model.image.attend(*self._image_inputs(images)).cpu()
        shape: Any = self.model.image.encoder.shape
        return maps.reshape(*maps.shape[:2], *(shape or maps.shape[2:]))

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

    def _image_inputs(self, some: Sequence[Any]) -> tuple[Tensor, ...]:
        """What the image tower reads: pixels, or padded regions and their counts."""
        if self.config.image.encoder != "regions":
            size, crop_pct = self.config.image.size, self.config.image.crop_pct
            arrays = [fit(picture_array(image), size, crop_pct) for image in some]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            return (pixels.contiguous().to(self.device),)
        rows = [region_array(features) for features in some]
        counts = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded.to(self.device), counts.to(self.device)

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
