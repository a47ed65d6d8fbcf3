"""What `divse-eval` knows of the data: whose captions they are, what fits, and COCO's ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divse.cli.embedding_files import read_ids
from divse.data import DATASETS, ImageTextData, karpathy
from divse.evaluation.corpus import PER_PICTURE, Corpus
from divse.evaluation.eccv import coco_test_ids, coco_test_images, package_folder
from divse.npy import read_npy

if TYPE_CHECKING:
    from divse.training.config import Config

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DataOptions:
    """Where the data is and what is said of it on the command line."""

    path: Path | None = None
    layout: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    owners: Path | None = None
    relevance: Path | None = None
    karpathy: Path | None = None
    image_ids: Path | None = None
    caption_ids: Path | None = None


def load_data(given: DataOptions, config: Config | None = None) -> ImageTextData:
    """Load a split: of a path, of generated data, or of the data that a run was trained on."""
    from divse.cli.check_data import choose
    from divse.training.config import unknown
    from divse.training.run import check_options

    name, path, options = given.layout, given.path, dict(given.options)
    if path is not None:
        name = choose(path, given.layout)[0].name
    elif not name:
        if config is None:
            raise ValueError("a model folder that is no run says nothing of data: give --data PATH")
        name, path = config.data.name, Path(config.data.path) if config.data.path else None
        options = config.data.options | options
    if name not in DATASETS:
        raise ValueError(unknown("--layout", name, DATASETS))
    load: Callable[..., ImageTextData] = DATASETS[name]
    check_options(load, options)
    return load(given.split, path=path, **options)


def of_data(data: ImageTextData) -> Corpus:
    """The corpus of a loaded split."""
    return Corpus(
        f"{data.name}/{data.split}", len(data), data.image_of_caption, relevance=data.relevance
    )


def same_data(first: ImageTextData, second: ImageTextData) -> bool:
    """Whether two splits with the same owners are one data set, for models of both to meet on.

    Generated data goes by its name, which tells every dial. Layouts of one data set (pixels, region
    features) may name pictures and write captions each in their way, so most captions must agree.
    """
    if first.oracle is not None or second.oracle is not None:
        return first.name == second.name
    pairs = zip(map(_letters, first.captions), map(_letters, second.captions), strict=True)
    return 2 * sum(a == b for a, b in pairs) > len(first.captions)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def of_shape(shape: tuple[int, int], given: DataOptions) -> Corpus:
    """The corpus of scores (I, T): owners from a file or a Karpathy JSON, or five a picture."""
    images, captions = shape
    if given.owners is not None:
        owner = _whole_numbers(given.owners)
    elif given.karpathy is not None:
        owner = _karpathy(given.karpathy, given.split, captions)[2]
    elif captions == PER_PICTURE * images:
        owner = np.arange(captions) // PER_PICTURE
    else:
        raise ValueError(
            f"there are {images} pictures and {captions} captions, not five each: say whose they "
            "are by --data, --karpathy or --owners FILE (for each caption its picture's position)"
        )
    if owner.shape != (captions,):
        raise ValueError(f"{captions} captions were embedded, {owner.shape[0]} have an owner")
    return Corpus("the data", images, owner)


def with_relevance(corpus: Corpus, given: DataOptions) -> Corpus:
    """The corpus with the fitting pairs of a file, if one is given."""
    if given.relevance is None:
        return corpus
    return replace(corpus, relevance=read_npy(given.relevance))


def with_ids(corpus: Corpus, given: DataOptions, data: ImageTextData | None) -> Corpus:
    """The corpus with COCO's ids: of files, of a Karpathy JSON, or of the usual order."""
    images, captions = (
        None if file is None else _whole_numbers(file)
        for file in (given.image_ids, given.caption_ids)
    )
    file = given.karpathy
    path = given.path
    if file is None and path is not None and karpathy.recognise(path):
        file = path
    if file is not None and (images is None or captions is None):
        known = _karpathy(file, given.split, corpus.captions)
        images = known[0] if images is None else images
        captions = known[1] if captions is None else captions
    if images is None and data is not None:
        images = _numbers(data.image_ids)
    if captions is None and _usual(corpus):
        captions = coco_test_ids()
        usual = coco_test_images(captions)
        if images is not None and not np.array_equal(images, usual):
            raise ValueError(
                f"the pictures of {corpus.name} do not stand in the usual order of COCO's test "
                "split, so its captions' ids are not known: give --karpathy dataset_coco.json, or "
                "--image-ids and --caption-ids"
            )
        images = usual
    return replace(corpus, image_ids=images, caption_ids=captions)


def _whole_numbers(file: Path) -> Array:
    """Positions or COCO's ids of a file, (M,) int64."""
    values = np.asarray(read_ids(file))
    try:
        if values.dtype.kind not in "f":
            return values.astype(np.int64)
    except ValueError:
        pass
    first = values.flat[0] if values.size else "nothing"
    raise ValueError(f"{file}: expected whole numbers, got {values.dtype} such as {first}")


def _usual(corpus: Corpus) -> bool:
    """Whether this may be COCO's test split in its usual order, whose ids a package knows."""
    try:
        package_folder()
    except ImportError:
        return False
    return np.array_equal(corpus.image_of_caption, np.arange(25_000) // PER_PICTURE)


def _numbers(names: Sequence[str]) -> Array | None:
    """Ids as numbers, if all are."""
    if not all(name.isdigit() for name in names):
        return None
    return np.array([int(name) for name in names], np.int64)


def _karpathy(path: Path, split: str, captions: int) -> tuple[Array, Array, Array]:
    """Picture ids, caption ids, and the owner of each caption of a split of a Karpathy JSON.

    All captions of the file, or the first five of each picture, as many as were embedded.
    """
    file = karpathy.find_json(path)
    records = karpathy.read_split(file, split)
    ids = [[s["sentid"] for s in record["sentences"] if s["raw"].strip()] for record in records]
    if sum(map(len, ids)) != captions:
        ids = [some[:PER_PICTURE] for some in ids]
    if sum(map(len, ids)) != captions:
        raise ValueError(
            f"{file} has {sum(map(len, ids))} captions in {split}, five a picture at most; "
            f"{captions} were embedded"
        )
    pictures = [int(karpathy.picture_id(record)) for record in records]
    owner = np.repeat(np.arange(len(ids)), [len(some) for some in ids])
    flat = [index for some in ids for index in some]
    return np.array(pictures, np.int64), np.array(flat, np.int64), owner
