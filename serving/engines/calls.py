"""The calls that run on an engine: closing it waits for them and refuses later ones."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Calls:
    """Counts calls that run now. Thread-safe."""

    def __init__(self) -> None:
        self._closed, self._running = False, 0
        self._changed = threading.Condition()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a call from outside. Raises `RuntimeError` after `close`."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Refuses later calls, and returns when none runs any more."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0)
