"""Vocabulary: words of the training captions <-> token ids, for text towers over whole words.

Call it on captions to get padded ids (B, L) and lengths (B,): the interface of every tokenizer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

PAD, UNKNOWN, MASK = "<pad>", "<unk>", "<mask>"
FILE = "vocabulary.json"
# Letters and digits of any script, inner apostrophes and hyphens kept: "t-shirt's" is one word.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lowercase words; punctuation is dropped."""
    return _WORD.findall(caption.lower())


class Vocabulary:
    """Known words and their ids: 0 pads, 1 stands for every unknown word.

    words: every word in order of its id, beginning with <pad> and <unk>
    max_length: captions are cut to this many words
    """

    def __init__(self, words: Sequence[str], max_length: int = 48) -> None:
        if list(words[:2]) != [PAD, UNKNOWN]:
            raise ValueError(
                f"a vocabulary begins with {PAD!r} and {UNKNOWN!r}, got {list(words[:2])}"
            )
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.words = list(words)
        self.max_length = max_length
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise ValueError(f"every word must stand once in a vocabulary, {word!r} is {count} x")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1, max_length: int = 48) -> Vocabulary:
        """Collect the words that occur at least `min_count` times, most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls([PAD, UNKNOWN, *kept], max_length)

    def __len__(self) -> int:
        """Return the number of ids, <pad> and <unk> included."""
        return len(self.words)

    @property
    def mask(self) -> int:
        """Id that stands for a word that is hidden: of <mask>, or of <unk> where there is none."""
        return self._ids.get(MASK, self._ids[UNKNOWN])

    def encode(self, caption: str) -> list[int]:
        """Turn a caption into ids; one without any word becomes a single <unk>."""
        words = tokenize(caption)[: self.max_length]
        return [self._ids.get(word, 1) for word in words] or [1]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into words, padding left out."""
        return " ".join(self.words[index] for index in ids if index != 0)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn captions into ids (B, L), padded on the right with 0, and lengths (B,)."""
        return pad([self.encode(caption) for caption in captions])

    def save(self, folder: Path) -> None:
        """Write vocabulary.json into a folder."""
        content = {"max_length": self.max_length, "words": self.words}
        text = json.dumps(content, ensure_ascii=False, indent=0)
        (Path(folder) / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read vocabulary.json from a folder."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {FILE}, the words that its model embeds")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["words"], content["max_length"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a vocabulary that divse wrote: {error!r}") from error


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Stack rows of ids as int64 (B, L), padded on the right with 0, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.zeros(len(rows), int(lengths.max()) if rows else 0, dtype=torch.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, lengths
