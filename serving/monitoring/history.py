"""The last minutes of a server, second by second, for the status page."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from serving.monitoring.counts import RequestCounts, as_array
from serving.scheduling import StreamLoad
from serving.versions import VersionStatus

SECONDS_KEPT = 120


@dataclass(frozen=True)
class Moment:
    """The counters at one moment, seconds of the monotonic clock.

    Attributes:
        buckets: by model and version, requests by seconds, as `counts.as_array`.
        refused: by model and version.
        cpu_seconds: that `--cpu-target` counts.
    """

    at: float
    buckets: Mapping[tuple[str, int], np.ndarray]
    refused: Mapping[tuple[str, int], int]
    loads: Mapping[str, StreamLoad]
    resident_bytes: int
    cpu_seconds: float


class History:
    """A moment for every second of the last two minutes, taken by a thread of its own."""

    def __init__(
        self,
        counts: RequestCounts,
        loads: Callable[[], Mapping[str, StreamLoad]],
        resident: Callable[[], int],
        cpu: Callable[[], float],
        known: Callable[[], Mapping[tuple[str, int], VersionStatus]],
        seconds: float = 1.0,
    ):
        """Counts of models and versions that are no longer `known` are put together, too."""
        self._known = known
        self._counts, self._loads, self._resident, self._cpu = counts, loads, resident, cpu
        self._moments = deque([self._now()], maxlen=SECONDS_KEPT + 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="history", daemon=True)
        self._thread.start()

    def moments(self) -> list[Moment]:
        """The oldest first; the last one is of now."""
        return [*self._moments, self._now()]

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self, seconds: float) -> None:
        ended: set[tuple[str, int]] = set()
        while not self._stop.wait(seconds):
            now = self._now()
            self._moments.append(now)
            seen = {key for key in now.buckets if key[1]}
            if seen:
                known = self._known()
                self._counts.retire(key for key in seen if key not in known)
                # A request of a version that has just ended may still be counted.
                self._counts.settle(ended)
                ended = {key for key in seen if key in known and known[key].state == "END"}

    def _now(self) -> Moment:
        counted = self._counts.of_versions()
        return Moment(
            time.monotonic(),
            {key: as_array(counts) for key, counts in counted.items()},
            {key: counts.fail for key, counts in counted.items()},
            self._loads(),
            self._resident(),
            self._cpu(),
        )
