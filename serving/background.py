"""Work that gives way to requests: what is done on threads of a lower priority."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 10
"""Added to that of the process. A core that requests keep busy then gives such a thread a tenth of its
time."""


def lower_priority() -> None:
    """Makes the calling thread give way to all others, on Linux, where each thread has its own niceness.

    Threads that it starts inherit that, and no thread can take it back: never on a thread that opens an
    engine. Python's lock knows no priorities, so it is for work that does not hold it.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + NICENESS, 19))


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives on a thread of a lower priority, which ends with it. Raises what it raises."""
    with ThreadPoolExecutor(1, "background", initializer=lower_priority) as pool:
        return pool.submit(work, *args, **kwargs).result()
