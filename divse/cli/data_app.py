"""The commands of `divse-data`: look at data, and encode it once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from divse.cli.failures import Commands, run

app = typer.Typer(
    name="divse-data",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DataPath = Annotated[Path, typer.Argument(metavar="PATH", help="A folder or file of data.")]
LayoutName = Annotated[
    str, typer.Option("--layout", metavar="NAME", help="Take it for this layout; default: look.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Of the data set; may be repeated."),
]


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Say what data is there and what it lacks, and encode it once for frozen encoders."""
    # --traceback is read by `main`, which sees the error.


@app.command()
def check(
    path: DataPath,
    layout: LayoutName = "",
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which layout PATH holds, what each split has and lacks, and what can be run.

    Exit code 0 if train.py can run on it, 1 if not.

    [bold]Examples[/bold]

      divse-data check coco

      divse-data check f30k --layout karpathy --option images=/data/flickr30k-images
    """
    from divse.cli.check_data import look_at, show

    reports = look_at(path, layout, read_options(option))
    usable = any(report.usable for report in reports)
    if as_json:
        found = [report.to_dict() for report in reports]
        typer.echo(json.dumps({"path": str(path), "usable": usable, "layouts": found}))
    else:
        show(path, reports, sys.stdout)
    raise typer.Exit(0 if usable else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def encode(context: typer.Context, path: DataPath, layout: LayoutName = "") -> None:
    """Write the features of frozen encoders once, for every training that follows.

    Takes the settings of train.py, which must freeze an encoder; features go to --data.cache, or
    to PATH/features. A stopped run goes on where it was.

    [bold]Examples[/bold]

      divse-data encode photos --preset captions --image.weights lite0.safetensors
    """
    from divse.cli.encode_data import encode_data

    encode_data(path, layout, context.args)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder to write.")],
    level: Annotated[str, typer.Option("--level", help="easy, default or hard.")] = "default",
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, val or test; may be repeated. Default: all."),
    ] = None,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the generated benchmark scenes as pictures, captions and exact fitting pairs.

    FOLDER gets images/, captions.jsonl, relevance.npz and scenes.json (see docs/scenes.md); it is
    read as any folder of pictures with captions. A stopped export goes on.

    [bold]Examples[/bold]

      divse-data scenes --out scenes

      divse-data scenes --out hard --level hard --split test --option seed=1
    """
    from divse.data import SPLITS
    from divse.data.scene_export import export
    from divse.data.scene_options import SceneOptions

    chosen = SceneOptions.of(level, **read_options(option))
    say = (lambda line: None) if as_json else typer.echo
    told = export(out, chosen, split or SPLITS, say)
    typer.echo(json.dumps(told) if as_json else f"{told['name']} -> {out}")


def read_options(words: list[str] | None) -> dict[str, Any]:
    """Read words NAME=VALUE; a value may be JSON."""
    from divse.training.command_line import json_or_text

    settings: dict[str, Any] = {}
    for word in words or []:
        name, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"--option: got {word!r}, expected NAME=VALUE")
        settings[name] = json_or_text(value)
    return settings


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 an error or unusable data, 2 wrong usage."""
    run(app, arguments)
