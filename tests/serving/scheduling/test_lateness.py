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
    within = (rng.normal(mean, spread, 1000) <= lateness.margin_of(60.0) + 1e-9).mean()
    assert within > 0.85
    assert 0 <= lateness.margin_of(60.0) < max(mean, 0) + 4 * spread + 1e-3


def test_a_burst_is_forgotten() -> None:
    lateness = Lateness()
    for late in [1.0] * 20 + [0.0] * 300:
        lateness.observe(late)
    assert lateness.margin_of(60.0) < 0.001


def test_few_answers_come_after_their_deadlines() -> None:
    """The way to the client takes 20 ms that no estimate knows of: a client's time is kept by all but a few
    requests soon. Nor do clients that are never answered in time cost the others more than half of theirs."""
    lateness, missed = Lateness(), []
    for _ in range(4000):
        missed.append(lateness.margin_of(0.1) < 0.02)
        lateness.answered(missed[-1])
    assert sum(missed[:100]) < 40 and sum(missed[2000:]) < 40
    for _ in range(1000):
        lateness.answered(True)
    assert lateness.margin_of(0.1) == pytest.approx(0.05)
    assert lateness.margin_of(-1.0) == 0
    for _ in range(200_000):
        lateness.answered(False)
    assert lateness.margin_of(0.1) == 0
