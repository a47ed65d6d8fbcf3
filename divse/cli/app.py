"""The command `divse-search`: its own options, and the commands that it offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from divse import __version__
from divse.cli.build import add, build, update
from divse.cli.failures import Commands, run
from divse.cli.maintain import compact, export, index, info, remove, verify
from divse.cli.measure import evaluate, tune
from divse.cli.options import grouped, help_of
from divse.cli.progress import show_progress
from divse.cli.query import query

COMMANDS: dict[str, Callable[..., None]] = {
    "build": build,
    "query": query,
    "info": info,
    "add": add,
    "update": update,
    "remove": remove,
    "index": index,
    "tune": tune,
    "eval": evaluate,
    "compact": compact,
    "verify": verify,
    "export": export,
}

app = typer.Typer(
    name="divse-search",
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name, help=help_of(command))(grouped(command))


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
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="Bars on stderr; default: if it is a terminal."
        ),
    ] = None,
) -> None:
    """Search galleries of embedding sets by Smooth-Chamfer similarity.

    Answers go to stdout, everything else to stderr. Exit codes:

      0 done    1 an error, one line on stderr    2 wrong usage

      130 interrupted by Ctrl-C, which leaves galleries as they were

    [bold]Examples[/bold]

      divse-search build photos/gallery --model runs/best --images photos

      divse-search query photos/gallery --text "something to drink"

      divse-search --install-completion     # in bash, zsh, fish and PowerShell
    """
    show_progress(progress)  # --traceback is read by `run`, which sees the error


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command; exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    run(app, arguments)
