"""Times several ways to do one task side by side, and says how sure the medians are.

Calls take turns (A B C A B C), so that what else the machine does meets all of them alike. Intervals are
percentile bootstraps (Efron, 1979) over whole rounds: runs of one round share what the machine did then, so a
round is drawn or left out as a whole. The rounds that are drawn are the same for every call, so a ratio of
two calls of one measurement is resampled in pairs.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxrank.errors import JaxrankError
from serving.cores import usable_core_numbers

CONFIDENCE = 0.95
"""Of all intervals."""
RESAMPLES = 1000
_SEED = 4_242


class CoresError(JaxrankError):
    """There are fewer cores than a measurement was to use."""


@dataclass(frozen=True)
class Estimate:
    """A value, and the bounds that hold it with `CONFIDENCE`."""

    value: float
    lo: float
    hi: float

    @classmethod
    def of(cls, value: float, resampled: np.ndarray) -> "Estimate":
        """From the values of resampled measurements, `[n]`."""
        tail = (1 - CONFIDENCE) / 2
        lo, hi = np.quantile(resampled, [tail, 1 - tail])
        return cls(value, min(float(lo), value), max(float(hi), value))


@dataclass(frozen=True, eq=False)
class Timing:
    """What one call took: milliseconds `[rounds, runs of a round]`."""

    milliseconds: np.ndarray

    @property
    def runs(self) -> int:
        return self.milliseconds.size

    @property
    def median(self) -> float:
        return self.estimate.value

    @property
    def lo(self) -> float:
        """The median's lower bound."""
        return self.estimate.lo

    @property
    def hi(self) -> float:
        """The median's upper bound."""
        return self.estimate.hi

    @cached_property
    def estimate(self) -> Estimate:
        """Of the median."""
        return Estimate.of(float(np.median(self.milliseconds)), self.medians)

    @cached_property
    def medians(self) -> np.ndarray:
        """Of resampled rounds, `[RESAMPLES]`."""
        return self._resampled(0.5)

    def percentile(self, share: float) -> Estimate:
        """The time within which that share of the runs ends; 0.5 is the median."""
        return Estimate.of(float(np.quantile(self.milliseconds, share)), self._resampled(share))

    def scaled(self, factor: float) -> "Timing":
        """Every run took `factor` times as long."""
        return Timing(self.milliseconds * factor)

    def _resampled(self, share: float) -> np.ndarray:
        rounds = self.milliseconds if len(self.milliseconds) > 1 else self.milliseconds.T
        drawn = np.random.default_rng(_SEED).integers(0, len(rounds), (RESAMPLES, len(rounds)))
        return np.quantile(rounds[drawn].reshape(RESAMPLES, -1), share, axis=1)


def mean_ratio(pairs: Sequence[tuple[Timing, Timing]]) -> Estimate:
    """How many times longer the first of a pair takes, by medians; the geometric mean over the pairs.

    The timings of a pair are of one measurement, or independent.
    """
    logs = [np.log(a.median / b.median) for a, b in pairs]
    resampled = np.mean([np.log(a.medians / b.medians) for a, b in pairs], axis=0)
    return Estimate.of(float(np.exp(np.mean(logs))), np.exp(resampled))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    per_round: int = 1,
    warm: int = 1,
    pause_s: float = 0.005,
    advance: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every call in turn.

    Args:
        rounds: turns of each call.
        per_round: timed runs of one turn.
        warm: untimed runs that begin a turn: the others have taken its place in the caches.
        pause_s: seconds before a turn; thread pools of some engines spin for a moment after their last run,
            which would be charged to the next one.
        advance: called after each turn.
        clock: seconds; `time.process_time` counts what the process's threads worked, whatever else runs.
    """
    seconds = {name: np.empty((rounds, per_round)) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            time.sleep(pause_s)
            for _ in range(warm):
                call()
            for run in range(per_round):
                start = clock()
                call()
                seconds[name][turn, run] = clock() - start
            advance()
    return {name: Timing(found * 1e3) for name, found in seconds.items()}


def overhead() -> Timing:
    """What timing adds to every run: a call that does nothing."""
    return interleaved({"nothing": lambda: None}, rounds=50, per_round=20, pause_s=0)["nothing"]


@contextmanager
def pinned(count: int | None = None) -> Iterator[list[int]]:
    """Keeps this process, and what it starts meanwhile, on the first `count` cores of those that it may use;
    all of them without a number. Gives their numbers; none on a system that does not pin.

    Threads that exist are moved, too. Raises `CoresError` where there are fewer cores.
    """
    cores = usable_core_numbers()
    if count is not None and not 1 <= count <= len(cores):
        raise CoresError(f"--cores {count}: this process may use {len(cores)}")
    if not cores:
        yield cores
        return
    before = os.sched_getaffinity(0)
    _move(set(cores[:count]))
    try:
        yield cores[:count]
    finally:
        _move(before)


def _move(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:  # it has just ended
            continue
