"""The margin of an estimate covers most requests, and what is over is forgotten."""

import numpy as np
import pytest

from serving.scheduling.lateness import Lateness


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.005), (-0.02, 0.001)])
def test_most_requests_end_within_the_margin(mean: float, spread: float) -> None:
    rng = np.random.default_rng(1)
    lateness = Lateness()
    for late in rng.normal(mean, spread, 500):
        lateness.observe(late)
    within = (rng.normal(mean, spread, 1000) <= lateness.margin + 1e-9).mean()
    assert within > 0.85
    assert 0 <= lateness.margin < max(mean, 0) + 4 * spread + 1e-3


def test_a_burst_is_forgotten() -> None:
    lateness = Lateness()
    for late in [1.0] * 20 + [0.0] * 300:
        lateness.observe(late)
    assert lateness.margin < 0.001


def test_what_answers_take_after_the_calls_counts() -> None:
    lateness = Lateness()
    for _ in range(300):
        lateness.observe(0.0)
        lateness.answered(0.02)
    assert lateness.margin == pytest.approx(0.02, abs=1e-3)
    for _ in range(300):
        lateness.answered(0.001)
    assert lateness.margin == pytest.approx(0.001, abs=1e-3)
