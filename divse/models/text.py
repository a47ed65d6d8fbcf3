"""Text encoders: token ids (B, L) with lengths (B,) -> local features (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from divse.models.config import TextConfig
from divse.models.features import Encoder, Features, Local
from divse.models.slot_attention import clear_padding, length_mask, sine_positions


class BiGRU(Encoder):
    """Word embeddings and a bidirectional GRU.

    The head attends to the word embeddings (the paper) or to the GRU's states; the global feature
    is the mean of the two final states. Token 0 is padding.

    Args:
        config: Widths and what the head attends to.
        vocabulary: Number of words.

    """

    def __init__(self, config: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, config.word_dim, padding_idx=0)
        self.gru = nn.GRU(config.word_dim, config.hidden, batch_first=True, bidirectional=True)
        self.states = config.inputs == "states"
        self.input_dim = 2 * config.hidden if self.states else config.word_dim
        self.pooled_groups = (config.hidden,)

    def local(self, tokens: Tensor, lengths: Tensor) -> Local:
        """Tokens (B, L) -> word embeddings (B, L, word_dim)."""
        return Local(self.words(tokens), lengths)

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Run the GRU; padded words are never read."""
        words, lengths = local
        assert lengths is not None
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, final = self.gru(packed)  # final (2, B, hidden)
        inputs = words
        if self.states:
            inputs, _ = pad_packed_sequence(states, batch_first=True, total_length=words.shape[1])
        positions = sine_positions(inputs.shape[1], self.input_dim, inputs)
        return Features(inputs, final.mean(dim=0), positions)


class TransformerTokens(Encoder):
    """Last hidden states of a transformers encoder; the global feature is their unit mean.

    Args:
        backbone: A model with `last_hidden_state`, e.g. BERT or MiniLM.

    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        shape: Any = backbone.config
        self.input_dim = int(shape.hidden_size)
        self.pooled_groups = (self.input_dim,)

    def local(self, tokens: Tensor, lengths: Tensor) -> Local:
        """Token ids (B, L) -> hidden states (B, L, C)."""
        mask = length_mask(lengths, tokens.shape[1])
        output = self.backbone(input_ids=tokens, attention_mask=mask)
        return Local(output.last_hidden_state, lengths)

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Hidden states (they carry their positions) and the direction of their mean."""
        inputs = clear_padding(local.values, mask)
        return Features(inputs, F.normalize(inputs.sum(dim=1), dim=1))


class SubwordTokenizer:
    """A transformers tokenizer with the interface of a vocabulary: captions -> (ids, lengths)."""

    def __init__(self, path: str, max_length: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model_folder(path))
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

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""
        self.tokenizer.save_pretrained(folder)


def model_folder(path: str) -> Path:
    """Find the folder that has config.json: `path`, below it, or inside `package:NAME`."""
    root = Path(path)
    if path.startswith("package:"):
        spec = find_spec(path.removeprefix("package:"))
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"text.path: {path} is not installed (pip install it)")
        root = Path(spec.origin).parent
    for folder in (root, root / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"text.path: no config.json in {root} or in its folder 'model'")


def transformer(config: TextConfig, vocabulary: int, pretrained: bool = True) -> TransformerTokens:
    """Read a transformers encoder from a local folder, with its weights or only its shape."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # local weights are read in a moment
    folder = model_folder(config.path)
    if pretrained:
        backbone: Any = AutoModel.from_pretrained(folder, local_files_only=True)
    else:
        backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    return TransformerTokens(backbone)


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
