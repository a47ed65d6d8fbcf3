"""How the commands end: errors become one line on stderr and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer


def run(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command; exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage."""
    try:
        app(arguments)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        if "--traceback" in (sys.argv if arguments is None else arguments):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        message = " ".join(text.split()) or type(error).__name__
        typer.echo(f"{app.info.name}: error: {message}", err=True)
        sys.exit(1)
    sys.exit(0)
