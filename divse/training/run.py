"""Set-up of a run: folder, settings file, device, seeds, and the splits of the data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import torch

from divse.data import DATASETS, SPLITS, ImageTextData
from divse.models.pretrained import HUB, cached_timm_weights, transformers_config, weights_file
from divse.models.weights import write_json
from divse.models.word_vectors import vectors_file
from divse.similarity import explain
from divse.training import distributed
from divse.training.acceleration import check_acceleration
from divse.training.config import Config, unknown

SETTINGS = "settings.json"


def prepare_run(config: Config, resume: bool = False) -> tuple[Path, torch.device]:
    """Choose the device and the run folder, join the other processes, and seed torch."""
    distributed.claim_device()
    device = choose_device(config.train.device)
    with ends_in_a_sentence():
        check_encoders(config)
        check_impl(config, device)
        check_acceleration(config.train, device)
        distributed.join(device)
    name = f"{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = distributed.shared(Path(config.train.out or Path("runs") / name))
    held = distributed.shared((folder / SETTINGS).exists())
    if held and not resume:
        raise SystemExit(
            f"train.py: {folder} holds a run already; continue it with --resume {folder}, "
            "or give another --out"
        )
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    choose_kernels(config.train.deterministic)
    torch.manual_seed(config.train.seed)
    return folder, device


def open_folder(folder: Path, config: Config, resume: bool = False) -> None:
    """Make the run folder, once nothing that the run needs can be missing any more."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and distributed.rank() == 0:
            write_json(folder / SETTINGS, config.to_dict())
    except OSError as error:
        sys.exit(f"train.py: the run folder {folder} cannot be made: {error.strerror}")


@contextmanager
def ends_in_a_sentence() -> Iterator[None]:
    """End the program with what an error says if settings, files or packages do not fit."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        sys.exit(f"train.py: {error}")


def choose_device(name: str) -> torch.device:
    """Turn a setting into a device, or end the program if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"train.py: --train.device {name} cannot be used: {reason}")
    return torch.device(name)


def choose_kernels(repeatable: bool) -> None:
    """Take kernels that repeat bit for bit, or else the fastest.

    With the first a resumed run equals an uninterrupted one.
    """
    if not repeatable:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # it would also fill new memory with NaN, which costs time and changes nothing here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def check_impl(config: Config, device: torch.device) -> None:
    """Refuse a named implementation that cannot serve such sets."""
    sets = torch.zeros(1, config.model.k, config.model.dim, device=device)
    explain(sets, sets, config.loss.similarity, impl=config.train.impl)


def check_encoders(config: Config, fetch: bool = True) -> None:
    """Refuse encoders whose package, name or files are not there; `fetch`: the hub is asked too."""
    packages = {"timm": "timm", "transformer": "transformers"}
    for encoder in (config.image.encoder, config.text.encoder):
        if encoder in packages and find_spec(packages[encoder]) is None:
            package = packages[encoder]
            raise ImportError(f'encoder {encoder} needs {package}: pip install "divse[train]"')
    if config.image.encoder == "timm":
        import timm

        if not timm.is_model(config.image.name):
            raise ValueError(unknown("image.name", config.image.name, timm.list_models()))
    if config.image.weights:
        weights_file(config.image.weights)
    if config.image.weights == HUB and not fetch:
        cached_timm_weights(config.image.name)
    if config.image.encoder == "transformer":
        transformers_config(config.image.name, "image.name", fetch)
    if config.text.encoder == "transformer":
        transformers_config(config.text.path, "text.path", fetch)
    if config.text.vectors:
        vectors_file(config.text.vectors)


def load_splits(config: Config) -> dict[str, ImageTextData]:
    """Load train, val and test; end the program with a sentence if the data is not there."""
    load, options = DATASETS[config.data.name], config.data.options
    with ends_in_a_sentence():
        check_options(load, options)
        return {split: load(split, path=config.data.path or None, **options) for split in SPLITS}


def check_options(load: Callable[..., ImageTextData], options: Iterable[str]) -> None:
    """Refuse options that a data set does not have, unless it checks them itself."""
    parameters = signature(load).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ValueError(unknown("option of data.name", name, known))


def cache_folder(config: Config, folder: Path) -> Path:
    """Where features of frozen encoders are kept."""
    return Path(config.data.cache or folder / "features")
