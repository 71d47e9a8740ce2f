"""Whose request is decoded and looked up next: the work of a request before a device has it.

So many calls work at once (`--threads`). The others wait, those of a higher priority first and then those
with the nearest deadline (in a few seconds where there is none), until it passes or their client leaves. A
call whose thread waits for a device needs its turn no longer, so the device's own queue (`order.py`) sees all
that there is to do. One that waits for what another call computes gives its turn back meanwhile: waiting is
no work.
"""

import itertools
import math
import threading
import time
from bisect import bisect, insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from serving.errors import CancelledError, OverloadedError
from serving.scheduling.urgency import GONE, Urgency

# Weight of the newest turn. Requests of many sizes take turns, and the load changes within seconds.
_NEWEST = 0.05


@dataclass(order=True)
class _Waiter:
    """A call that waits: the order in which turns are given, and what wakes it."""

    order: tuple[int, float, float]
    granted: bool = field(default=False, compare=False)
    woken: threading.Event = field(default_factory=threading.Event, compare=False)


class Turns:
    """Thread-safe.

    Attributes:
        most: requests that may be inside of `turn`.
    """

    def __init__(self, turns: int = 8, max_waiting: int = 64):
        """`turns` are held at once; `max_waiting` others may be inside, waiting for a turn or for a
        device."""
        self.most = turns + max_waiting
        self._turns = self._free = turns
        self._inside = 0
        self._waiting: list[_Waiter] = []
        self._numbers = itertools.count()
        self._held = 0.0
        """Seconds that a turn is held, learned from those that ended."""
        self._started, self._waited = 0, 0.0
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, urgency: Urgency) -> Iterator[Urgency]:
        """Inside, a request is worked on. Waits for its turn, and writes on the timeline when; what it gives
        is the urgency with which the turn ends early (`Urgency.turn_over`) or is given back for a while
        (`Urgency.turn_given_back`, which raises at its end as this does, but for the number inside).

        Raises `OverloadedError` at once when as many are inside as may or the turn would come after the
        deadline, and what `Urgency.check` raises for a call that waited in vain.
        """
        began = time.monotonic()
        with self._lock:
            if self._inside >= self.most:
                raise OverloadedError(
                    f"{self._inside} requests are being answered or wait already; send fewer at once, or to "
                    "another replica",
                    "queue_full",
                )
            self._inside += 1
        try:
            try:
                self._take(urgency)
            finally:
                since = time.monotonic()
                urgency.timeline.turn = (began, since)
            turn = _Turn(self, urgency, since)
            try:
                yield replace(urgency, turn_over=turn.end, turn_given_back=turn.given_back)
            finally:
                turn.end()
        finally:
            with self._lock:
                self._inside -= 1

    def waits(self) -> tuple[int, float]:
        """Turns that were given since the start, and the seconds that calls had waited for them in all."""
        with self._lock:
            return self._started, self._waited

    def _take(self, urgency: Urgency) -> None:
        began = time.monotonic()
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                self._started += 1
                return
            waiter = _Waiter((-urgency.priority, urgency.due(began), next(self._numbers)))
            self._refuse_late(waiter, urgency)
            insort(self._waiting, waiter)
        urgency.on_leave(lambda: self._leave(waiter))
        remaining = urgency.remaining()
        waiter.woken.wait(None if remaining == math.inf else max(remaining, 0.0))
        self._leave(waiter)
        if not waiter.granted:
            urgency.check()
            raise CancelledError(GONE)
        with self._lock:
            self._waited += time.monotonic() - began

    def _refuse_late(self, waiter: _Waiter, urgency: Urgency) -> None:
        """`_lock` is held."""
        # With every turn held, one ends in this time, and then the next.
        needed = self._held / self._turns * (bisect(self._waiting, waiter) + 1)
        if needed > urgency.remaining():
            raise OverloadedError(
                f"its turn would come in {needed * 1e3:.0f} ms, and its deadline is in "
                f"{max(urgency.remaining(), 0.0) * 1e3:.0f} ms; send fewer at once",
                "would_be_late",
            )

    def _leave(self, waiter: _Waiter) -> None:
        """Takes a waiter out that has not got its turn."""
        with self._lock:
            if not waiter.granted and waiter in self._waiting:
                self._waiting.remove(waiter)
        waiter.woken.set()

    def _end(self, seconds: float) -> None:
        """A turn ended that was held so long."""
        with self._lock:
            self._held += (_NEWEST if self._held else 1.0) * (seconds - self._held)
            if not self._waiting:
                self._free += 1
                return
            waiter = self._waiting.pop(0)
            waiter.granted = True
            self._started += 1
        waiter.woken.set()


class _Turn:
    """A turn that is held; only its own thread ends it."""

    def __init__(self, turns: Turns, urgency: Urgency, since: float):
        self._turns, self._urgency, self._since, self._ended = turns, urgency, since, False

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._turns._end(time.monotonic() - self._since)

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """A turn that had ended before is not taken again, nor one of a call that fails inside."""
        had = not self._ended
        self.end()
        yield
        if had:
            self._turns._take(self._urgency)
            self._since, self._ended = time.monotonic(), False
