"""Times several ways to do one task side by side."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, from `runs` calls."""

    median: float
    lo: float
    """5th percentile."""
    hi: float
    """95th percentile."""
    runs: int


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
    """Times every call in turn (A B C A B C): what else the machine does meets all of them alike.

    Args:
        rounds: turns of each call.
        per_round: timed runs of one turn.
        warm: untimed runs that begin a turn: the others have taken its place in the caches.
        pause_s: seconds before a turn; thread pools of some engines spin for a moment after their last run,
            which would be charged to the next one.
        advance: called after each turn.
        clock: seconds; `time.process_time` counts what the process's threads worked, whatever else runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause_s)
            for _ in range(warm):
                call()
            for _ in range(per_round):
                start = clock()
                call()
                seconds[name].append(clock() - start)
            advance()
    return {name: _timing(np.array(found) * 1e3) for name, found in seconds.items()}


def _timing(milliseconds: np.ndarray) -> Timing:
    lo, hi = np.percentile(milliseconds, [5, 95])
    return Timing(float(np.median(milliseconds)), float(lo), float(hi), len(milliseconds))
