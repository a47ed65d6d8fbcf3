"""Queries as JSON lines, each answered by a JSON line as soon as it is there.

    {"text": "a cat"}  {"image": "a.png"}  {"embedding": [[...], ...]}
    and, if wanted, "id": name of the query, "topk": 5, "where": "year >= 2010"

Lines that have come together are searched together. A bad line gets {"query": ..., "error": ...}
and the others their answers; blank lines are passed over.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from divse.cli.answering import BATCH, Answering
from divse.cli.encoding import model_for
from divse.cli.failures import ERRORS, message
from divse.cli.output import Answer
from divse.sets import EmbeddingSets

if TYPE_CHECKING:
    from divse.encoder import DivSE

KINDS = {"text": str, "image": str, "embedding": list}
OTHERS = {"id": str | int, "topk": int, "where": str}
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One query: its name in the answer, what to search for, and its own options."""

    name: dict[str, Any]
    kind: str
    value: Any
    topk: int | None = None
    where: str | None = None


class LineAnswers:
    """Iterates over the answers to the lines of a file, or of stdin if its name is "-".

    They come in order; `finish` tells if any failed.
    """

    def __init__(self, path: Path, answering: Answering, model: Path | None) -> None:
        if str(path) != "-" and not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of queries")
        self._path, self._answering, self._model_path = path, answering, model
        self._answered = self._failed = 0

    def __iter__(self) -> Iterator[Answer]:
        """Yield an answer for each line."""
        opened: Any = nullcontext(sys.stdin.buffer)
        with opened if str(self._path) == "-" else self._path.open("rb") as stream:
            for lines in arrived(stream):
                for found in self._answers(lines):
                    self._answered += 1
                    self._failed += "error" in found
                    yield found

    def finish(self) -> None:
        """Raise ValueError if a line could not be answered."""
        if self._failed:
            raise ValueError(
                f"{self._failed} of {self._answered} queries failed; each says why in its line"
            )

    def _answers(self, lines: list[tuple[int, bytes]]) -> list[Answer]:
        found: dict[int, Answer] = {}
        groups: dict[Any, list[tuple[int, Line]]] = defaultdict(list)
        for number, content in lines:
            line = parse(number, content)
            if isinstance(line, Line):
                groups[line.kind, line.topk, line.where].append((number, line))
            else:
                found[number] = line
        for numbered in groups.values():
            asked = [line for _, line in numbered]
            outcomes = together(self._search, asked)
            found |= zip((number for number, _ in numbered), outcomes, strict=True)
        return [found[number] for number, _ in lines]

    def _search(self, lines: list[Line]) -> list[Answer]:
        """Search for lines of one kind with the same options."""
        first = lines[0]
        sets = self._sets(first.kind, [line.value for line in lines])
        return self._answering(sets, [line.name for line in lines], first.topk, first.where)

    def _sets(self, kind: str, values: list[Any]) -> EmbeddingSets:
        if kind == "text":
            return self._model.encode_texts(values)
        if kind == "image":
            return self._model.encode_images([Path(value) for value in values])
        return EmbeddingSets.cat(_embedding(value) for value in values).numpy()

    @cached_property
    def _model(self) -> DivSE:
        return model_for(self._answering.gallery, self._model_path)


def arrived(stream: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """Yield whole lines with their numbers from 1, as many as have come, up to BATCH of them."""
    number, begun = 1, []
    while chunk := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *ended, rest = chunk.split(b"\n")
        if not ended:
            begun.append(rest)
            continue
        ended[0], begun = b"".join([*begun, ended[0]]), [rest]
        yield from _numbered(ended, number)
        number += len(ended)
    yield from _numbered([b"".join(begun)], number)


def _numbered(lines: list[bytes], first: int) -> Iterator[list[tuple[int, bytes]]]:
    filled = [(n, line) for n, line in enumerate(lines, first) if line.strip()]
    for start in range(0, len(filled), BATCH):
        yield filled[start : start + BATCH]


def parse(number: int, content: bytes) -> Line | Answer:
    """Read a line; return its error as an answer if it is no query."""
    name: dict[str, Any] = {"line": number}
    try:
        given = json.loads(content)
        if not isinstance(given, dict):
            raise ValueError(f'expected an object such as {{"text": "a cat"}}, got {given!r:.50}')
        if "id" in given:
            name["id"] = given["id"]
        return _line(name, given)
    except (ValueError, TypeError, RecursionError) as error:
        what = "not JSON: " if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else ""
        return {"query": name, "error": what + message(error)}


def _line(name: dict[str, Any], given: dict[str, Any]) -> Line:
    known = KINDS | OTHERS
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        raise ValueError(f"give one of {', '.join(KINDS)}; got {' and '.join(kinds) or 'none'}")
    for key, value in given.items():
        if not isinstance(value, known[key]) or isinstance(value, bool) or value in ("", []):
            wanted = getattr(known[key], "__name__", "str or int")
            raise TypeError(f"{key}: got {value!r:.50}, expected {wanted}, not empty")
    if given.get("topk", 1) < 1:
        raise ValueError(f"topk: got {given['topk']}, expected at least 1")
    (kind,) = kinds
    if kind != "embedding":
        name[kind] = given[kind]
    return Line(name, kind, given[kind], given.get("topk"), given.get("where"))


def _embedding(value: list[Any]) -> EmbeddingSets:
    """One set (1, K, D) of a list of vectors."""
    try:
        array = np.array(value, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"embedding: expected K vectors of D numbers each ({error})") from None
    if array.ndim != 2:
        raise ValueError(f"embedding: got shape {array.shape}, expected K vectors of D numbers")
    return EmbeddingSets.of(array[None])


def together(work: Callable[[list[Line]], list[Answer]], lines: list[Line]) -> list[Answer]:
    """Answer lines together; if that fails, each alone, so that the others get their answers."""
    try:
        return work(lines)
    except ERRORS as error:
        if len(lines) == 1:
            return [{"query": lines[0].name, "error": message(error)}]
    return [together(work, [line])[0] for line in lines]
