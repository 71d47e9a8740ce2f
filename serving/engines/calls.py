"""The calls that run on an engine: closing it waits for them and refuses later ones."""

import threading


class Calls:
    """Counts calls that run now, each `with` it. Thread-safe."""

    def __init__(self) -> None:
        self._closed, self._running = False, 0
        self._lock = threading.Lock()
        self._none_runs = threading.Condition(self._lock)

    def __enter__(self) -> None:
        """Raises `RuntimeError` after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            if self._closed and not self._running:
                self._none_runs.notify_all()

    def close(self) -> None:
        """Refuses later calls, and returns when none runs any more."""
        with self._lock:
            self._closed = True
            self._none_runs.wait_for(lambda: self._running == 0)
