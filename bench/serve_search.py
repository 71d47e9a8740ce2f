"""The largest rate of requests at which a server keeps its promise, by bisection."""

import math
from dataclasses import dataclass, field

from bench.serve_load import Sample


@dataclass
class Point:
    """A load and what came of it."""

    rate: float
    """Requests per second that were sent."""
    sample: Sample


@dataclass
class Search:
    """Bisection over rates for one server, one step at a time so that two servers can take turns.

    Attributes:
        high: requests per second that the server surely does not keep up with.
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
        rate = self.next_rate()
        self.points.append(Point(rate, sample))
        if sample.percentile(self.share) <= self.slo_ms:
            self.low = rate
        else:
            self.high = rate

    @property
    def throughput(self) -> float:
        """Answers per second at the largest rate that kept the promise; 0.0 if none did."""
        kept = [p for p in self.points if p.sample.percentile(self.share) <= self.slo_ms]
        best = max(kept, key=lambda p: p.rate, default=None)
        return 0.0 if best is None else best.sample.goodput(math.inf)
