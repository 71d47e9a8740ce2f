"""Progress of long work: one line for each stage, with the time it took, and a bar for what is counted in
bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from jaxrank.progress import Progress


class _Stages:
    """`jaxrank.progress.Progress` on a terminal: the running stage has a spinner, or its bar."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self.status = self._console.status("")
        self._current: list[tuple[str, float]] = []

    def __call__(self, text: str, /) -> None:
        self.finish("[green]✓[/]")
        self._current.append((text, time.monotonic()))
        self.status.update(text)

    @contextmanager
    def bar(self, description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("  {task.description}"), BarColumn(), DownloadColumn(binary_units=True),
            TransferSpeedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        # Only one live display at a time.
        self.status.stop()
        try:
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(description, total=total_bytes)
                yield lambda done: bars.advance(task, done)
        finally:
            self.status.start()

    def finish(self, mark: str) -> None:
        if self._current:
            text, start = self._current.pop()
            taken = time.monotonic() - start
            self._console.print(f"{mark} {text} [dim]({taken:.1f} s)[/]", highlight=False)


@contextmanager
def stages() -> Iterator[Progress]:
    """Progress that is shown on standard error for as long as the context lasts."""
    progress = _Stages()
    with progress.status:
        try:
            yield progress
        except BaseException:
            progress.finish("[red]✗[/]")
            raise
        progress.finish("[green]✓[/]")
