"""The commands of `divse-search` and their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from divse import __version__
from divse.cli import maintain
from divse.cli.arguments import (
    EmbeddingsPath,
    Format,
    GalleryPath,
    IdsPath,
    ImagesPath,
    LengthsPath,
    ModelPath,
    TextsPath,
    one_of,
    usage,
)
from divse.cli.failures import run

app = typer.Typer(
    name="divse-search",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"divse-search {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Search galleries of embedding sets by Smooth-Chamfer similarity.

    [bold]Examples[/bold]

      divse-search build photos/gallery --model runs/best --images photos

      divse-search query photos/gallery --text "something to drink"
    """
    # --traceback is read by `main`, which sees the error.


@app.command()
def build(
    gallery: GalleryPath,
    embeddings: EmbeddingsPath = None,
    lengths: LengthsPath = None,
    ids: IdsPath = None,
    model: ModelPath = None,
    images: ImagesPath = None,
    texts: TextsPath = None,
    dtype: Annotated[
        str, typer.Option(help="Stored as float16 or float32.", metavar="float16|float32")
    ] = "float16",
    index: Annotated[
        bool | None,
        typer.Option(
            "--index/--no-index", help="Also build the prefilter's index; default: if it is large."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a gallery that is there.")
    ] = False,
) -> None:
    """Build a gallery from embeddings, or from pictures or texts and a model.

    [bold]Examples[/bold]

      divse-search build g --embeddings sets.npy --ids names.txt

      divse-search build g --embeddings packed.npy --lengths lengths.npy --dtype float32

      divse-search build g --model runs/captions --images photos
    """
    from divse.cli.build import SourceRequest, build_gallery

    asked = SourceRequest(embeddings, lengths, ids, model, images, texts)
    if fault := asked.fault(model_recorded=False):
        usage(fault)
    one_of("--dtype", dtype, ("float16", "float32"))
    built = build_gallery(gallery, asked, dtype, index, overwrite)
    what = f"{len(built):,} sets of {'up to ' if built.ragged else ''}K={built.k}, D={built.dim}"
    typer.echo(f"built {gallery}: {what}, {built.nbytes:,} bytes")


@app.command()
def query(
    gallery: GalleryPath,
    embeddings: EmbeddingsPath = None,
    lengths: LengthsPath = None,
    model: ModelPath = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text to search for; may be repeated.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="A picture to search for; may be repeated."),
    ] = None,
    topk: Annotated[int, typer.Option("--topk", min=1, help="Results for each query.")] = 10,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            min=1,
            metavar="M",
            help="Prefilter: rerank the owners of the M elements nearest to each query element.",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every set.")] = False,
    certified: Annotated[
        bool,
        typer.Option("--certified", help="The same answer by int8 codes that rule sets out."),
    ] = False,
    impl: Annotated[
        str,
        typer.Option(metavar="IMPL", help="auto, native, triton or reference."),
    ] = "auto",
    similarity: Annotated[
        str | None,
        typer.Option(help="smooth_chamfer, chamfer, maxsim or mil; default: the model's."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Smoothness of smooth_chamfer; default: the model's, 16.")
    ] = None,
    format: Format = "table",
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="OUT",
            help="Draw what is found into a picture, such as found.png.",
        ),
    ] = None,
) -> None:
    """Find the best sets of a gallery for each query.

    A gallery that was built with a model remembers it: --model may then be left out.

    Each query is answered as soon as possible; in JSON each answer is one line.

    [bold]Examples[/bold]

      divse-search query g --text "a red circle" --text "two stars"

      divse-search query g --text "sad face" --contact-sheet found.png

      divse-search query g --image cat.png --topk 5

      divse-search query g --embeddings queries.npy --exact --format json
    """
    from divse.cli.query import QueryRequest, answer_queries

    if sum(bool(given) for given in (embeddings, text, image)) != 1:
        usage("give one of --embeddings FILE, --text TEXT, --image FILE")
    if embeddings is None and lengths is not None:
        usage("--lengths goes with --embeddings")
    if embeddings is not None and model is not None:
        usage("--embeddings need no --model")
    named = {"exact": exact, "certified": certified, "prefilter": candidates is not None}
    if sum(named.values()) > 1:
        usage("--candidates, --exact and --certified are different plans: give one of them")
    one_of("--format", format, ("table", "json"))
    one_of("--impl", impl, ("auto", "native", "triton", "reference"))
    plan = next((name for name, given in named.items() if given), "auto")
    asked = QueryRequest(
        gallery=gallery,
        embeddings=embeddings,
        lengths=lengths,
        model=model,
        texts=text or [],
        images=image or [],
        topk=topk,
        plan=plan,
        depth=candidates,
        impl=impl,
        similarity=similarity,
        alpha=alpha,
        as_json=format == "json",
        contact_sheet=contact_sheet,
    )
    answer_queries(asked, sys.stdout)


maintain.register(app)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage."""
    run(app, arguments)
