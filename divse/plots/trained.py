"""A trained run with the data it was made for: what figures of single elements look at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from divse.data import DATASETS, ImageTextData
from divse.data.dataset import check_split
from divse.data.scene_options import SceneOptions
from divse.encoder import DivSE
from divse.sets import EmbeddingSets
from divse.training.config import Config, read_file
from divse.training.run import SETTINGS, check_options


@dataclass(frozen=True)
class TrainedRun:
    """A model and a split; captions are embedded once, pictures when they are asked for."""

    folder: Path
    encoder: DivSE
    config: Config
    data: ImageTextData

    @classmethod
    def open(cls, folder: Path, split: str = "test", data: str = "", pictures: int = 0) -> Self:
        """Load a run of train.py and a split of its data, or of the same kind of data elsewhere.

        Args:
            folder: Of the run.
            split: train, val or test.
            data: Path of the data; empty takes the one that the run was trained on.
            pictures: Only the first so many, with their captions; 0 takes all.

        """
        config = read_settings(folder)
        if data:
            config = replace(config, data=replace(config.data, path=data))
        encoder = DivSE.from_pretrained(folder)
        return cls(folder, encoder, config, first(load_split(config, split), pictures))

    @cached_property
    def texts(self) -> EmbeddingSets:
        """Sets of all captions of the split."""
        return self.encoder.encode_texts(self.data.captions)

    @property
    def reads_regions(self) -> bool:
        """Whether the model reads features of regions, not pixels."""
        return self.config.image.encoder == "regions"

    def inputs(self, rows: Sequence[int]) -> list[NDArray[Any]]:
        """What the model reads of some pictures: pixels or features of regions."""
        wrong = [row for row in rows if not 0 <= row < len(self.data)]
        if wrong:
            raise ValueError(
                f"picture {wrong[0]}: got no such index, {self.data.name}/{self.data.split} holds "
                f"0 .. {len(self.data) - 1}"
            )
        read = self.data.features if self.reads_regions else self.data.image
        return [read(row) for row in rows]

    def images(self, rows: Sequence[int]) -> EmbeddingSets:
        """Sets of some pictures, read a batch at a time."""
        step = 64
        parts = [
            self.encoder.encode_images(self.inputs(rows[start : start + step])).numpy().values
            for start in range(0, len(rows), step)
        ]
        return EmbeddingSets(np.concatenate(parts))

    def pixels(self, row: int) -> NDArray[np.uint8] | None:
        """The picture as one sees it; None where the data holds features alone."""
        return None if self.data.read_image is None else self.data.image(row)

    def sample(self, count: int, seed: int) -> list[int]:
        """Draw some pictures, in order."""
        return sorted(random.Random(seed).sample(range(len(self.data)), min(count, len(self.data))))

    def fits(self, picture: int, caption: int) -> bool:
        """Whether a caption fits a picture: by the oracle, or because it was written about it."""
        if self.data.relevance is not None:
            return bool(self.data.relevance[picture, caption])
        own = self.data.captions_of(picture)
        return self.data.captions[caption] in own


def read_settings(folder: Path) -> Config:
    """Read the settings of a run folder."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {SETTINGS}: give the folder of a run of train.py"
        )
    return Config.of(read_file(folder / SETTINGS))


def data_name(config: Config) -> str:
    """What to call a run's data: its folder or file, or the world that was generated."""
    if config.data.name == "scenes":
        return SceneOptions.of(**config.data.options).name
    return Path(config.data.path).resolve().stem if config.data.path else config.data.name


def load_split(config: Config, split: str) -> ImageTextData:
    """Load one split of a run's data."""
    check_split(split)
    load = DATASETS[config.data.name]
    check_options(load, config.data.options)
    return load(split, path=config.data.path or None, **config.data.options)


def first(data: ImageTextData, pictures: int) -> ImageTextData:
    """The first pictures of a split with their captions; all if `pictures` is 0."""
    if pictures < 0:
        raise ValueError(f"pictures: got {pictures}, expected how many to take, or 0 for all")
    if not pictures or pictures >= len(data):
        return data
    texts = int(data.caption_offsets[pictures])

    def relevance() -> NDArray[np.bool_]:
        whole = data.relevance
        assert whole is not None, "asked for only where there is an oracle"
        return whole[:pictures, :texts]

    return replace(
        data,
        image_ids=data.image_ids[:pictures],
        captions=data.captions[:texts],
        image_of_caption=data.image_of_caption[:texts],
        image_paths=None if data.image_paths is None else data.image_paths[:pictures],
        oracle=None if data.oracle is None else relevance,
    )
