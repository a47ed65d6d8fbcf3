"""Building a model and its tokenizer from settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from divse.data.published_vocabulary import load_vocabulary
from divse.data.vocabulary import Vocabulary
from divse.models import TextConfig, TwoTower, TwoTowerConfig
from divse.models.text import SubwordTokenizer
from divse.models.word_vectors import read_word_vectors

Tokenizer = Vocabulary | SubwordTokenizer


def build_model(
    config: TwoTowerConfig,
    tokenizer: Tokenizer,
    similarity: Mapping[str, Any] | None = None,
    pretrained: bool = True,
) -> TwoTower:
    """Make the two towers for a tokenizer, with word vectors from their file if one is set.

    Args:
        config: Shapes and encoders.
        tokenizer: Its words are those that a Bi-GRU embeds.
        similarity: Keyword arguments of divse.score; of a learned similarity, its start.
        pretrained: Read weights and vectors from files; False builds the shape alone.

    """
    name = str((similarity or {}).get("similarity", ""))
    model = TwoTower(config, vocabulary_size(tokenizer), pretrained, name)
    if pretrained and config.text.encoder == "gru" and config.text.vectors:
        vectors = read_word_vectors(config.text.vectors, tokenizer.words, config.text.word_dim)
        encoder: Any = model.text.encoder
        with torch.no_grad():
            encoder.words.weight[vectors.rows] = vectors.values
        print(vectors.report(len(tokenizer.words)))
    return model


def build_tokenizer(config: TextConfig, captions: Sequence[str], min_count: int = 1) -> Tokenizer:
    """Make the tokenizer of a text encoder: its own, or a vocabulary of the training captions."""
    if config.encoder == "transformer":
        return SubwordTokenizer(config.path, config.max_length)
    return Vocabulary.build(captions, min_count, config.max_length)


def load_tokenizer(config: TwoTowerConfig, folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder."""
    if config.text.encoder == "transformer":
        return SubwordTokenizer(config.text.path, config.text.max_length)
    return load_vocabulary(folder)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Words that the model must embed itself; none for a transformers encoder."""
    return len(tokenizer) if isinstance(tokenizer, Vocabulary) else 0
