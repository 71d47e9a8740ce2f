"""Work that gives way to requests: what is done on threads of a lower priority."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 10
"""Added to that of the process. A core that requests keep busy then gives such a thread a tenth of its
time."""


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
    niceness = min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS, 19)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
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


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives on a thread of a lower priority, which ends with it. Raises what it raises."""
    with ThreadPoolExecutor(1, "background") as pool:
        return pool.submit(low, work, *args, **kwargs).result()


def background_seconds() -> float:
    """CPU time of all that ran with low priority since the process began."""
    with _lock:
        return _ended_seconds + sum(time.clock_gettime(clock) - began for clock, began in _running.items())
