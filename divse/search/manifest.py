"""The manifest of a gallery: which segments it has, and what each of their files must be.

`manifest.json` is the only mutable file of a gallery and is replaced in one step. It names every
segment and, for each file of it, the size and the checksum; what it does not name does not exist.
A reader refuses a newer `version` and any name in `requires` that it does not know, so features
that change what a gallery means (removed sets) cannot be overlooked by an older reader, while files
that only speed things up may be added to a segment's table freely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from divse.search.durable import checksum_bytes, replace_file
from divse.search.index_spec import is_sketch

FORMAT = "divse-gallery"
VERSION = 1
REMOVED = "removed"  # some segment has removed sets
KNOWN_FEATURES = frozenset({REMOVED})
FILE_NAME = "manifest.json"
TUNED = "tuned.json"  # measurements beside the gallery, which the manifest does not name
DTYPES = ("float16", "float32")
LAYOUTS = ("uniform", "ragged")
ID_TYPES = ("int64", "string")
# Names come from a file that anybody may have written: they must not lead out of the folder.
SEGMENT_NAME = re.compile(r"segment-[0-9a-f]{6}-[0-9a-f]{8}")
INDEX_NAME = re.compile(r"index-[0-9a-f]{8}")
MEMBER_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")


class GalleryError(ValueError):
    """A gallery folder that cannot be used as it is: damaged, foreign, newer, or not whole."""


@dataclass(frozen=True)
class FileEntry:
    """Size and BLAKE2b-256 of one file of a segment."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class Removed:
    """Sets of a segment that are no longer in the gallery: `file` is a bitmap over its sets."""

    file: str
    sets: int
    elements: int


@dataclass(frozen=True)
class SegmentEntry:
    """One segment as written: `sets` sets with `elements` elements in all, at most `k` in one."""

    name: str
    sets: int
    elements: int
    k: int
    files: dict[str, FileEntry]
    removed: Removed | None = None

    @property
    def live_sets(self) -> int:
        """Sets that are still in the gallery."""
        return self.sets - (self.removed.sets if self.removed else 0)

    @property
    def live_elements(self) -> int:
        """Elements of these sets."""
        return self.elements - (self.removed.elements if self.removed else 0)

    def with_file(self, name: str, file: FileEntry) -> SegmentEntry:
        """Return the entry with one more file."""
        return replace(self, files={**self.files, name: file})

    def without_files(self, *names: str) -> SegmentEntry:
        """Return the entry without some of its files."""
        kept = {name: file for name, file in self.files.items() if name not in names}
        return replace(self, files=kept)


@dataclass(frozen=True)
class IndexEntry:
    """What was trained of the prefilter's index: its folder, specification and files.

    `asked` is the specification that was asked for, from which compaction makes the index anew;
    None where the gallery's size chooses.
    """

    name: str
    spec: str
    files: dict[str, FileEntry]
    asked: str | None

    @property
    def trained(self) -> str:
        """Name of the file without elements."""
        return f"trained.{self._suffix}"

    @property
    def shard(self) -> str:
        """Name of the files that hold the elements of a segment."""
        return f"shard_{self.name.removeprefix('index-')}.{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "npy" if is_sketch(self.spec) else "faiss"


@dataclass(frozen=True)
class Manifest:
    """What a gallery is.

    `next_id` follows the greatest integer id ever given to a row. `codes` says that int8 codes are
    written beside embeddings. `index` is what was trained of the prefilter's index; each segment
    has a shard of it.
    """

    dtype: str
    layout: str
    dim: int
    id_type: str
    columns: dict[str, str]
    segments: tuple[SegmentEntry, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    next_id: int = 0
    generation: int = 0
    requires: tuple[str, ...] = ()
    codes: bool = False
    index: IndexEntry | None = None

    @cached_property
    def sets(self) -> int:
        """Number of sets, N."""
        return sum(segment.live_sets for segment in self.segments)

    @cached_property
    def elements(self) -> int:
        """Number of elements of all sets together."""
        return sum(segment.live_elements for segment in self.segments)

    @cached_property
    def k(self) -> int:
        """Elements in a set (uniform), or in the largest set (ragged)."""
        return max((segment.k for segment in self.segments), default=0)

    @cached_property
    def checksum(self) -> str:
        """Identifies this state of the gallery: every file's checksum goes into it."""
        return checksum_bytes(_canonical(self._content()))

    def after(self, segments: Iterable[SegmentEntry], next_id: int | None = None) -> Manifest:
        """Return the manifest of the state that follows, with these segments."""
        segments = tuple(segments)
        return replace(
            self,
            segments=segments,
            next_id=self.next_id if next_id is None else next_id,
            generation=self.generation + 1,
            requires=(REMOVED,) if any(segment.removed for segment in segments) else (),
        )

    def write(self, folder: Path) -> None:
        """Make this the gallery's state, in one step."""
        content = {**self._content(), "checksum": self.checksum}
        text = json.dumps(content, indent=2)  # ASCII: any name that Python can hold
        replace_file(folder / FILE_NAME, text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of `folder`; GalleryError says what is wrong with it."""
        path = folder / FILE_NAME
        if not folder.exists():
            raise FileNotFoundError(f"no gallery at {folder}: the folder does not exist")
        if path.is_symlink():
            raise GalleryError(f"{path} is a link; a gallery holds plain files only")
        if not path.is_file():
            raise GalleryError(f"{folder} is not a gallery: it has no {FILE_NAME}")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise GalleryError(f"{path} is damaged: not JSON ({error})") from None
        _check_kind(path, content)
        recorded = content.pop("checksum", None)
        try:
            manifest = _parse(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GalleryError(f"{path} is damaged: {type(error).__name__} {error}") from None
        if recorded != checksum_bytes(_canonical(content)):
            raise GalleryError(f"{path} is damaged: its content does not fit its own checksum")
        return manifest

    def _content(self) -> dict[str, Any]:
        totals = {"sets": self.sets, "elements": self.elements, "k": self.k}
        return {"format": FORMAT, "version": VERSION, **totals, **asdict(self)}


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _check_kind(path: Path, content: object) -> None:
    """Refuse what is not a gallery's manifest, or one that only a later divse understands."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise GalleryError(f"{path} is not a divse gallery's manifest (no format {FORMAT!r})")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise GalleryError(f"{path} is damaged: version {version!r}")
    required = content.get("requires")
    unknown = set(map(str, required)) - KNOWN_FEATURES if isinstance(required, list) else set()
    if version > VERSION or unknown:
        what = f"format version {version}" if version > VERSION else f"features {sorted(unknown)}"
        raise GalleryError(
            f"{path.parent} was written by a newer divse ({what}; this one reads version "
            f"{VERSION}): update divse"
        )


def _parse(content: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        dtype=_one_of(content["dtype"], DTYPES),
        layout=_one_of(content["layout"], LAYOUTS),
        dim=_count(content["dim"], least=1),
        id_type=_one_of(content["id_type"], ID_TYPES),
        columns={str(name): str(kind) for name, kind in content["columns"].items()},
        segments=tuple(_parse_segment(segment) for segment in content["segments"]),
        metadata=dict(content["metadata"]),
        next_id=_count(content["next_id"]),
        generation=_count(content["generation"]),
        requires=tuple(content["requires"]),
        codes=content["codes"] is True,
        index=None if content["index"] is None else _parse_index(content["index"]),
    )
    names = {segment.name for segment in manifest.segments}
    if not names or len(names) != len(content["segments"]):
        raise ValueError("there is no segment, or one is named twice")
    if manifest.layout == "uniform" and any(s.k != manifest.k for s in manifest.segments):
        raise ValueError("segments of a uniform gallery differ in K")
    return manifest


def _parse_segment(content: dict[str, Any]) -> SegmentEntry:
    name = content["name"]
    if not SEGMENT_NAME.fullmatch(name):
        raise ValueError(f"segment name {name!r}")
    files = _parse_files(content["files"])
    sets, elements, k = (_count(content[key], least=1) for key in ("sets", "elements", "k"))
    if not sets <= elements <= sets * k:
        raise ValueError(f"segment {name}: {elements} elements in {sets} sets of at most {k}")
    entry = SegmentEntry(name, sets, elements, k, files)
    removed = content.get("removed")
    return entry if removed is None else replace(entry, removed=_parse_removed(entry, removed))


def _parse_files(content: dict[str, Any]) -> dict[str, FileEntry]:
    for name in content:
        if not MEMBER_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r}")
    return {
        name: FileEntry(_count(entry["bytes"]), str(entry["blake2b"]))
        for name, entry in content.items()
    }


def _parse_index(content: dict[str, Any]) -> IndexEntry:
    if not INDEX_NAME.fullmatch(content["name"]):
        raise ValueError(f"index name {content['name']!r}")
    files = _parse_files(content["files"])
    spec, asked = str(content["spec"]), content.get("asked", content["spec"])
    entry = IndexEntry(content["name"], spec, files, None if asked is None else str(asked))
    if entry.trained not in files:
        raise ValueError(f"the index {entry.name} has no {entry.trained}")
    return entry


def _parse_removed(entry: SegmentEntry, content: dict[str, Any]) -> Removed:
    removed = Removed(
        content["file"], *(_count(content[key], least=1) for key in ("sets", "elements"))
    )
    left, elements_left = entry.sets - removed.sets, entry.elements - removed.elements
    if removed.file not in entry.files or not 0 <= left <= elements_left <= left * entry.k:
        raise ValueError(f"segment {entry.name}: removed {removed}")
    return removed


def _count(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= 2**63:
        raise ValueError(f"expected a whole number of at least {least}, found {value!r}")
    return value


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return str(value)
