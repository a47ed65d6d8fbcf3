"""Which of the known layouts a path holds, and what of each split is there.

A look at a split is the loading itself, so it says exactly what training will find; and the first
and last picture are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from divse.data import (
    butd,
    captions,
    coco_captions,
    huggingface,
    id_mapping,
    karpathy,
    regions,
    webdataset,
)
from divse.data.dataset import SPLITS, ImageTextData
from divse.data.files import MissingFiles

Loader = Callable[..., ImageTextData]


@dataclass(frozen=True)
class Layout:
    """A layout of data: its name in DATASETS, what it is, how it is known and loaded."""

    name: str
    title: str
    recognise: Callable[[Path], bool]
    load: Loader
    regions: bool = False


LAYOUTS = (
    Layout("regions", "precomputed regions (.npy)", regions.recognise, regions.load, True),
    Layout(
        "butd",
        "Bottom-Up Attention regions (.tsv)",
        butd.recognise,
        partial(butd.load, convert=False),
        True,
    ),
    Layout("karpathy", "Karpathy splits and pictures", karpathy.recognise, karpathy.load),
    Layout("id_mapping", "pictures by id_mapping.json", id_mapping.recognise, id_mapping.load),
    Layout("coco_captions", "COCO captions", coco_captions.recognise, coco_captions.load),
    Layout("huggingface", "Hugging Face data set", huggingface.recognise, huggingface.load),
    Layout("webdataset", "WebDataset shards", webdataset.recognise, webdataset.load),
    Layout("captions", "captions file and pictures", captions.recognise, captions.load),
)


@dataclass
class SplitReport:
    """What is there of a split.

    sample: what its first picture is, e.g. "640 x 480 pixels"
    missing: the files that are not there, of `needed`
    problem: why it cannot be used; empty if it can
    """

    pictures: int = 0
    captions: int = 0
    sample: str = ""
    missing: list[str] = field(default_factory=list)
    needed: int = 0
    problem: str = ""


@dataclass
class Report:
    """What is there of a layout; `usable` if train.py can run on it."""

    layout: str
    title: str
    regions: bool
    name: str = ""
    splits: dict[str, SplitReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether every split can be used."""
        return all(not split.problem for split in self.splits.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "usable": self.usable}


def find_layouts(path: Path) -> list[Layout]:
    """Layouts that a path holds, the likeliest first."""
    if not path.exists():
        raise FileNotFoundError(f"no file or folder at {path}")
    return [layout for layout in LAYOUTS if layout.recognise(path)]


def look(layout: Layout, path: Path, options: Mapping[str, Any]) -> Report:
    """Load every split and say what is there."""
    report = Report(layout.name, layout.title, layout.regions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded: dict[str, ImageTextData] = {}
        for split in SPLITS:
            report.splits[split] = _look_at(layout, split, path, options, loaded)
    report.name = next((data.name for data in loaded.values()), "")
    report.notes = list(dict.fromkeys(str(warning.message) for warning in caught))
    report.notes += in_two_splits({split: data.image_paths for split, data in loaded.items()})
    return report


def in_two_splits(files: Mapping[str, Sequence[Path] | None]) -> Iterator[str]:
    """Say which splits share picture files; ids alone may begin anew in every split."""
    for one, other in combinations(files, 2):
        shared = sorted(set(files[one] or ()) & set(files[other] or ()))
        if shared:
            yield (
                f"{one} and {other} share picture files ({len(shared):,}), e.g. {shared[0]}: leave "
                "each in one split, or results will be better than they are"
            )


def _look_at(
    layout: Layout,
    split: str,
    path: Path,
    options: Mapping[str, Any],
    loaded: dict[str, ImageTextData],
) -> SplitReport:
    try:
        data = loaded[split] = layout.load(split, path=path, **options)
        return SplitReport(len(data), len(data.captions), _sample(data))
    except MissingFiles as error:
        files = [str(file) for file in error.paths]
        return SplitReport(missing=files, needed=error.total, problem=str(error))
    except (ValueError, TypeError, KeyError, OSError) as error:
        return SplitReport(problem=str(error))


def _sample(data: ImageTextData) -> str:
    """Read the first and last picture; say what the first is."""
    last = len(data) - 1
    if data.read_image is not None:
        height, width = data.image(0).shape[:2]
        data.image(last)
        return f"{width} x {height} pixels"
    if data.read_features is not None:
        count, channels = data.features(0).shape
        data.features(last)
        return f"{count} x {channels} features"
    return "features, converted on first use"
