"""The commands of `divse-plot`: figures of trained models and of tables of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from divse.cli.failures import Commands, run

if TYPE_CHECKING:
    from divse.plots import Page

app = typer.Typer(
    name="divse-plot",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of train.py.")]
Runs = Annotated[
    list[Path], typer.Argument(metavar="CSV|RUN...", help="Tables of runs, or run folders.")
]
Out = Annotated[
    Path,
    typer.Option("--out", metavar="NAME", help="NAME.png or NAME.svg; without suffix both."),
]
Formats = Annotated[
    list[str] | None, typer.Option("--format", metavar="png|svg", help="May be repeated.")
]
SplitName = Annotated[str, typer.Option("--split", help="train, val or test.")]
Data = Annotated[str, typer.Option("--data", metavar="PATH", help="Where the data is now.")]
Pictures = Annotated[
    int, typer.Option("--pictures", min=0, help="Only the split's first so many pictures; 0: all.")
]
Indices = Annotated[
    list[int] | None,
    typer.Option("--index", metavar="I", help="Picture of the split; may be repeated."),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="Picture file; may be repeated."),
]
TopK = Annotated[int, typer.Option("--topk", min=1, help="Neighbours of an element.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the pictures drawn, and of the layout.")]
Figure = Annotated[
    str, typer.Option("--figure", metavar="COLUMN", help="Column that is judged by.")
]
Reference = Annotated[
    str, typer.Option("--reference", metavar="CONFIG", help="What the others are compared with.")
]
Panels = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME", help="Only this data set; may be repeated."),
]


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Draw figures that read without explanation, as PNG and SVG."""
    # --traceback is read by `main`, which sees the error.


@app.command()
def attention(
    folder: Run,
    index: Indices = None,
    image: Files = None,
    boxes: Annotated[
        Path | None,
        typer.Option("--boxes", metavar="FILE", help="Boxes of the regions, .npy (R, 4), pixels."),
    ] = None,
    topk: TopK = 3,
    split: SplitName = "test",
    data: Data = "",
    pictures: Pictures = 0,
    seed: Seed = 0,
    out: Out = Path("attention"),
    formats: Formats = None,
) -> None:
    """Where in the picture each element looks, and the captions nearest to it.

    [bold]Examples[/bold]

      divse-plot attention runs/scenes --index 3 --index 8

      divse-plot attention runs/photos --image holiday.jpg --out holiday.svg
    """
    from divse.plots.attention import attention_page
    from divse.plots.questions import ask_pictures, look, name_of_captions
    from divse.plots.trained import TrainedRun

    trained = TrainedRun.open(folder, split, data, pictures)
    asked = ask_pictures(trained, index or [], image or [], topk, seed, default=2)
    looked = look(trained, asked, boxes)
    write(attention_page(looked, trained.data.captions, name_of_captions(trained)), out, formats)


@app.command()
def nearest(
    folder: Run,
    index: Indices = None,
    image: Files = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="WORDS", help="Caption; may be repeated."),
    ] = None,
    topk: TopK = 5,
    split: SplitName = "test",
    data: Data = "",
    pictures: Pictures = 0,
    seed: Seed = 0,
    out: Out = Path("nearest"),
    formats: Formats = None,
) -> None:
    """Nearest captions of each element of pictures, or pictures of each element of captions.

    [bold]Examples[/bold]

      divse-plot nearest runs/scenes --index 3

      divse-plot nearest runs/scenes --text "a red star left of a ring" --topk 4
    """
    from divse.plots.neighbours import captions_page, pictures_page
    from divse.plots.questions import ask_pictures, ask_texts, name_of_captions, name_of_pictures
    from divse.plots.trained import TrainedRun

    if text and (index or image):
        raise ValueError("give --text, or --index and --image: one figure has one kind of question")
    trained = TrainedRun.open(folder, split, data, pictures)
    if text:
        questions, pixels = ask_texts(trained, text, topk)
        page = pictures_page(questions, pixels, name_of_pictures(trained))
    else:
        found = ask_pictures(trained, index or [], image or [], topk, seed, default=3)
        questions = [one.asked for one in found]
        page = captions_page(questions, trained.data.captions, name_of_captions(trained))
    write(page, out, formats)


@app.command()
def space(
    folder: Run,
    method: Annotated[
        str, typer.Option("--method", help="pca, tsne (scikit-learn) or umap (umap-learn).")
    ] = "pca",
    index: Indices = None,
    count: Annotated[
        int, typer.Option("--count", min=1, help="Pictures to draw, if none is named.")
    ] = 4,
    split: SplitName = "test",
    data: Data = "",
    pictures: Pictures = 0,
    seed: Seed = 0,
    out: Out = Path("space"),
    formats: Formats = None,
) -> None:
    """The embedding space in two dimensions, sets drawn as sets.

    [bold]Examples[/bold]

      divse-plot space runs/scenes --method umap

      divse-plot space runs/photos --index 3 --index 8 --method tsne
    """
    from divse.plots.questions import families_of
    from divse.plots.space import check_method, space_page
    from divse.plots.trained import TrainedRun

    check_method(method)
    trained = TrainedRun.open(folder, split, data, pictures)
    families, others = families_of(trained, index or trained.sample(count, seed))
    write(space_page(families, others, method, "elements of other captions", seed), out, formats)


@app.command()
def variance(
    paths: Runs,
    side: Annotated[str, typer.Option("--side", help="Whose sets: images or texts.")] = "images",
    figure: Figure = "rsum",
    reference: Reference = "",
    data: Panels = None,
    out: Out = Path("variance"),
    formats: Formats = None,
) -> None:
    """The spread of the sets, log Var, against RSUM: a point a run.

    [bold]Examples[/bold]

      divse-plot variance bench/results/ablation.csv

      divse-plot variance runs --side texts
    """
    from divse.plots.table import read_runs
    from divse.plots.variance import variance_page

    page = variance_page(read_runs(paths), side, figure, reference, data or ())
    write(page, out, formats)


@app.command()
def supervision(
    paths: Runs,
    data: Annotated[
        str, typer.Option("--data", help="CSV: name of the data set; runs: where the data is now.")
    ] = "",
    pictures: Pictures = 0,
    reference: Reference = "",
    out: Out = Path("supervision"),
    formats: Formats = None,
) -> None:
    """The share of a set's gradient that each element receives, by similarity.

    Of runs it is measured on their test batches, for MIL, MP, Chamfer and Smooth-Chamfer on the
    same sets; several runs count as seeds of one model. A table tells what each model received
    from the similarity that it was trained with.

    [bold]Examples[/bold]

      divse-plot supervision runs/scenes

      divse-plot supervision bench/results/ablation.csv --data scenes
    """
    from divse.plots.supervision import shares_of, supervision_page
    from divse.plots.table import read_runs

    if all(path.is_dir() for path in paths):
        from divse.plots.measured import measured_shares, source_of

        shares, source = measured_shares(paths, data, pictures), source_of(paths)
    else:
        rows = read_runs(paths)
        shares = shares_of(rows, data, reference)
        source = f"{data}: each model by the similarity that it was trained with.".lstrip(": ")
    write(supervision_page(shares, source), out, formats)


@app.command()
def ablation(
    paths: Runs,
    figure: Figure = "rsum",
    reference: Reference = "",
    data: Panels = None,
    out: Out = Path("ablation"),
    formats: Formats = None,
) -> None:
    """Each configuration against the reference, paired over the seeds, with intervals.

    [bold]Examples[/bold]

      divse-plot ablation bench/results/ablation.csv

      divse-plot ablation bench/results/ablation.csv --figure t2i_r1 --out t2i.png
    """
    from divse.plots.ablation import ablation_page
    from divse.plots.table import read_runs

    write(ablation_page(read_runs(paths), figure, reference, data or ()), out, formats)


def write(page: Page, out: Path, formats: list[str] | None) -> None:
    """Write a page and say where."""
    from divse.plots import save

    for path in save(page, out, formats or ()):
        typer.echo(path)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 an error, 2 wrong usage."""
    run(app, arguments)
