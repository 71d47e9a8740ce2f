"""Times several ways to do one thing side by side, in turns: what else the machine does meets all alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def interleaved(
    calls: Mapping[K, Callable[[], object]],
    *,
    warm: int,
    fewest: int,
    most: int,
    seconds: float = 0.0,
    again: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, list[float]]:
    """Seconds of each call, round by round.

    Args:
        warm: untimed calls of each before the first round.
        fewest, most: rounds; beyond the fewest only while fewer `seconds` have passed.
        again: whether an untimed call comes before each timed one, to take the cache back.
        clock: what a call is timed with.
    """
    times: dict[K, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warm):
            call()
    start = time.perf_counter()
    for done in range(most):
        if done >= fewest and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            if again:
                call()
            before = clock()
            call()
            times[name].append(clock() - before)
    return times
