"""Times several ways to do one task side by side, and says how sure the medians are.

Calls take turns (A B C A B C), so that what else the machine does meets all of them alike. Two processes that
do the same are not alike (where their memory lies, what the machine does at that minute), and one process
cannot know by how much: what is to hold for the next run, too, is measured in several fresh processes
(bench/processes.py), and its interval is Student's over these. The intervals of a single process are
percentile bootstraps (Efron, 1979) over whole rounds: runs of one round share what the machine did then, so a
round is drawn or left out as a whole. Either way, a ratio of two calls that took turns is taken in pairs.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.results import Figure
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
    """A value, and the bounds that hold it with `CONFIDENCE`; `interval` says how they were found."""

    value: float
    lo: float
    hi: float
    interval: str

    @classmethod
    def of(cls, value: float, resampled: np.ndarray) -> "Estimate":
        """From the values of resampled measurements, `[n]`."""
        tail = (1 - CONFIDENCE) / 2
        lo, hi = np.quantile(resampled, [tail, 1 - tail])
        return cls(
            value, min(float(lo), value), max(float(hi), value), "bootstrap over rounds of one process"
        )

    def figure(self, name: str, unit: str, runs: int, note: str = "") -> Figure:
        """As results have it, without bounds where there are none."""
        bounds = {"lo": self.lo, "hi": self.hi} if self.hi < math.inf else {}
        note = "; ".join(filter(None, (note, self.interval)))
        return Figure(name=name, value=self.value, unit=unit, runs=runs, note=note, **bounds)


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantiles of Student's distribution with 1, 2, ... degrees of freedom; for more, the last is a little
wide."""


def over_processes(values: Sequence[float] | np.ndarray) -> Estimate:
    """The geometric mean of what processes found, one value of each, and Student's interval of its
    logarithm. Where one found nothing (0), the mean is 0, and the bounds are the least and the largest. One
    process says nothing of the next: no bounds."""
    found = np.asarray(values, float)
    if not (found > 0).all():
        return Estimate(0.0, 0.0, float(found.max()), f"the range of {len(found)} processes")
    if len(found) == 1:
        return Estimate(float(found[0]), 0.0, math.inf, "")
    logs = np.log(found)
    reach = _STUDENT[min(len(logs) - 2, len(_STUDENT) - 1)] * logs.std(ddof=1) / len(logs) ** 0.5
    value, lo, hi = (float(np.exp(logs.mean() + by)) for by in (0.0, -reach, reach))
    return Estimate(value, lo, hi, f"Student's over {len(found)} processes")


@dataclass(frozen=True, eq=False)
class Timing:
    """What one call took: milliseconds `[rounds, runs of a round]` in one process, or `[processes, rounds,
    runs of a round]`."""

    milliseconds: np.ndarray

    @classmethod
    def joined(cls, timings: Sequence["Timing"]) -> "Timing":
        """Of one call, as many runs of it in each of several processes, one timing of each."""
        return cls(np.stack([t.milliseconds for t in timings]))

    @property
    def of_processes(self) -> bool:
        """Whether it knows of several processes; also where only one of them has run so far."""
        return self.milliseconds.ndim == 3

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
        """Of the median; of several processes, the geometric mean of theirs."""
        return self.percentile(0.5)

    @cached_property
    def medians(self) -> np.ndarray:
        """Of each process, or, in a single one, of resampled rounds, `[RESAMPLES]`."""
        return self._quantiles(0.5)

    def percentile(self, share: float) -> Estimate:
        """The time within which that share of the runs ends; 0.5 is the median."""
        found = self.medians if share == 0.5 else self._quantiles(share)
        if self.of_processes:
            return over_processes(found)
        return Estimate.of(float(np.quantile(self.milliseconds, share)), found)

    def scaled(self, factor: float) -> "Timing":
        """Every run took `factor` times as long."""
        return Timing(self.milliseconds * factor)

    def _quantiles(self, share: float) -> np.ndarray:
        if self.of_processes:
            return np.quantile(self.milliseconds, share, axis=(1, 2))
        rounds = self.milliseconds if len(self.milliseconds) > 1 else self.milliseconds.T
        drawn = np.random.default_rng(_SEED).integers(0, len(rounds), (RESAMPLES, len(rounds)))
        return np.quantile(rounds[drawn].reshape(RESAMPLES, -1), share, axis=1)


def mean_ratio(pairs: Sequence[tuple[Timing, Timing]]) -> Estimate:
    """How many times longer the first of a pair takes, by medians; the geometric mean over the pairs.

    The timings of a pair are of one measurement, or independent. Of processes, the first ones are taken, as
    many as all pairs have.
    """
    logs = [np.log(a.medians / b.medians) for a, b in pairs]
    fewest = min(len(found) for found in logs)
    ratios = np.exp(np.mean([found[:fewest] for found in logs], axis=0))
    if pairs[0][0].of_processes:
        return over_processes(ratios)
    return Estimate.of(float(np.exp(np.mean([np.log(a.median / b.median) for a, b in pairs]))), ratios)


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
