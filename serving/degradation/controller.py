"""Which level of degradation a model runs at: feedback once a second, with hysteresis.

Pressure (late requests, a queue, or more use of the CPU than was asked for) raises the level. Only a forecast
lowers it: the costs of a request that were seen at each level say how busy the device would be at the lower
one for the requests that come now. Load that goes away therefore gives quality back within seconds, and load
that stays does not make the level swing.
"""

import math
from dataclasses import dataclass

_NEWEST = 0.3
"""Weight of the newest second in what is known: arrivals are random, and one second of them says little."""
_ENOUGH = 5
"""Requests of a second that say something about their cost."""
_MISS_SHARE = 0.01
"""Of requests that were late, above which there is pressure."""
_FULL = 0.95
"""Share of what may be used that is used at the level that is gone up to."""
_ROOM = 0.75
"""The same at the level that is gone down to."""
_BLIND_ROOM = 0.4
"""The same of what is used now, where the cost of a request at that level is not known."""
_CALM_SECONDS, _MAX_CALM_SECONDS = 3.0, 120.0
"""For which there is room before the level is lowered; doubled each time that it proves too soon."""
_TOO_SOON_SECONDS = 60.0
"""Pressure so soon after the level was lowered says that it should not have been."""


@dataclass(frozen=True)
class Observed:
    """One model in the last second.

    Attributes:
        seconds: how long it was.
        answered: requests that were answered.
        missed: requests that were refused for their deadline or ended after it.
        queue_s: mean seconds that requests waited for a thread and then for the device.
        utilisation: share of the device, or of what may be used of the CPU, that all models used. Above 1
            where a target for the CPU was exceeded.
        own: the part of it that this model used.
    """

    seconds: float
    answered: int
    missed: int
    queue_s: float
    utilisation: float
    own: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return (self.answered + self.missed) / self.seconds


class Controller:
    """The level of one model. Not thread-safe.

    Attributes:
        level: 0 is full quality.
        changes: how often the level has changed.
    """

    def __init__(self, levels: int, queue_s: float):
        """
        Args:
            levels: the highest level.
            queue_s: mean wait of a request, in seconds, above which there is pressure.
        """
        self.level, self.changes = 0, 0
        self._levels, self._queue_s = levels, queue_s
        self._costs: dict[int, float] = {}
        self._steady = False
        self._raised = False
        self._calm, self._needed = 0.0, _CALM_SECONDS
        self._since_lowered = math.inf
        self._rate = self._queue = self._use = 0.0

    def update(self, seen: Observed) -> int:
        """The level for the next second."""
        self._learn(seen)
        self._since_lowered += seen.seconds
        before, raised = self.level, self._raised
        self._raised = False
        if self._is_pressed(seen):
            self._calm = 0.0
            # What waits when the level rises goes through first: the second after that says nothing new.
            if not raised:
                self._raise(seen)
        elif self.level and self._has_room(seen, self.level - 1):
            self._calm += seen.seconds
            if self._calm >= self._needed:
                self._lower(seen)
        else:
            self._calm = 0.0
        self._steady = self.level == before
        self.changes += not self._steady
        if self._since_lowered > _TOO_SOON_SECONDS + 2 * self._needed:
            self._needed = _CALM_SECONDS
        return self.level

    def _learn(self, seen: Observed) -> None:
        self._rate += _NEWEST * (seen.rate - self._rate)
        self._queue += _NEWEST * (seen.queue_s - self._queue)
        self._use += _NEWEST * (seen.utilisation - self._use)
        if self._steady and seen.answered >= _ENOUGH:
            cost = seen.own * seen.seconds / seen.answered
            known = self._costs.get(self.level, cost)
            self._costs[self.level] = known + _NEWEST * (cost - known)

    def _is_pressed(self, seen: Observed) -> bool:
        late = seen.missed > _MISS_SHARE * (seen.answered + seen.missed)
        return (
            late or min(seen.queue_s, self._queue) > self._queue_s or min(seen.utilisation, self._use) > 1.0
        )

    def _raise(self, seen: Observed) -> None:
        if self.level == self._levels:
            return
        if self._since_lowered < _TOO_SOON_SECONDS:
            self._needed = min(2 * self._needed, _MAX_CALM_SECONDS)
        higher = range(self.level + 1, self._levels + 1)
        known = (n for n in higher if (use := self._forecast(seen, n)) is not None and use <= _FULL)
        self.level = next(known, self.level + 1)
        self._raised = True

    def _lower(self, seen: Observed) -> None:
        self.level = next(n for n in range(self.level) if self._has_room(seen, n))
        self._calm = self._since_lowered = 0.0

    def _has_room(self, seen: Observed, level: int) -> bool:
        use = self._forecast(seen, level)
        return seen.utilisation < _BLIND_ROOM if use is None else use < _ROOM

    def _forecast(self, seen: Observed, level: int) -> float | None:
        """`Observed.utilisation` as it would be at a level; None for one that was never seen."""
        cost, rate = self._costs.get(level), max(seen.rate, self._rate)
        return None if cost is None else seen.utilisation - seen.own + rate * cost
