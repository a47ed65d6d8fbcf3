"""The command `divse-search`: galleries and searches from the shell."""

from divse.cli.app import main

__all__ = ["main"]
