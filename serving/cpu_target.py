"""The share of the CPUs that a server stays under, `--cpu-target` (docs/overload.md)."""

import threading
import time
from collections.abc import Callable

from serving.background import background_seconds
from serving.errors import OverloadedError
from serving.scheduling import Urgency

_BURST_SECONDS = 2.0
"""Of the target that may be used at once, and that may be owed: the degradation controller looks once a
second, and gets to act before requests are refused."""
_LOOK_SECONDS = 0.01
"""Between readings of the process's clock, which asks every thread."""


def used_seconds() -> float:
    """CPU time that the process has spent on everything but work of low priority."""
    return time.process_time() - background_seconds()


class CpuTarget:
    """A bucket of CPU seconds: the target fills it, what the process uses empties it, and while it is empty
    requests are refused. So the target holds over seconds, whatever a request costs. Thread-safe.

    Attributes:
        cores: that the process may use; need not be whole.
        share: of these, that it stays under; None for no target.
    """

    def __init__(
        self,
        cores: float,
        share: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = used_seconds,
    ):
        """`clock` and `used` in seconds."""
        self.cores, self.share = cores, share
        self._clock, self.used = clock, used
        self._most = self.seconds_per_second * _BURST_SECONDS
        self._left, self._at, self._used_at = self._most, clock(), used()
        self._lock = threading.Lock()

    @property
    def seconds_per_second(self) -> float:
        """CPU seconds that may be used in a second."""
        return self.cores * (1.0 if self.share is None else self.share)

    def check(self, urgency: Urgency) -> None:
        """Raises `OverloadedError` where the target is used up. Requests of high priority may use more of it,
        and those of low priority leave some to the others."""
        if self.share is None:
            return
        left = self._look()
        if left + urgency.priority * self._most / 2 < 0:
            raise OverloadedError(
                f"the server uses more than {self.share:.0%} of {self.cores:g} CPUs (--cpu-target); send "
                "fewer requests, or ask another replica",
                "cpu_target",
            )

    def _look(self) -> float:
        """CPU seconds that are left, negative for a debt."""
        with self._lock:
            now = self._clock()
            if now - self._at >= _LOOK_SECONDS:
                used = self.used()
                filled = (now - self._at) * self.seconds_per_second - (used - self._used_at)
                self._left = min(max(self._left + filled, -self._most), self._most)
                self._at, self._used_at = now, used
            return self._left
