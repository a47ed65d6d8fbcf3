"""What `divse-eval` measures: runs of train.py, files of embeddings, or matrices of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import numpy as np
import torch

from divse.cli.embedding_files import read_embeddings
from divse.cli.progress import bar
from divse.evaluation import log_variance
from divse.evaluation.protocols import Protocol
from divse.evaluation.scores import MatrixScores, MeanScores, Scores, SetScores
from divse.npy import read_npy
from divse.sets import EmbeddingSets, pad_elements

if TYPE_CHECKING:
    from divse.data import ImageTextData
    from divse.training.config import Config

BATCH = 64  # pictures encoded at a time, where a model folder records no batch size


@dataclass
class Model:
    """A model's scores: i2t (I, T) and, of sets, i2i (I, I) and t2t (T, T); and its log Var."""

    name: str
    scores: dict[str, Scores]
    spread: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_sets(
        cls, name: str, images: EmbeddingSets, texts: EmbeddingSets, options: Mapping[str, Any]
    ) -> Model:
        """Score sets with the keyword arguments of divse.score (similarity, alpha, impl, ...)."""
        sides = {"i2t": (images, texts), "i2i": (images, images), "t2t": (texts, texts)}
        spread = {"images": log_variance(images), "texts": log_variance(texts)}
        return cls(
            name,
            {kind: SetScores(*pair, **options) for kind, pair in sides.items()},
            {side: value for side, value in spread.items() if isfinite(value)},
        )

    def serves(self, protocol: Protocol) -> Protocol:
        """The part of a protocol that these scores can answer."""
        return protocol.without({"i2t", "i2i", "t2t"} - set(self.scores))


def ensemble(models: Sequence[Model]) -> Model:
    """The mean of the models' similarities, made tile by tile."""
    kinds = set.intersection(*(set(model.scores) for model in models))
    name = f"ensemble of {len(models)}"
    return Model(name, {k: MeanScores([m.scores[k] for m in models]) for k in sorted(kinds)})


def of_matrix(file: Path) -> Model:
    """A matrix of scores (I, T) in a .npy file, memory-mapped."""
    matrix = read_npy(file, "r")
    return Model(file.stem, {"i2t": MatrixScores(matrix)})


def of_files(
    images: Path,
    texts: Path,
    lengths: tuple[Path | None, Path | None],
    options: Mapping[str, Any],
) -> Model:
    """Sets of pictures and of captions from two files."""
    first, second = read_sets(images, lengths[0]), read_sets(texts, lengths[1])
    return Model.of_sets(images.parent.name or images.stem, first, second, options)


def read_sets(file: Path, lengths: Path | None = None) -> EmbeddingSets:
    """All sets of a file, normalised."""
    if file.suffix == ".npz":
        return _from_archive(file)
    source = read_embeddings(file, lengths)
    parts = []
    with bar(f"reading {file.name}", source.total) as step:
        for block in source.blocks:
            parts.append(EmbeddingSets.of(block.values, block.lengths))
            step(len(block))
    return EmbeddingSets.cat(parts)


def _from_archive(file: Path) -> EmbeddingSets:
    """Array "embeddings" (or the only one), and maybe "lengths", of an .npz archive."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    if not is_zipfile(file):
        raise ValueError(f"{file} is no .npz archive; a single array is called .npy")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file} is no .npz archive of plain numbers: {error}") from None
    lengths = arrays.pop("lengths", None)
    name = "embeddings" if "embeddings" in arrays else next(iter(arrays), "")
    if name != "embeddings" and len(arrays) != 1:
        raise ValueError(f"{file}: expected an array called embeddings, found {sorted(arrays)}")
    values = arrays[name]
    if values.ndim == 2 and lengths is not None:
        if lengths.ndim != 1 or int(lengths.sum()) != len(values):
            raise ValueError(f"{file}: {len(values)} packed elements do not fit its lengths")
        values = pad_elements(values, lengths)
    elif values.ndim == 2:
        values = values[:, None]
    sets = EmbeddingSets.of(values, lengths)
    return EmbeddingSets.cat([sets])


def of_run(
    folder: Path, data: ImageTextData, impl: str, device: str, config: Config | None
) -> Model:
    """Encode a split with the model of a run, or of another model folder."""
    from divse.encoder import DivSE
    from divse.training.config import Config
    from divse.training.run import cache_folder
    from divse.training.split import Split

    where = usable(device)
    encoder = DivSE.from_pretrained(folder, where)
    sides = {side: getattr(encoder.config, side) for side in ("image", "text", "model")}
    config = replace(config or Config.of({"train": {"batch_size": BATCH}}), **sides)
    cache = cache_folder(config, folder)
    split = Split.prepare(data, encoder.tokenizer, encoder.model, config, cache)
    with bar(f"encoding with {folder.name}", len(data), " pictures") as step:
        images, texts = split.encode(encoder.model, step)
    options = encoder.similarity | {"impl": impl, "device": where}
    return Model.of_sets(folder.name, images, texts, options)


def run_settings(folder: Path) -> Config | None:
    """Settings of a run; None of a model folder that is no run."""
    from divse.training.config import Config, read_file
    from divse.training.run import SETTINGS

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such run or model folder")
    file = folder / SETTINGS
    return Config.of(read_file(file)) if file.is_file() else None


def usable(device: str) -> torch.device:
    """The device of a name, or "auto", if it can be used."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {reason}") from None
    return torch.device(device)
