"""Whether looking for a request's state pays, by what it cost and saved so far."""

import threading

_WINDOW = 256
"""Lookups between decisions."""
_REST = 4096
"""Requests that are not looked for after a window that did not pay: looking then costs a sixteenth."""


class Account:
    """Nanoseconds spent on lookups and saved by hits. Thread-safe.

    A model whose request side is cheaper than the digest of its features never pays, and neither does
    traffic in which no request comes twice. Both are tried again, because models and traffic change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups = self._resting = 0
        self._spent = self._hits = 0
        self._made: int | None = None

    def look(self) -> bool:
        """Whether to look for the next request's state."""
        with self._lock:
            self._resting = max(self._resting - 1, 0)
            return not self._resting

    def made(self, nanoseconds: int) -> None:
        """A request side was computed in that time. The shortest counts: the others waited for a stream."""
        with self._lock:
            self._made = nanoseconds if self._made is None else min(self._made, nanoseconds)

    def looked(self, nanoseconds: int, hit: bool) -> None:
        """What one lookup took, and whether it found something."""
        with self._lock:
            self._lookups += 1
            self._spent += nanoseconds
            self._hits += hit
            if self._lookups < _WINDOW:
                return
            if self._made is not None and self._hits * self._made < self._spent:
                self._resting = _REST
            self._lookups = self._spent = self._hits = 0
            self._made = None if self._resting else self._made
