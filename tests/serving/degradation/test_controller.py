"""The controller on a simulated server: a queue on a model's clock, so nothing here takes time."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from serving.degradation.controller import Controller, Observed

COSTS = (1 / 100, 1 / 170, 1 / 260, 1 / 400)
"""Seconds of the device for a request at each level: at full quality 100 requests per second saturate it."""
DEADLINE = 0.1


class Server:
    """Requests in order of arrival on one device; one that would end after its deadline is refused."""

    def __init__(self, seed: int, target: float = 1.0) -> None:
        """`target` is the share of the device that may be used."""
        self.target, self.used = target, []
        self.rng = np.random.default_rng(seed)
        self.free_at = self.now = 0.0
        self.controller = Controller(len(COSTS) - 1, queue_s=0.02)
        self.levels: list[int] = []
        self.missed: list[int] = []
        self.sent: list[int] = []

    def second(self, rate: float) -> None:
        """One second of Poisson arrivals at a rate, and the controller's look at it."""
        times = np.sort(self.rng.uniform(self.now, self.now + 1, self.rng.poisson(rate))).tolist()
        costs = (COSTS[self.controller.level] * self.rng.gamma(20, 1 / 20, len(times))).tolist()
        missed, waited, used = 0, 0.0, 0.0
        for at, cost in zip(times, costs, strict=True):
            begin = max(self.free_at, at)
            if begin + cost > at + DEADLINE:
                missed += 1
                continue
            self.free_at = begin + cost
            waited, used = waited + begin - at, used + cost
        self.now += 1
        answered = len(times) - missed
        seen = Observed(
            seconds=1.0, answered=answered, missed=missed, queue_s=waited / answered if answered else 0.0,
            utilisation=min(used, 1.0) / self.target, own=min(used, 1.0) / self.target,
        )  # fmt: skip
        self.used.append(min(used, 1.0))
        self.levels.append(self.controller.update(seen))
        self.missed.append(missed)
        self.sent.append(len(times))

    def run(self, rate: Callable[[int], float], seconds: int) -> "Server":
        for second in range(seconds):
            self.second(rate(second))
        return self


@pytest.mark.parametrize("seed", range(5))
def test_a_flash_crowd(seed: int) -> None:
    """Two and a half times what full quality can take, from one second to the next, for a minute: within
    seconds requests are answered again, and within seconds after the crowd quality is back."""
    start, end = 30, 90
    server = Server(seed).run(lambda s: 250 if start <= s < end else 40, 150)
    assert max(server.levels[:start]) == 0
    crowd = range(start + 6, end)
    assert sum(server.missed[s] for s in crowd) < 0.01 * sum(server.sent[s] for s in crowd)
    assert server.levels[end - 1] == 3
    assert max(server.levels[end + 8 :]) == 0
    assert server.controller.changes <= 8


@pytest.mark.parametrize("seed", range(3))
def test_a_day(seed: int) -> None:
    """From a fifth of saturation to one and a half times it and back, in half an hour for a day: levels
    follow the load up and down, and do not swing."""
    seconds = 1800
    server = Server(seed).run(lambda s: 20 + 65 * (1 - math.cos(2 * math.pi * s / seconds)), seconds)
    assert sum(server.missed) < 0.005 * sum(server.sent)
    assert server.levels[0] == server.levels[-1] == 0
    assert max(server.levels) <= 2
    # Each step up and down once would be 4; the hysteresis allows a few more around the noise of arrivals.
    assert server.controller.changes <= 14


@pytest.mark.parametrize("rate", [50, 85, 100, 130, 300])
def test_load_that_stays_does_not_make_levels_swing(rate: int) -> None:
    """At any constant load, noise moves the level at most about once in two minutes."""
    server = Server(7).run(lambda s: rate, 600)
    assert server.controller.changes <= 8
    late = slice(60, None)
    assert sum(server.missed[late]) < 0.02 * sum(server.sent[late])


@pytest.mark.parametrize("rate", [40, 80, 110, 150])
def test_a_target_for_the_cpu_is_kept(rate: int) -> None:
    """Of the device 70% may be used: quality is given up until that is kept, and at most one level more."""
    server = Server(5, target=0.7).run(lambda s: rate, 300)
    enough = next(n for n, cost in enumerate(COSTS) if rate * cost <= 0.7)
    late = slice(30, None)
    assert np.mean(server.used[late]) < 0.7
    assert enough - 0.2 <= np.mean(server.levels[late]) <= enough + 1
    assert server.controller.changes <= 8
    server.run(lambda s: 0, 20)
    assert server.levels[-1] == 0


def test_without_load_quality_is_full_again() -> None:
    """Whatever was believed about costs."""
    server = Server(3).run(lambda s: 1000, 30)
    assert server.levels[-1] == 3
    server.run(lambda s: 0, 20)
    assert server.levels[-1] == 0


def test_others_on_the_device_count() -> None:
    """The device is full of another model's work: this model's cheap requests are no reason to give its
    quality back."""
    controller = Controller(1, queue_s=0.02)

    def seen(queue_s: float, own: float) -> Observed:
        return Observed(seconds=1.0, answered=50, missed=0, queue_s=queue_s, utilisation=0.9, own=own)

    for _ in range(3):
        assert controller.update(seen(0.001, 0.2)) == 0
    assert max(controller.update(seen(0.05, 0.2)) for _ in range(3)) == 1
    for _ in range(30):
        assert controller.update(seen(0.001, 0.1)) == 1
