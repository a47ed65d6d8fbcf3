"""Captions of scenes, kept in parsed form, and the oracle: which scenes does a caption fit?

A caption tells facts about one object ("a large pink star on the left"), about two ("a small cross
and a striped thing") or a relation between two ("a red ring above a plain thing"). It fits every
scene that holds such an object, or two different such objects in that relation. Left, right, above
and below compare the columns and rows of the grid, so they are decided exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from divse.data.scene_objects import FACT, FACTS, LOOKS, Draws, Scenes

Facts = dict[str, int]  # name of a fact -> index of its value in FACTS[name]
RELATIONS = ("and", "left of", "right of", "above", "below")
ROWS = ("at the top", "halfway down", "at the bottom")
COLUMNS = ("on the left", "in the centre", "on the right")
_KNOWN_WORDS = {"a", "an", "thing", *(word for name in LOOKS for word in FACTS[name])}


@dataclass(frozen=True)
class Caption:
    """Facts told about one object, or about two and how the first stands to the second."""

    subject: Facts
    relation: str | None = None
    other: Facts | None = None

    def __str__(self) -> str:
        """Write the caption in English."""
        if self.other is None:
            return _phrase(self.subject)
        return f"{_phrase(self.subject)} {self.relation} {_phrase(self.other)}"


def _phrase(facts: Facts) -> str:
    words = [FACTS[name][facts[name]] for name in LOOKS if name in facts]
    if "shape" not in facts:
        words.append("thing")
    if "row" in facts:
        words.append(ROWS[facts["row"]])
    if "column" in facts:
        words.append(COLUMNS[facts["column"]])
    return " ".join([_article(words[0]), *words])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def parse(text: str) -> Caption:
    """Read a caption back from English: the inverse of str(caption)."""
    words = " ".join(text.lower().split())
    for relation in RELATIONS:
        subject, found, other = words.partition(f" {relation} ")
        if found:
            return Caption(_read(subject, text), relation, _read(other, text))
    return Caption(_read(words, text))


def _read(phrase: str, text: str) -> Facts:
    facts: Facts = {}
    for name, places in (("row", ROWS), ("column", COLUMNS)):
        for value, place in enumerate(places):
            head, found, tail = phrase.partition(f" {place}")
            if found:
                facts[name], phrase = value, head + tail
    for word in phrase.split():
        facts |= {name: FACTS[name].index(word) for name in LOOKS if word in FACTS[name]}
        if word not in _KNOWN_WORDS:
            raise ValueError(
                f"cannot read {word!r} in the scene caption {text!r}: objects are named by "
                f"{', '.join(sorted(_KNOWN_WORDS))}; places are {', '.join(ROWS + COLUMNS)}; "
                f"relations are {', '.join(RELATIONS)}"
            )
    return {name: facts[name] for name in FACTS if name in facts}


def _relations_of(a: NDArray[np.int8], b: NDArray[np.int8]) -> list[str]:
    """Name the relations in which object a (6,) stands to object b (6,)."""
    row, column = FACT["row"], FACT["column"]
    across = "left of" if a[column] < b[column] else "right of" if a[column] > b[column] else ""
    down = "above" if a[row] < b[row] else "below" if a[row] > b[row] else ""
    return [relation for relation in (across, down) if relation]


def draw_caption(objects: NDArray[np.int8], draws: Draws, detail: int) -> Caption:
    """Draw a caption about one scene (M, 6), telling detail - 1 to detail + 1 facts.

    A spatial relation counts as one fact. Three captions in ten are about one object, two name
    two objects, five tell a relation between two.
    """
    present = objects[objects[:, 0] >= 0]
    kind = draws.below(10)
    facts = draws.between(detail - 1, detail + 1)
    if kind < 3:
        thing = present[draws.below(len(present))]
        return Caption(_tell(thing, draws, tuple(FACTS), min(facts, len(FACTS))))
    first, second = (present[i] for i in draws.choose(len(present), 2))
    relation = "and"
    if kind >= 5:
        known = _relations_of(first, second)
        relation = known[draws.below(len(known))]
        facts -= 1
    facts = max(2, min(facts, 2 * len(LOOKS)))
    share = draws.between(max(1, facts - len(LOOKS)), min(len(LOOKS), facts - 1))
    subject = _tell(first, draws, LOOKS, share)
    return Caption(subject, relation, _tell(second, draws, LOOKS, facts - share))


def _tell(thing: NDArray[np.int8], draws: Draws, names: Sequence[str], count: int) -> Facts:
    """Draw which `count` facts of an object are told; one is its colour or its shape."""
    first = ("colour", "shape")[draws.below(2)]
    rest = [name for name in names if name != first]
    told = {first, *(rest[i] for i in draws.choose(len(rest), count - 1))}
    return {name: int(thing[FACT[name]]) for name in FACTS if name in told}


def fitting(scenes: Scenes, captions: Sequence[Caption]) -> NDArray[np.bool_]:
    """Tell for every scene (I, M, 6) and caption whether the caption fits: bool (I, T)."""
    pairs = _related(scenes)
    result = np.empty((len(scenes), len(captions)), dtype=bool)
    for t, caption in enumerate(captions):
        subject = _matches(scenes, caption.subject)  # (I, M)
        if caption.other is None or caption.relation is None:
            result[:, t] = subject.any(axis=1)
            continue
        other = _matches(scenes, caption.other)
        both = subject[:, :, None] & other[:, None, :] & pairs[caption.relation]  # (I, M, M)
        result[:, t] = both.any(axis=(1, 2))
    return result


def _matches(scenes: Scenes, facts: Facts) -> NDArray[np.bool_]:
    """Which objects have all these facts, bool (I, M); an absent object (-1) has none."""
    matches = scenes[:, :, 0] >= 0
    for name, value in facts.items():
        matches = matches & (scenes[:, :, FACT[name]] == value)
    return matches


def _related(scenes: Scenes) -> dict[str, NDArray[np.bool_]]:
    """For each relation, whether object m stands in it to object n: bool (I, M, M)."""
    row, column = (scenes[:, :, FACT[name]] for name in ("row", "column"))
    different = ~np.eye(scenes.shape[1], dtype=bool)[None]
    return {
        "and": np.broadcast_to(different, (len(scenes), *different.shape[1:])),
        "left of": column[:, :, None] < column[:, None, :],
        "right of": column[:, :, None] > column[:, None, :],
        "above": row[:, :, None] < row[:, None, :],
        "below": row[:, :, None] > row[:, None, :],
    }
