"""Intervals of medians hold the truth as often as they say, on timings whose distribution is known."""

import math
import os

import numpy as np
import pytest

from bench.results import Figure
from bench.timing import (
    CoresError,
    Estimate,
    Timing,
    interleaved,
    mean_ratio,
    over_processes,
    overhead,
    pinned,
)

ROUNDS, PER_ROUND = 12, 3


def _timing(rng: np.random.Generator, median: float, rounds: np.ndarray) -> Timing:
    """Log-normal runs with that median; what else the machine does slows down whole rounds."""
    noise = np.exp(0.05 * rng.standard_normal((len(rounds), PER_ROUND)))
    return Timing(median * rounds[:, None] * noise)


def _rounds(rng: np.random.Generator) -> np.ndarray:
    return np.exp(0.1 * rng.standard_normal(ROUNDS))


def _holds(estimate: Estimate, value: float) -> bool:
    return estimate.lo <= value <= estimate.hi


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    """95% of 300 is 285. Percentile bootstraps of 12 rounds are a little narrow: 0.9 is what they promise
    here. An interval over single runs, as if rounds did not matter, holds it in fewer than 0.8."""
    rng = np.random.default_rng(0)
    timings = [_timing(rng, 4.0, _rounds(rng)) for _ in range(300)]
    assert np.mean([_holds(t.estimate, 4.0) for t in timings]) >= 0.9
    single = [Timing(t.milliseconds.reshape(-1, 1)) for t in timings]
    assert np.mean([_holds(t.estimate, 4.0) for t in single]) < 0.8


def test_two_runs_agree_within_their_intervals() -> None:
    """Of 200 pairs of runs of the same thing, nearly all overlap; of things that differ by 20%, few do."""
    rng = np.random.default_rng(1)

    def overlapping(other: float) -> float:
        pairs = [[_timing(rng, m, _rounds(rng)).estimate for m in (4.0, other)] for _ in range(200)]
        return float(np.mean([a.lo <= b.hi and b.lo <= a.hi for a, b in pairs]))

    assert overlapping(4.0) > 0.95
    assert overlapping(4.8) < 0.5


def _processes(rng: np.random.Generator, median: float, count: int) -> list[Timing]:
    """Each is 5% off for good, by where its memory lies."""
    off = np.exp(0.05 * rng.standard_normal(count))
    return [_timing(rng, median * o, np.exp(0.02 * rng.standard_normal(4))) for o in off]


@pytest.mark.parametrize("count", [3, 5])
def test_an_interval_over_processes_holds_what_the_next_one_finds(count: int) -> None:
    """95% of 400 is 380 with a standard error of 4. The interval of one process, which does not know how far
    off it is, holds it in fewer than half."""
    rng = np.random.default_rng(3)
    runs = [_processes(rng, 4.0, count) for _ in range(400)]
    assert 0.92 <= np.mean([_holds(Timing.joined(run).estimate, 4.0) for run in runs]) <= 0.98
    assert np.mean([_holds(run[0].estimate, 4.0) for run in runs]) < 0.5


def test_runs_over_processes_agree_or_do_not() -> None:
    """What is the same overlaps in nearly all of 300 pairs of runs; what takes 30% longer, in few of them, by
    five processes; and their ratio, of which each process knows both, does not reach 1."""
    rng = np.random.default_rng(4)

    def overlapping(other: float) -> float:
        pairs = [[Timing.joined(_processes(rng, m, 5)) for m in (4.0, other)] for _ in range(300)]
        return float(np.mean([a.lo <= b.hi and b.lo <= a.hi for a, b in pairs]))

    assert overlapping(4.0) > 0.98 and overlapping(5.2) < 0.1
    ours = _processes(rng, 4.0, 5)
    theirs = [t.scaled(1.3) for t in ours]
    ratio = mean_ratio([(Timing.joined(theirs), Timing.joined(ours))])
    assert ratio.value == pytest.approx(1.3) and 1.29 < ratio.lo <= ratio.hi < 1.31


def test_what_few_processes_say() -> None:
    """By hand: logarithms 0 and 2 have the mean 1 and the standard error 1, and the quantile is 12.706."""
    found = over_processes([1.0, math.e**2])
    logs = np.log([found.value, found.lo, found.hi])
    assert logs == pytest.approx([1.0, 1 - 12.706, 1 + 12.706])
    figure = found.figure("a", "ms", 4)
    assert (figure.lo, figure.hi, figure.note) == (found.lo, found.hi, "Student's over 2 processes")
    assert over_processes([3.0]).figure("a", "ms", 2) == Figure(name="a", value=3.0, unit="ms", runs=2)
    none = over_processes([3.0, 0.0, 2.0])
    assert (none.value, none.lo, none.hi) == (0.0, 0.0, 3.0)


def test_models_that_fewer_processes_measured_are_taken_as_far_as_they_go() -> None:
    """The third process knows one pair alone, and is not asked."""
    one, two = (Timing(np.full((2, 2), ms)) for ms in (1.0, 2.0))
    twice = (Timing.joined([two, two]), Timing.joined([one, one]))
    thrice = (Timing.joined([two, two, one]), Timing.joined([one, one, one]))
    both = mean_ratio([twice, thrice])
    assert both.value == both.lo == both.hi == pytest.approx(2.0)
    assert thrice[0].runs == 12 and mean_ratio([thrice]).lo < 1.6


def test_a_ratio_is_resampled_in_pairs() -> None:
    """What slows down a round slows down both: their ratio is surer than either."""
    rng = np.random.default_rng(2)
    rounds = np.exp(rng.standard_normal(ROUNDS))
    slow, fast = _timing(rng, 6.0, rounds), _timing(rng, 2.0, rounds)
    ratio = mean_ratio([(slow, fast)])
    assert _holds(ratio, 3.0) and ratio.hi / ratio.lo < 1.25
    assert slow.hi / slow.lo > 2
    assert mean_ratio([(slow, fast), (fast, slow)]).value == pytest.approx(1.0)


def test_percentiles_and_scales() -> None:
    timing = Timing(np.arange(1.0, 101.0).reshape(10, 10))
    assert timing.runs == 100 and timing.median == 50.5 and timing.percentile(0.99).value > 98
    assert timing.scaled(2).lo == 2 * timing.lo <= timing.scaled(2).median <= 2 * timing.hi
    once = Timing(np.array([[3.0, 1.0, 2.0]]))  # one round: its runs are what there is
    assert (once.median, once.lo, once.hi) == (2.0, 1.0, 3.0)


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = interleaved(calls, rounds=2, per_round=2, warm=1, pause_s=0)
    assert "".join(order) == "aaabbbaaabbb"
    assert found["a"].milliseconds.shape == (2, 2)


def test_what_timing_adds_is_small() -> None:
    """Under a tenth of 2% of the tenth of a millisecond that the smallest models take."""
    assert 0 < overhead().median < 0.002


def test_a_process_is_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(CoresError, match="--cores 1000: this process may use"), pinned(1000):
        pass
