"""Text encoders: token ids (B, L) with lengths (B,) -> local features (B, N, C)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from divse.models.config import TextConfig
from divse.models.features import Encoder, Features, Local, PooledEncoder
from divse.models.pretrained import model_folder, not_there, transformers_model
from divse.models.slot_attention import length_mask


class BiGRU(Encoder):
    """Word embeddings and a bidirectional GRU.

    The head attends to the word embeddings (the paper) or to the GRU's states; the global feature
    is the mean of the two final states. Token 0 is padding.

    Args:
        config: Widths and what the head attends to.
        vocabulary: Number of words.

    """

    shape = ()

    def __init__(self, config: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, config.word_dim, padding_idx=0)
        self.gru = nn.GRU(config.word_dim, config.hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(config.word_dropout)
        self.states = config.inputs == "states"
        self.input_dim = 2 * config.hidden if self.states else config.word_dim
        self.pooled_groups = (config.hidden,)

    def local(self, tokens: Tensor, lengths: Tensor) -> Local:
        """Tokens (B, L) -> word embeddings (B, L, word_dim)."""
        return Local(self.words(tokens), lengths)

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Run the GRU; padded words are never read."""
        words, lengths = self.dropout(local.values), local.lengths
        assert lengths is not None
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, final = self.gru(packed)  # final (2, B, hidden)
        inputs = words
        if self.states:
            inputs, _ = pad_packed_sequence(states, batch_first=True, total_length=words.shape[1])
        return Features(inputs, final.mean(dim=0))


class TransformerTokens(PooledEncoder):
    """Last hidden states of a transformers encoder, which carry their positions.

    Args:
        backbone: A model with `last_hidden_state`, e.g. BERT, MiniLM or the text tower of CLIP.
        pool: Parts of the global feature, names in POOLS.
        config: The configuration that rebuilds the backbone.

    """

    def __init__(self, backbone: nn.Module, pool: Sequence[str], config: Any) -> None:
        own: Any = backbone.config
        super().__init__(int(own.hidden_size), pool)
        self.backbone, self.config = backbone, config

    def local(self, tokens: Tensor, lengths: Tensor) -> Local:
        """Token ids (B, L) -> hidden states (B, L, C)."""
        mask = length_mask(lengths, tokens.shape[1])
        output = self.backbone(input_ids=tokens, attention_mask=mask)
        return Local(output.last_hidden_state, lengths)


class SubwordTokenizer:
    """A transformers tokenizer with the interface of a vocabulary: captions -> (ids, lengths)."""

    def __init__(self, path: str, max_length: int) -> None:
        from transformers import AutoTokenizer

        folder = model_folder(path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except OSError as error:
            command = f"hf download {folder} --local-dir FOLDER"
            raise not_there("text.path", path, command, error) from None
        self.max_length = max_length

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids (B, L) right-padded, lengths (B,)."""
        rows = self.tokenizer(list(captions), truncation=True, max_length=self.max_length)
        ids = [torch.tensor(row) for row in rows["input_ids"]]
        lengths = torch.tensor([len(row) for row in ids])
        return nn.utils.rnn.pad_sequence(ids, batch_first=True), lengths

    @property
    def words(self) -> list[str]:
        """All tokens, in the order of their ids."""
        ids: dict[str, int] = self.tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    @property
    def rules(self) -> str:
        """How captions become tokens, beyond the list of tokens; JSON, fit for a fingerprint."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = (
            json.loads(backend.to_str()) if backend else {"class": type(self.tokenizer).__name__}
        )
        for state in ("truncation", "padding", "model"):  # of the last call; the model is `words`
            rules.pop(state, None)
        return json.dumps(rules, sort_keys=True)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""
        self.tokenizer.save_pretrained(folder)


def transformer(config: TextConfig, vocabulary: int, pretrained: bool = True) -> TransformerTokens:
    """Read a transformers encoder, with its weights or only its shape."""
    backbone, shape = transformers_model(config.path, "text_model", pretrained, "text.path")
    return TransformerTokens(backbone, config.pool, shape)


def gru(config: TextConfig, vocabulary: int, pretrained: bool = True) -> BiGRU:
    """Build a Bi-GRU; it starts from random weights either way."""
    if vocabulary < 2:
        raise ValueError("text.encoder gru needs a vocabulary: build one from the captions")
    return BiGRU(config, vocabulary)


# name -> factory(config, vocabulary size, pretrained): with pretrained=False only the shape
TEXT_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "gru": gru,
    "transformer": transformer,
}
