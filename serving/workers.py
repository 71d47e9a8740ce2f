"""The threads that decode requests and run models, shared by all protocols."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from serving.errors import OverloadedError

_WAITING = 8
"""Requests for each thread that may work: one works, the others wait for their turn."""
_IDLE = 128
"""Threads for calls whose message has not come; they sleep, and exist only when there are such calls."""


class Workers(ThreadPoolExecutor):
    """A thread pool that knows when it has nothing to do, and in which so many threads work at once. The
    others hold calls that wait: for their turn, or for their message."""

    def __init__(self, threads: int):
        """`threads` may work at once."""
        self.most_requests = threads * _WAITING
        self.most_calls = self.most_requests + _IDLE
        super().__init__(self.most_calls, thread_name_prefix="rpc")
        self._busy = 0
        self._started, self._waited = 0, 0.0
        self._changed = threading.Condition()
        self._requests = 0
        self._turns = threading.Semaphore(threads)

    def turn(self) -> AbstractContextManager[None]:
        """Inside, this thread is one of those that work. Raises `OverloadedError` at once when as many
        requests wait as may."""
        with self._changed:
            if self._requests >= self.most_requests:
                raise OverloadedError("too many requests at once; try again later, or another replica")
            self._requests += 1
        return self._turn()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        arrived = time.monotonic()
        try:
            with self._turns:
                waited = time.monotonic() - arrived
                with self._changed:
                    self._started += 1
                    self._waited += waited
                yield
        finally:
            with self._changed:
                self._requests -= 1

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

    def waits(self) -> tuple[int, float]:
        """Requests that had their turn since the start, and the seconds that they had waited for it in
        all."""
        with self._changed:
            return self._started, self._waited

    def begin(self) -> None:
        """Counts work that outlives its thread, such as an answer on its way, until `end`."""
        with self._changed:
            self._busy += 1

    def end(self) -> None:
        """Ends what `begin` counted."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until nothing is running or queued. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)
