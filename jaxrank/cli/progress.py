"""Progress of long work: one line for each stage, with the time it took, and a bar for what is counted in
bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
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

    def bar(self, description: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        return self._counted(description, total_bytes, *columns)

    def steps(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return self._counted(description, total, MofNCompleteColumn())

    @contextmanager
    def _counted(
        self, description: str, total: int, *columns: ProgressColumn
    ) -> Iterator[Callable[[int], None]]:
        # Only one live display at a time.
        self.status.stop()
        try:
            shown = (TextColumn("  {task.description}"), BarColumn(), *columns)
            with Bars(*shown, console=self._console, transient=True) as bars:
                task = bars.add_task(description, total=total)
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
