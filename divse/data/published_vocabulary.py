"""Captions as the paper's published code reads them: its vocabulary, its words, <start> and <end>.

The code splits captions with nltk's word_tokenize; these rules are those of it that captions meet:
punctuation and clitics ('s, n't) are words of their own, words with inner hyphens, slashes,
apostrophes and points stay whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from divse.data.vocabulary import FILE, MASK, PAD, UNKNOWN, Vocabulary

START, END = "<start>", "<end>"
KIND = "published"
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_WORD = re.compile(r"n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)|\w+(?:[-./'&]\w+)*|\.\.\.|--|[^\w\s]")


def split_words(caption: str) -> list[str]:
    """Split a lowercase caption into words and punctuation."""
    return _WORD.findall(_CLITIC.sub(r" \1", caption.lower()))


class PublishedVocabulary(Vocabulary):
    """A vocabulary of the published code: captions are words and punctuation between two marks."""

    def encode(self, caption: str) -> list[int]:
        """Turn a caption into ids, <start> and <end> around them."""
        words = [START, *split_words(caption)[: self.max_length - 2], END]
        return [self._ids.get(word, 1) for word in words]

    def save(self, folder: Path) -> None:
        """Write vocabulary.json into a folder, saying which kind it is."""
        super().save(folder)
        path = Path(folder) / FILE
        content = {"kind": KIND, **json.loads(path.read_text(encoding="utf-8"))}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read vocabulary.json from a folder, of whichever kind."""
    plain = Vocabulary.load(folder)
    content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    if content.get("kind") != KIND:
        return plain
    return PublishedVocabulary(plain.words, plain.max_length)


def published_vocabulary(
    words: Sequence[str] | None, rows: int
) -> tuple[PublishedVocabulary, list[int]]:
    """Make the vocabulary of a checkpoint -> (vocabulary, old row of each of its words).

    Args:
        words: Words of its vocabulary file, in the order of their ids.
        rows: Words that the checkpoint embeds; the code itself adds <mask> to those of the file.

    """
    if words is None:
        raise ValueError(
            "a checkpoint with a Bi-GRU needs the words of its vocabulary file: "
            "vocabulary=read_words(FILE) of divse.data.older_vocabulary"
        )
    known = [*words, MASK] if MASK not in words and len(words) + 1 == rows else list(words)
    if len(known) != rows:
        raise ValueError(
            f"the checkpoint embeds {rows} words, the vocabulary has {len(known)}: take the file "
            "that it was trained with (coco_butd_vocab.pkl, f30k_butd_vocab.pkl ...)"
        )
    missing = [mark for mark in (PAD, UNKNOWN, START, END) if mark not in known]
    if missing:
        raise ValueError(f"the vocabulary has no {', '.join(missing)}, as the published code's do")
    first = [known.index(PAD), known.index(UNKNOWN)]
    order = first + [row for row in range(rows) if row not in first]
    return PublishedVocabulary([known[row] for row in order], max_length=1 << 20), order
