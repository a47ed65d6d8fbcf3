"""The commands of `divse-search` and their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from divse import __version__

app = typer.Typer(
    name="divse-search",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

GalleryPath = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's folder.")]
Format = Annotated[str, typer.Option("--format", help="table or json.", metavar="table|json")]
ModelPath = Annotated[
    Path | None, typer.Option("--model", help="A trained model: a run of train.py.")
]
EmbeddingsPath = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        metavar="FILE",
        help="Embeddings: .npy (N, K, D), .safetensors or .parquet.",
    ),
]
LengthsPath = Annotated[
    Path | None,
    typer.Option("--lengths", metavar="FILE", help=".npy with the number of elements of each set."),
]


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
    ids: Annotated[
        Path | None,
        typer.Option("--ids", metavar="FILE", help="Ids: .npy, a .json list, or one id a line."),
    ] = None,
    model: ModelPath = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Embed the pictures below DIR.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="Embed each line of FILE.")
    ] = None,
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
    from divse.cli.build import BuildRequest, build_gallery

    given = [
        name
        for name, value in (("embeddings", embeddings), ("images", images), ("texts", texts))
        if value is not None
    ]
    if len(given) != 1:
        _usage("give one of --embeddings FILE, --model RUN --images DIR, --model RUN --texts FILE")
    if (given != ["embeddings"]) != (model is not None):
        _usage("--model goes with --images or --texts, and they with --model")
    if given != ["embeddings"] and (lengths is not None or ids is not None):
        _usage("--ids and --lengths go with --embeddings")
    _one_of("--dtype", dtype, ("float16", "float32"))
    built = build_gallery(
        BuildRequest(
            gallery, embeddings, lengths, ids, model, images, texts, dtype, index, overwrite
        )
    )
    what = f"{len(built):,} sets of {'up to ' if built.ragged else ''}K={built.k}, D={built.dim}"
    typer.echo(f"built {gallery}: {what}, {built.nbytes:,} bytes")


@app.command()
def info(gallery: GalleryPath, format: Format = "table") -> None:
    """Say what a gallery is: sizes, ids, columns, model.

    [bold]Example[/bold]

      divse-search info g --format json
    """
    import json

    from divse.cli.output import print_info
    from divse.search.gallery import Gallery

    _one_of("--format", format, ("table", "json"))
    found = Gallery.open(gallery).info()
    if format == "json":
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        print_info(found, sys.stdout)


@app.command()
def verify(gallery: GalleryPath) -> None:
    """Read every byte of a gallery and check it against the recorded checksums.

    Ends with exit code 1 and the name of the first damaged file, if there is one.

    [bold]Example[/bold]

      divse-search verify g && cp -r g backup/
    """
    from divse.cli.progress import bar
    from divse.search.gallery import Gallery

    opened = Gallery.open(gallery)
    with bar("verify", opened.nbytes, "B") as step:
        opened.verify(step)
    typer.echo(f"whole: {len(opened):,} sets, {opened.nbytes:,} bytes, all checksums fit")


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
        _usage("give one of --embeddings FILE, --text TEXT, --image FILE")
    if embeddings is None and lengths is not None:
        _usage("--lengths goes with --embeddings")
    if embeddings is not None and model is not None:
        _usage("--embeddings need no --model")
    if exact and candidates is not None:
        _usage("--candidates is of the prefilter, --exact does without: give one of them")
    _one_of("--format", format, ("table", "json"))
    _one_of("--impl", impl, ("auto", "native", "triton", "reference"))
    asked = QueryRequest(
        gallery=gallery,
        embeddings=embeddings,
        lengths=lengths,
        model=model,
        texts=text or [],
        images=image or [],
        topk=topk,
        plan="exact" if exact else "prefilter" if candidates else "auto",
        depth=candidates,
        impl=impl,
        similarity=similarity,
        alpha=alpha,
        as_json=format == "json",
        contact_sheet=contact_sheet,
    )
    answer_queries(asked, sys.stdout)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage."""
    try:
        app(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--traceback" in (sys.argv if arguments is None else arguments):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"divse-search: error: {message}", err=True)
        sys.exit(1)
    sys.exit(0)


def _usage(message: str) -> NoReturn:
    typer.echo(f"divse-search: usage: {message} (see --help)", err=True)
    raise typer.Exit(2)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        _usage(f"{option}: got {value!r}, expected {' or '.join(allowed)}")
