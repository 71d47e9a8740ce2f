"""How much later than estimated requests end."""

# As TCP does for its round trips (RFC 6298): a mean, and a mean deviation that widens it.
_NEWEST, _NEWEST_DEVIATION, _DEVIATIONS = 0.05, 0.1, 2.0

_MISSED, _KEPT = 1e-3, 1e-5
"""Seconds by which an answer that came after its deadline widens the margin, and one that came before it
narrows it: about one in a hundred comes too late then."""


class Lateness:
    """Learned from the requests that ended. Not thread-safe."""

    def __init__(self) -> None:
        self._mean = self._deviation = self._after = 0.0

    def observe(self, seconds: float) -> None:
        """A request ended so long after it was estimated to; negative for earlier."""
        self._deviation += _NEWEST_DEVIATION * (abs(seconds - self._mean) - self._deviation)
        self._mean += _NEWEST * (seconds - self._mean)

    def answered(self, missed: bool) -> None:
        """The client had its answer, or would have had it after its deadline: what comes after the calls, the
        encoding and the way to the client, is in no estimate."""
        self._after = max(0.0, self._after + (_MISSED if missed else -_KEPT))

    def margin_of(self, remaining: float) -> float:
        """Seconds to add to an estimate for most requests to end before it and be answered in time; not
        negative. What comes after the calls is at most half of the `remaining` time: clients that leave no
        time for an answer must not have all others refused."""
        margin = max(0.0, self._mean + _DEVIATIONS * self._deviation)
        return margin + min(self._after, max(remaining, 0.0) / 2)
