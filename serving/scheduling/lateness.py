"""How much later than estimated requests end."""

# As TCP does for its round trips (RFC 6298): a mean, and a mean deviation that widens it.
_NEWEST, _NEWEST_DEVIATION, _DEVIATIONS = 0.05, 0.1, 2.0


class _Spread:
    """Of a time in seconds."""

    def __init__(self) -> None:
        self._mean = self._deviation = 0.0

    def observe(self, seconds: float) -> None:
        self._deviation += _NEWEST_DEVIATION * (abs(seconds - self._mean) - self._deviation)
        self._mean += _NEWEST * (seconds - self._mean)

    @property
    def bound(self) -> float:
        """What most times are below; not negative."""
        return max(0.0, self._mean + _DEVIATIONS * self._deviation)


class Lateness:
    """Learned from the requests that ended. Not thread-safe."""

    def __init__(self) -> None:
        self._calls, self._answers = _Spread(), _Spread()

    def observe(self, seconds: float) -> None:
        """A request's calls ended so long after they were estimated to; negative for earlier."""
        self._calls.observe(seconds)

    def answered(self, seconds: float) -> None:
        """Its answer went out so long after its calls had ended."""
        self._answers.observe(seconds)

    @property
    def margin(self) -> float:
        """Seconds to add to an estimate for most requests to be answered before it; not negative."""
        return self._calls.bound + self._answers.bound
