"""Counts of requests: what metrics, KServe's statistics and the status page are made of.

Every thread counts for itself, without a lock, and whoever reads adds the threads up: a request pays a few
list increments, and threads never wait for each other.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serving.monitoring.buckets import ROWS, SECONDS
from serving.monitoring.timeline import PHASES, Timeline

REQUEST, PREDICT = "request", "predict"
"""Histograms beside those of the phases: the whole request; host program, waiting and dense program."""
HISTOGRAMS = (REQUEST, PREDICT, *PHASES)

COPIES = ("decode", "arguments", "results", "joins", "encode")
"""Where bytes are copied; docs/monitoring.md says what each is."""


class Key(NamedTuple):
    """What requests are counted by. Requests that found no model have the name "" and version 0."""

    model: str
    version: int
    api: str
    entrypoint: str


@dataclass
class Counts:
    """Of requests of one kind. `seconds[h][b]` are requests of `HISTOGRAMS[h]` in bucket b of `SECONDS`,
    `sums[h]` their seconds; `rows[b]` are requests by candidates in the buckets of `ROWS`."""

    seconds: list[list[int]] = field(default_factory=lambda: [[0] * (len(SECONDS) + 1) for _ in HISTOGRAMS])
    sums: list[float] = field(default_factory=lambda: [0.0] * len(HISTOGRAMS))
    rows: list[int] = field(default_factory=lambda: [0] * (len(ROWS) + 1))
    candidates: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    default_rows: Counter[str] = field(default_factory=Counter)
    copied: list[int] = field(default_factory=lambda: [0] * len(COPIES))
    transfers: int = 0
    fail_seconds: float = 0.0
    last_ms: int = 0
    """Time of the last request, milliseconds since the epoch."""

    @property
    def success(self) -> int:
        """Requests that were answered."""
        return self.statuses["OK"]

    @property
    def fail(self) -> int:
        """Requests that were refused."""
        return self.statuses.total() - self.success

    def sum_of(self, histogram: str) -> float:
        """Seconds of a histogram's requests."""
        return self.sums[HISTOGRAMS.index(histogram)]

    def count_of(self, histogram: str) -> int:
        """Requests of a histogram: of a phase, refused ones that went through it are among them."""
        return sum(self.seconds[HISTOGRAMS.index(histogram)])

    def observe(self, timeline: Timeline) -> None:
        """Counts one request. Only answered ones are in the histograms of requests and candidates; a phase
        that a refused one went through is in that of the phase."""
        whole = timeline.ended - timeline.began
        self.statuses[timeline.status] += 1
        self.last_ms = time.time_ns() // 1_000_000
        if timeline.reason:
            self.reasons[timeline.reason] += 1
            self.fail_seconds += whole
        else:
            self._time(0, whole)
            self.rows[bisect_left(ROWS, timeline.candidates)] += 1
            self.candidates += timeline.candidates
            if timeline.encode is not None and timeline.decode is not None:
                self._time(1, timeline.encode[0] - timeline.decode[1])
        for number, seconds in enumerate(timeline.phases(), 2):
            if seconds is not None:
                self._time(number, seconds)
        copied, moved = self.copied, timeline.moved
        copied[0] += timeline.decoded_bytes
        copied[4] += timeline.encoded_bytes
        if moved is not None:
            copied[1] += moved.argument_bytes
            copied[2] += moved.result_bytes
            copied[3] += moved.joined_bytes
            self.transfers += moved.transfers
        if timeline.remarks:
            self.remarks.update(timeline.remarks.keys())
            self.default_rows.update(timeline.default_rows)

    def _time(self, histogram: int, seconds: float) -> None:
        self.seconds[histogram][bisect_left(SECONDS, seconds)] += 1
        self.sums[histogram] += seconds

    def add(self, other: "Counts") -> None:
        """Adds what another one counted."""
        self.seconds = [_sum(a, b) for a, b in zip(self.seconds, other.seconds, strict=True)]
        self.sums = _sum(self.sums, other.sums)
        self.rows = _sum(self.rows, other.rows)
        self.copied = _sum(self.copied, other.copied)
        self.candidates += other.candidates
        self.transfers += other.transfers
        self.fail_seconds += other.fail_seconds
        self.last_ms = max(self.last_ms, other.last_ms)
        for name in ("statuses", "reasons", "remarks", "default_rows"):
            getattr(self, name).update(dict(getattr(other, name)))


class RequestCounts:
    """The counts of a server. Thread-safe."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[dict[Key, Counts]] = []
        self._retired: dict[Key, Counts] = {}

    def observe(self, timeline: Timeline) -> None:
        """Counts a request that has ended, unless it runs no model."""
        if not timeline.api:
            return
        own: dict[Key, Counts] | None = getattr(self._local, "counts", None)
        if own is None:
            own = self._local.counts = {}
            with self._lock:
                self._threads.append(own)
        key = Key(timeline.model, timeline.version, timeline.api, timeline.entrypoint)
        counts = own.get(key)
        if counts is None:
            counts = own[key] = Counts()
        counts.observe(timeline)

    def read(self) -> dict[Key, Counts]:
        """The sums of all threads. Counts of retired versions are under version 0 of their model."""
        found: dict[Key, Counts] = {}
        with self._lock:
            for counts in (self._retired, *self._threads):
                for key, value in list(counts.items()):
                    found.setdefault(key, Counts()).add(value)
        return found

    def of_versions(self) -> dict[tuple[str, int], Counts]:
        """The same for each version of each model, whatever the call."""
        found: dict[tuple[str, int], Counts] = {}
        for key, counts in self.read().items():
            found.setdefault((key.model, key.version), Counts()).add(counts)
        return found

    def settle(self, versions: Iterable[tuple[str, int]]) -> None:
        """Adds up what all threads counted for versions that answer no more: a read costs as much for each
        thread as for each version, and a server under load has many of both."""
        self._gather(versions, self._threads, lambda key: key)

    def retire(self, versions: Iterable[tuple[str, int]]) -> None:
        """Puts versions that are gone for good together, so that a server that swaps versions for months does
        not grow; sums over a model stay what they were."""
        self._gather(versions, (*self._threads, self._retired), lambda key: key._replace(version=0))

    def _gather(
        self,
        versions: Iterable[tuple[str, int]],
        places: Sequence[dict[Key, Counts]],
        under: Callable[[Key], Key],
    ) -> None:
        """Takes what is counted for versions out of these places, and adds it up under other keys."""
        wanted = set(versions)
        if not wanted:
            return
        with self._lock:
            for counts in places:
                for key in [key for key in list(counts) if key[:2] in wanted]:
                    self._retired.setdefault(under(key), Counts()).add(counts.pop(key))


def _sum(a: list, b: list) -> list:
    return [x + y for x, y in zip(a, b, strict=True)]


def as_array(counts: Counts) -> np.ndarray:
    """`[len(HISTOGRAMS), len(SECONDS) + 1]` int64 of its requests by seconds."""
    return np.array(counts.seconds, np.int64)
