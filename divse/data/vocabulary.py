"""Vocabulary: words of the training captions <-> token ids, for text towers over whole words.

Call it on captions to get padded ids (B, L) and lengths (B,): the interface of every tokenizer.
A vocabulary of the older code keeps its ids and its manner, so that its checkpoints understand the
captions: punctuation marks are words, n't and 's stand alone, <start> and <end> frame a caption.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from divse.data.older_vocabulary import read_words

PAD, UNKNOWN, START, END, MASK = "<pad>", "<unk>", "<start>", "<end>", "<mask>"
FILE = "vocabulary.json"
# Letters and digits of any script, inner apostrophes and hyphens kept: "t-shirt's" is one word.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Nearly what nltk's word_tokenize, which the older code calls, gives for captions.
_CLITIC = r"(?:s|m|d|re|ve|ll)\b"
_TREEBANK = re.compile(
    rf"\w+?(?=n't\b)|n't\b|'{_CLITIC}|\w+(?:[-/]\w+|[.,:]\d+|'(?!{_CLITIC})\w+)*|\.\.\.|[^\w\s]"
)


def tokenize(caption: str) -> list[str]:
    """Split a caption into lowercase words; punctuation is dropped."""
    return _WORD.findall(caption.lower())


def tokenize_treebank(caption: str) -> list[str]:
    """Split a caption into lowercase words and punctuation marks, as the older code does."""
    return _TREEBANK.findall(caption.lower())


class Vocabulary:
    """Known words and their ids: 0 pads, `unknown` stands for every unknown word.

    words: every word in order of its id, beginning with <pad> and <unk>, or <pad> and <start> in
        vocabularies of the older code
    max_length: captions are cut to this many words
    """

    def __init__(self, words: Sequence[str], max_length: int = 48) -> None:
        if list(words[:2]) not in ([PAD, UNKNOWN], [PAD, START]) or UNKNOWN not in words:
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
        self.unknown = self._ids[UNKNOWN]
        self.mask = self._ids.get(MASK, self.unknown)  # what stands for a word that is hidden
        self._framed = START in self._ids and END in self._ids

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1, max_length: int = 48) -> Vocabulary:
        """Collect the words that occur at least `min_count` times, most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls([PAD, UNKNOWN, *kept], max_length)

    @classmethod
    def of_older_code(cls, path: str | Path, max_length: int = 48) -> Vocabulary:
        """Read a vocabulary of the older code, JSON or pickle, with its ids and its manner."""
        return cls(read_words(path), max_length)

    def __len__(self) -> int:
        """Return the number of ids, <pad> and <unk> included."""
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Turn a caption into ids; one without any word becomes a single <unk>."""
        if self._framed:
            words = tokenize_treebank(caption)[: max(0, self.max_length - 2)]
            words = [START, *words, END]
        else:
            words = tokenize(caption)[: self.max_length]
        return [self._ids.get(word, self.unknown) for word in words] or [self.unknown]

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
