"""How the commands end: errors become one line on stderr and an exit code.

0 done, 1 an error, 2 wrong usage, 130 interrupted by Ctrl-C. A reader of the output that goes away,
such as `head`, ends a command early and in silence; it wanted no more, so nothing has failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def ended_early(name: str | None) -> Iterator[None]:
    """End a command that is interrupted, or whose output nobody reads any more."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo(f"\n{name}: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


class Commands(TyperGroup):
    """A group of commands that can be interrupted, and whose output may be a pipe."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with ended_early(ctx.info_name):
            return super().invoke(ctx)


def run(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end with its exit code."""
    try:
        app(arguments, prog_name=app.info.name)
    except ERRORS as error:
        if "--traceback" in (sys.argv if arguments is None else arguments):
            raise
        typer.echo(f"{app.info.name}: error: {message(error)}", err=True)
        sys.exit(1)
    sys.exit(0)


def message(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
