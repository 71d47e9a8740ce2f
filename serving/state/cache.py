"""What was computed for requests, kept within bytes and for a time. One for all models of a server."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from serving.errors import DeadlineError
from serving.scheduling import Urgency
from serving.scheduling.urgency import LATE

_FEW = 1000

Key = tuple[int, bytes]
"""An owner's number and a digest."""


@dataclass
class StateCounts:
    """What an owner's lookups found. `shared` are hits that waited for the one that computed; `evictions`
    made room for others, `expirations` were too old or of an earlier epoch of the tables; `entries` and
    `bytes` are there now."""

    hits: int = 0
    shared: int = 0
    misses: int = 0
    evictions: int = 0
    expirations: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Entry:
    """A request's features, and what was computed of them at an epoch of the model's tables; `value` is None
    where that is not to be kept. `bytes` are those of both."""

    epoch: int
    features: Mapping[str, np.ndarray]
    value: Any
    bytes: int
    expires: float = 0.0


@dataclass
class _Flight:
    """A computation that runs now."""

    priority: int
    entry: Entry | None = None
    done: threading.Event = field(default_factory=threading.Event)


class StateCache:
    """Entries by owner and digest: at most `max_bytes` of them, the one that was not used for longest goes
    first, and none is used after `ttl_s` seconds. Thread-safe."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic):
        self.max_bytes, self.ttl_s, self._clock = max_bytes, ttl_s, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._ages: deque[tuple[float, Key]] = deque()
        """When each entry expires, in that order; those that are gone are among them."""
        self._flights: dict[tuple[Key, int], _Flight] = {}
        self._counts: dict[int, StateCounts] = {}
        self._bytes = self._owners = 0

    @property
    def bytes(self) -> int:
        """Of all entries."""
        return self._bytes

    def new_owner(self) -> int:
        """A number for the entries of one version of a model."""
        with self._lock:
            self._owners += 1
            self._counts[self._owners] = StateCounts()
            return self._owners

    def counts(self, owner: int) -> StateCounts:
        """A copy; nothing after `drop`."""
        with self._lock:
            return StateCounts(**vars(self._counts.get(owner, StateCounts())))

    def drop(self, owner: int) -> None:
        """Ends an owner with its entries."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                self._remove(key)
            self._counts.pop(owner, None)

    def find(self, key: Key) -> Entry | None:
        """An entry of any epoch, without counting."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.expires <= self._clock():
                return None
            self._entries.move_to_end(key)
            return entry

    def remaining(self, entry: Entry) -> float:
        """Seconds until an entry expires; 0 for one that is not kept."""
        return max(entry.expires - self._clock(), 0.0)

    def get(
        self,
        key: Key,
        epoch: int,
        make: Callable[[], Entry],
        urgency: Urgency,
        *,
        for_seconds: float = 0.0,
    ) -> tuple[Entry, bool]:
        """The entry of an epoch, and whether it was there: one that lives for at least `for_seconds`, or else
        what `make` gives, called once for all who ask for it meanwhile, which is kept until it `expires`.

        A request does not wait for one of lower priority, nor is it given the failure of another: that may
        only have had less time. While it waits, others have its turn.

        Raises `DeadlineError` while it waits, what `Turns.turn` does when it takes its turn again, and what
        `make` does.
        """
        while True:
            with self._lock:
                entry = self._fresh(key, epoch, for_seconds)
                if entry is not None:
                    return entry, True
                flight = self._flights.get((key, epoch))
                if flight is None:
                    self._count(key, misses=1)
                    flight = self._flights[key, epoch] = _Flight(urgency.priority)
                    break
                if flight.priority < urgency.priority:
                    self._count(key, misses=1)
                    flight = None
                    break
            with urgency.turn_given_back():
                remaining = urgency.remaining()
                if not flight.done.wait(None if remaining == float("inf") else max(remaining, 0.0)):
                    raise DeadlineError(LATE)
            if flight.entry is not None:
                if flight.entry.value is not None:
                    with self._lock:
                        self._count(key, hits=1, shared=1)
                    return flight.entry, True
                # Nothing of it can be shared: one after the other they would wait for each other.
                with self._lock:
                    self._count(key, misses=1)
                flight = None
                break
            urgency.check()
        try:
            entry = make()
            with self._lock:
                entry = self._keep(key, entry)
            if flight is not None:
                flight.entry = entry
            return entry, False
        finally:
            if flight is not None:
                with self._lock:
                    del self._flights[key, epoch]
                flight.done.set()

    # --- inside; `_lock` is held ---

    def _fresh(self, key: Key, epoch: int, for_seconds: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        remaining = entry.expires - self._clock()
        if remaining > 0 and remaining >= for_seconds and entry.epoch == epoch and entry.value is not None:
            self._entries.move_to_end(key)
            self._count(key, hits=1)
            return entry
        if remaining <= 0:
            self._expire(key)
        return None

    def _keep(self, key: Key, made: Entry) -> Entry:
        now = self._clock()
        entry = replace(made, expires=now + self.ttl_s)
        while self._ages and self._ages[0][0] <= now:
            expires, old = self._ages.popleft()
            if old in self._entries and self._entries[old].expires == expires:
                self._expire(old)
        there = self._entries.get(key)
        # Its owner has ended, the tables have changed since it began, it has no value and the one there has,
        # or it is larger than the cache: what is there already stays for as long as was said.
        if (
            key[0] not in self._counts
            or (there is not None and there.epoch > entry.epoch)
            or (there is not None and there.epoch == entry.epoch and entry.value is None is not there.value)
            or entry.bytes > self.max_bytes
        ):
            return replace(made, expires=now if there is None else there.expires)
        if there is not None:
            self._remove(key)
        self._entries[key] = entry
        self._ages.append((entry.expires, key))
        if len(self._ages) > 2 * len(self._entries) + _FEW:  # entries that made room for others
            self._ages = deque(sorted((one.expires, each) for each, one in self._entries.items()))
        self._bytes += entry.bytes
        self._count(key, entries=1, bytes=entry.bytes)
        while self._bytes > self.max_bytes:
            oldest = next(iter(self._entries))
            self._remove(oldest)
            self._count(oldest, evictions=1)
        return entry

    def _expire(self, key: Key) -> None:
        self._remove(key)
        self._count(key, expirations=1)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._bytes -= entry.bytes
        self._count(key, entries=-1, bytes=-entry.bytes)

    def _count(self, key: Key, **more: int) -> None:
        counts = self._counts.get(key[0])
        for name, value in more.items() if counts is not None else ():
            setattr(counts, name, getattr(counts, name) + value)
