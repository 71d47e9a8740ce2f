"""Token buckets."""

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """`rate` units a second, of which a second's worth may be taken at once. Thread-safe.

    The last request may take more than there is: the bucket is then in debt, and the next ones wait until it
    is paid. So a request of any size passes, and the rate holds over time.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        """`clock` in seconds."""
        self.rate = rate
        self._clock = clock
        self._filled, self._at = max(1.0, rate), clock()
        self._lock = threading.Lock()

    def take(self, units: float) -> float:
        """Takes `units`. Returns 0, or without taking any the seconds until some may be taken."""
        with self._lock:
            now = self._clock()
            self._filled = min(max(1.0, self.rate), self._filled + (now - self._at) * self.rate)
            self._at = now
            if self._filled < min(units, 1.0):
                return (min(units, 1.0) - self._filled) / self.rate
            self._filled -= units
            return 0.0
