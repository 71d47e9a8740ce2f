"""Progress of long work: one line for each stage, with the time it took, and a bar for what is counted in
bytes."""

import signal
import sys
import threading
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
        self.ended = 0
        """Exit status of a command that a signal ended; 0 before."""

    def end(self, number: int, frame: object) -> None:
        """Handles SIGINT and SIGTERM: what was begun is undone on the way out."""
        self.ended = 128 + number
        sys.exit(self.ended)

    def __call__(self, text: str, /) -> None:
        if self.ended:  # what `end` raised was lost: C code drops what its callbacks raise
            sys.exit(self.ended)
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
    """Progress that is shown on standard error for as long as the context lasts. Ctrl-C and SIGTERM end the
    command, at its next stage at the latest, with what it began undone."""
    progress = _Stages()
    in_main = threading.current_thread() is threading.main_thread()
    ends = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, progress.end) for number in ends}
    with progress.status:
        try:
            yield progress
        except BaseException:
            progress.finish("[red]✗[/]")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        progress.finish("[green]✓[/]")
