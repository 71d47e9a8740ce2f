"""Where commands print their results."""

from rich.console import Console

_ANY_WIDTH = 100_000
"""Columns. More than any table here needs, and a table takes only what its cells need."""


def results_console() -> Console:
    """Standard output, laid out for its reader: as wide as the terminal, or, in a pipe or a file, as wide as
    each table is. rich would take 80 columns there and cut figures off."""
    console = Console()
    return console if console.file.isatty() else Console(width=_ANY_WIDTH)
