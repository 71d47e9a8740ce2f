"""The largest rate of requests at which a server keeps its promise, by bisection."""

from dataclasses import dataclass, field

from bench.serve_load import Sample

HEADROOM = 1.2
"""A search begins below so many times the rate of a closed loop."""
_RAISE = 1.25


@dataclass
class Point:
    """A load and what came of it."""

    rate: float
    """Requests per second that were offered: what the schedule was drawn for."""
    sample: Sample


@dataclass
class Search:
    """Bisection over rates for one server, one step at a time so that two servers can take turns.

    Attributes:
        high: requests per second that the server is not expected to keep up with. While it has kept up with
            every rate, this moves up by a quarter whenever the rates come within a quarter of it: a closed
            loop that was measured in a slow moment is no bound.
        slo_ms: within which `share` of all requests must be answered.
    """

    high: float
    slo_ms: float
    share: float = 0.99
    low: float = 0.0
    points: list[Point] = field(default_factory=list)

    def next_rate(self) -> float:
        """The rate to try."""
        return (self.low + self.high) / 2

    def record(self, sample: Sample) -> None:
        """What came of `next_rate`."""
        point = Point(self.next_rate(), sample)
        self.points.append(point)
        if not self._kept(point):
            self.high = point.rate
            return
        self.low = point.rate
        if self.unbounded and self.high <= _RAISE * self.low:
            self.high *= _RAISE

    @property
    def unbounded(self) -> bool:
        """Whether the server kept up with every rate that was tried: it may keep up with more."""
        return all(map(self._kept, self.points))

    @property
    def best(self) -> Point | None:
        """The largest rate that kept the promise."""
        return max(filter(self._kept, self.points), key=lambda p: p.rate, default=None)

    @property
    def throughput(self) -> float:
        """Answers within the promise per second, at the largest rate that kept it: that rate times the share
        of requests that were answered so; 0.0 if none did. The rate is the offered one: the number of
        arrivals that a Poisson process happens to have differs from it by several percent in a load of
        seconds, whatever the server does."""
        best = self.best
        return 0.0 if best is None else best.rate * best.sample.in_time(self.slo_ms)

    def _kept(self, point: Point) -> bool:
        return point.sample.percentile(self.share) <= self.slo_ms
