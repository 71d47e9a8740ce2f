"""Progress of long work: one line for each stage, with the time it took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yields a function to call at the start of each stage; on a terminal the running one has a spinner."""
    console = Console(stderr=True)
    current: list[tuple[str, float]] = []
    status = console.status("")

    def finish(mark: str) -> None:
        if current:
            text, start = current.pop()
            console.print(f"{mark} {text} [dim]({time.monotonic() - start:.1f} s)[/]", highlight=False)

    def begin(text: str) -> None:
        finish("[green]✓[/]")
        current.append((text, time.monotonic()))
        status.update(text)

    with status:
        try:
            yield begin
        except BaseException:
            finish("[red]✗[/]")
            raise
        finish("[green]✓[/]")
