"""The order of waiting jobs: by priority, then fair between keys, then by deadline.

Fairness is start-time fair queueing (Goyal, Vin, Cheng, 1996) with equal weights: the key that was served the
least stream time goes next, and one that was idle starts from where the others are: idleness earns nothing.
A version that is to prove itself goes after all others, except for a share of the stream time: a server with
too much to do must still come to serve the version that replaces what it serves.
"""

import itertools
import math
from bisect import insort
from collections.abc import Iterator

from serving.scheduling.jobs import Job
from serving.scheduling.urgency import PROOF

PROOF_SHARE = 0.05
"""Of the stream time, for the requests of versions that are to prove themselves while others come."""
_LEAST_DUE, _MOST_DUE = -0.2, 0.001
"""Seconds that they owe, and that each stream owes them, at most. What they took while nobody else wanted it
is soon forgiven, and what they left is not saved up: a client's request would wait for calls in a row."""

_Entry = tuple[int, float, int, Job]
"""Negated priority, when it is due, order of arrival, job: entries never compare jobs."""


class Waiting:
    """Jobs that have calls to give. Not thread-safe."""

    def __init__(self, streams: int) -> None:
        """For so many streams."""
        self._streams = streams
        self._entries: dict[object, list[_Entry]] = {}
        self._count = self._background = 0
        self._served: dict[object, float] = {}
        self._due, self._due_at = 0.0, 0.0
        """Stream seconds that are the share of proofs and that they did not have, and when that was so."""
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self._count

    @property
    def clients(self) -> int:
        """Jobs of clients' requests."""
        return self._count - self._background

    @property
    def background(self) -> int:
        """Jobs of the server's own requests."""
        return self._background

    def __iter__(self) -> Iterator[Job]:
        """Each key's jobs, the most urgent first."""
        return (entry[3] for entries in self._entries.values() for entry in entries)

    def add(self, job: Job) -> None:
        """Puts a job behind those that are as urgent."""
        if job.key not in self._entries:
            behind = min((self._served[key] for key in self._entries), default=0.0)
            self._served[job.key] = max(self._served.get(job.key, 0.0), behind)
            self._entries[job.key] = []
        entry = -job.urgency.priority, job.urgency.due(job.arrived), next(self._numbers), job
        insort(self._entries[job.key], entry)
        self._count += 1
        self._background += job.urgency.priority <= PROOF

    def remove(self, job: Job) -> None:
        """Takes a job out; nothing happens if it is not in."""
        entries = self._entries.get(job.key, ())
        for number, entry in enumerate(entries):
            if entry[3] is job:
                del self._entries[job.key][number]
                self._count -= 1
                self._background -= job.urgency.priority <= PROOF
                break
        if not entries:
            self._entries.pop(job.key, None)

    def of(self, key: object) -> Iterator[Job]:
        """A key's jobs, the most urgent first."""
        return (entry[3] for entry in self._entries.get(key, ()))

    def in_order(self, now: float) -> Iterator[Job]:
        """The first job of each key, in the order in which keys go."""
        keys = list(self._entries)
        if len(keys) > 1:
            first = -PROOF if self.is_proof_due(now) else None

            def rank(key: object) -> tuple[float, float]:
                negated = self._entries[key][0][0]
                return -math.inf if negated == first else negated, self._served[key]

            keys.sort(key=rank)
        return (self._entries[key][0][3] for key in keys)

    def is_proof_due(self, now: float) -> bool:
        """Whether the next call is of a version that is to prove itself, if one waits."""
        due = self._due + PROOF_SHARE * self._streams * (now - self._due_at)
        self._due, self._due_at = min(due, _MOST_DUE * self._streams), now
        return due > 0

    def charge(self, job: Job, seconds: float) -> None:
        """Stream time that a job was served."""
        self._served[job.key] = self._served.get(job.key, 0.0) + seconds
        if job.urgency.priority == PROOF:
            self._due = max(self._due - seconds, _LEAST_DUE)

    def forget(self, key: object) -> None:
        """Drops what is known of a key whose engine closed."""
        entries = self._entries.pop(key, ())
        self._count -= len(entries)
        self._background -= sum(-entry[0] <= PROOF for entry in entries)
        self._served.pop(key, None)
