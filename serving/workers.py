"""The threads on which requests wait and are answered, shared by all protocols."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Workers(ThreadPoolExecutor):
    """A thread pool that knows when it has nothing to do. Most of its threads hold calls that wait, and exist
    only while there are so many; how many work at once is for `serving.scheduling.Turns` to say."""

    def __init__(self, threads: int):
        super().__init__(threads, thread_name_prefix="rpc")
        self._busy = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `ThreadPoolExecutor.submit`."""
        self.begin()
        try:
            future = super().submit(fn, *args, **kwargs)
        except RuntimeError:  # the pool is shut down
            self.end()
            raise
        future.add_done_callback(lambda _: self.end())
        return future

    def begin(self) -> None:
        """Counts work that outlives its thread, such as an answer on its way, until `end`."""
        with self._lock:
            self._busy += 1

    def end(self) -> None:
        """Ends what `begin` counted."""
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._idle.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until nothing is running or queued. Returns whether that is so."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._busy, seconds)
