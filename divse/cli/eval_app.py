"""`divse-eval`: figures of models on COCO, Flickr30K, CxC, ECCV Caption, PMRP or one's own data."""

from __future__ import annotations

from typing import NoReturn

import typer

from divse.cli import eval_options as o
from divse.cli.failures import ended_early, run

app = typer.Typer(
    name="divse-eval",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(no_args_is_help=True)
def evaluate(
    runs: o.Runs = None,
    images_embeddings: o.ImagesEmbeddings = None,
    texts_embeddings: o.TextsEmbeddings = None,
    images_lengths: o.ImagesLengths = None,
    texts_lengths: o.TextsLengths = None,
    scores: o.ScoresFiles = None,
    data: o.DataPath = None,
    layout: o.LayoutName = "",
    option: o.DataSettings = None,
    split: o.SplitName = "test",
    owners: o.Owners = None,
    karpathy: o.Karpathy = None,
    image_ids: o.ImageIds = None,
    caption_ids: o.CaptionIds = None,
    relevance: o.Relevance = None,
    cxc: o.Cxc = None,
    eccv: o.Eccv = None,
    pmrp: o.Pmrp = None,
    protocol: o.Protocols = None,
    ensemble: o.Ensemble = False,
    compare: o.Compare = False,
    similarity: o.SimilarityName = "smooth_chamfer",
    alpha: o.Alpha = 16.0,
    impl: o.Impl = "auto",
    device: o.Device = "auto",
    block: o.Block = 1024,
    resamples: o.Resamples = 2000,
    confidence: o.Confidence = 0.95,
    seed: o.Seed = 0,
    intervals: o.Intervals = False,
    as_json: o.AsJson = False,
    as_markdown: o.AsMarkdown = False,
    out: o.Out = None,
    traceback: o.Traceback = False,
) -> None:
    """Measure models: runs of train.py, files of embeddings, or matrices of scores.

    Scores are made tile by tile and never stored. Ties count against a model. Figures are percent.

    [bold]Examples[/bold]

      divse-eval runs/a --protocol coco --protocol eccv

      divse-eval runs/a runs/b --ensemble --compare --out table.md

      divse-eval --scores scores.npy --protocol coco --karpathy dataset_coco.json
    """
    from divse.cli.eval_run import measure_and_show

    asked = locals() | {"runs": runs or []}
    with ended_early("divse-eval"):
        measure_and_show(asked)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes as in divse.cli.failures."""
    run(app, arguments)
