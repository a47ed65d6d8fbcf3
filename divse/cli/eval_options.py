"""Options of `divse-eval`, by what they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAMES = ("own", "coco", "coco-1k", "coco-5k", "f30k", "cxc", "eccv", "pmrp", "pmrp-1k")
Files = list[Path] | None
File = Path | None
Words = list[str] | None


def _of(panel: str, name: str, text: str, metavar: str | None = None, *more: str) -> Any:
    return typer.Option(name, *more, help=text, metavar=metavar, rich_help_panel=panel)


_WHAT, _DATA, _TRUTH = "What is measured", "The data", "Ground truth"
_HOW, _SHOWN = "How it is measured", "What is shown"

Runs = Annotated[
    Files, typer.Argument(metavar="[RUN]...", help="Runs of train.py, or model folders.")
]
_ONE_EACH = "The captions', one file for each of those."
_SETS = "Embeddings of pictures: .npy, .npz, .safetensors, .parquet. May be repeated."
ImagesEmbeddings = Annotated[Files, _of(_WHAT, "--images-embeddings", _SETS, "FILE")]
TextsEmbeddings = Annotated[Files, _of(_WHAT, "--texts-embeddings", _ONE_EACH, "FILE")]
ImagesLengths = Annotated[
    File, _of(_WHAT, "--images-lengths", ".npy: elements of each picture's set.", "FILE")
]
TextsLengths = Annotated[
    File, _of(_WHAT, "--texts-lengths", ".npy: elements of each caption's set.", "FILE")
]
ScoresFiles = Annotated[
    Files, _of(_WHAT, "--scores", ".npy, pictures by captions. May be repeated.", "FILE")
]

DataPath = Annotated[File, _of(_DATA, "--data", "Pictures and captions; default: a run's.", "PATH")]
LayoutName = Annotated[str, _of(_DATA, "--layout", "Layout of --data; default: look.", "NAME")]
DataSettings = Annotated[Words, _of(_DATA, "--option", "Of --data; may be repeated.", "NAME=VALUE")]
SplitName = Annotated[str, _of(_DATA, "--split", "train, val or test.", "NAME")]
Owners = Annotated[
    File, _of(_DATA, "--owners", "The picture's position, a caption each; default: 5 each.", "FILE")
]
Karpathy = Annotated[
    File, _of(_DATA, "--karpathy", "dataset_coco.json: owners, COCO's ids.", "FILE")
]
ImageIds = Annotated[
    File, _of(_DATA, "--image-ids", "COCO's ids: .npy, .json, or one a line.", "FILE")
]
CaptionIds = Annotated[File, _of(_DATA, "--caption-ids", "COCO's ids of captions.", "FILE")]

Relevance = Annotated[
    File, _of(_TRUTH, "--relevance", ".npy, bool, pictures by captions: what fits.", "FILE")
]
Cxc = Annotated[
    File, _of(_TRUTH, "--cxc", "CxC's CSV files; default: what eccv-caption has of them.", "DIR")
]
Eccv = Annotated[
    File, _of(_TRUTH, "--eccv", "ECCV Caption's JSON files; default: of eccv-caption.", "DIR")
]
Pmrp = Annotated[
    File, _of(_TRUTH, "--pmrp", "instances_val2014.json, labels.npy, or pm_*.json in it.", "PATH")
]

Protocols = Annotated[
    Words, _of(_HOW, "--protocol", f"{', '.join(NAMES)}. May be repeated; own.", "NAME", "-p")
]
Ensemble = Annotated[bool, _of(_HOW, "--ensemble", "Also the mean of all similarities.")]
Compare = Annotated[bool, _of(_HOW, "--compare", "Test the first against each other one.")]
SimilarityName = Annotated[
    str, _of(_HOW, "--similarity", "Of embeddings; a run knows its own.", "NAME")
]
Alpha = Annotated[float, _of(_HOW, "--alpha", "Of smooth_chamfer, for embeddings.")]
Impl = Annotated[str, _of(_HOW, "--impl", "auto, native, triton or reference.")]
Device = Annotated[str, _of(_HOW, "--device", "auto, cpu, cuda, cuda:1 ...")]
Block = Annotated[int, _of(_HOW, "--block", "Sets of each side scored at a time.")]
Resamples = Annotated[int, _of(_HOW, "--resamples", "Of bootstrap and test; 0 for none.")]
Confidence = Annotated[float, _of(_HOW, "--confidence", "Of the intervals.")]
Seed = Annotated[int, _of(_HOW, "--seed", "Of bootstrap and test.")]

Intervals = Annotated[bool, _of(_SHOWN, "--intervals", "Intervals in the tables too.")]
AsJson = Annotated[bool, _of(_SHOWN, "--json", "Print one JSON object.")]
AsMarkdown = Annotated[bool, _of(_SHOWN, "--markdown", "Print Markdown.")]
Out = Annotated[
    Files, _of(_SHOWN, "--out", "Also write a .json, .md or .txt file. May be repeated.", "FILE")
]
Traceback = Annotated[bool, _of(_SHOWN, "--traceback", "Show where an error came from.")]
