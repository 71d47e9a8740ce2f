"""Work that requests do not wait for: on threads of a lower priority, or beside them."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from jaxrank.digests import Digests
from serving import sha256_process

log = logging.getLogger("jaxrank")

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 10
"""Added to that of the process. A core that requests keep busy then gives such a thread a tenth of its
time."""
_LARGE = 4 << 20
"""Bytes of a file that takes longer to hash than a process to start."""

_running: dict[int, float] = {}
"""CPU clocks of the threads that are in `low`, and their seconds when they entered."""
_ended_seconds = 0.0
_lock = threading.Lock()


def low(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives, on the calling thread, which gives way to all others from then on (Linux: each
    thread has its own niceness there).

    Threads that it starts inherit that, and no thread can take it back: never on a thread that opens an
    engine, and only on one that ends with the work. Python's lock knows no priorities, so it is for work that
    does not hold it.
    """
    global _ended_seconds
    if sys.platform != "linux":
        return work(*args, **kwargs)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _niceness())
    clock = time.pthread_getcpuclockid(threading.get_ident())
    began = time.clock_gettime(clock)
    with _lock:
        _running[clock] = began
    try:
        return work(*args, **kwargs)
    finally:
        with _lock:
            del _running[clock]
            _ended_seconds += time.clock_gettime(clock) - began


class BackgroundDigests(Digests):
    """Those of large files are computed by processes of a lower priority. A thread would take Python's lock
    between the pieces of a file, and whoever waits for the lock waits until such a thread runs again."""

    def _compute(self, path: Path) -> tuple[str, os.stat_result]:
        """Raises `OSError`."""
        before = path.stat()
        if before.st_size < _LARGE:
            return super()._compute(path)
        arguments = (str(os.getpid()), str(_niceness()), str(path))
        done = subprocess.run(
            [sys.executable, "-I", "-S", sha256_process.__file__, *arguments], capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(done.stderr.strip() or f"the process that read it ended with {done.returncode}")
        return done.stdout.strip(), path.stat()


def _niceness() -> int:
    return min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS, 19)


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives on a thread of a lower priority, which ends with it. Raises what it raises."""
    with ThreadPoolExecutor(1, "background") as pool:
        return pool.submit(low, work, *args, **kwargs).result()


def background_seconds() -> float:
    """CPU time of all that ran with low priority since the process began."""
    with _lock:
        return _ended_seconds + sum(time.clock_gettime(clock) - began for clock, began in _running.items())


class Aside:
    """What is done on a thread of its own, so that a request does not wait for it. Thread-safe."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def do(self, name: str, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Begins to, on a thread of that name, which the end of the process does not wait for."""
        thread = threading.Thread(target=work, args=args, kwargs=kwargs, name=name, daemon=True)
        with self._lock:
            self._threads = [t for t in self._threads if t.is_alive()]
            self._threads.append(thread)
            thread.start()

    def join(self, seconds: float) -> None:
        """Waits for all of it, at most so long in all; says what is left then."""
        with self._lock:
            threads = list(self._threads)
        ends = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
            if thread.is_alive():
                log.warning("%s has not ended after %g s, and is not waited for", thread.name, seconds)
