"""The order of waiting jobs: by priority, then fair between keys, then by deadline.

Fairness is start-time fair queueing (Goyal, Vin, Cheng, 1996) with equal weights: the key that was served the
least stream time goes next, and one that was idle starts from where the others are: idleness earns nothing.
A version that is to prove itself goes after all others, except for a share of the stream time that it waited
through: a server with too much to do must still come to serve the version that replaces what it serves.
"""

import itertools
import math
from bisect import insort
from collections.abc import Iterator

from serving.scheduling.jobs import Job
from serving.scheduling.urgency import PROOF

PROOF_SHARE = 0.05
"""Of the stream time, while the requests of a version that is to prove itself wait for it."""
_PROOF_DUE_SECONDS = 0.01
"""The most that they may have waited for: they never take more at once."""

_Entry = tuple[int, float, int, Job]
"""Negated priority, deadline, order of arrival, job: entries never compare jobs."""


class Waiting:
    """Jobs that have calls to give. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[object, list[_Entry]] = {}
        self._count = 0
        self._served: dict[object, float] = {}
        self._proof_due = 0.0
        """Stream seconds that are the share of proofs, and that they did not have."""
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        """Each key's jobs, the most urgent first."""
        return (entry[3] for entries in self._entries.values() for entry in entries)

    def add(self, job: Job) -> None:
        """Puts a job behind those that are as urgent."""
        if job.key not in self._entries:
            behind = min((self._served[key] for key in self._entries), default=0.0)
            self._served[job.key] = max(self._served.get(job.key, 0.0), behind)
            self._entries[job.key] = []
        entry = -job.urgency.priority, job.urgency.deadline, next(self._numbers), job
        insort(self._entries[job.key], entry)
        self._count += 1

    def remove(self, job: Job) -> None:
        """Takes a job out; nothing happens if it is not in."""
        entries = self._entries.get(job.key, ())
        for number, entry in enumerate(entries):
            if entry[3] is job:
                del self._entries[job.key][number]
                self._count -= 1
                break
        if not entries:
            self._entries.pop(job.key, None)

    def of(self, key: object) -> Iterator[Job]:
        """A key's jobs, the most urgent first."""
        return (entry[3] for entry in self._entries.get(key, ()))

    def in_order(self) -> Iterator[Job]:
        """The first job of each key, in the order in which keys go."""
        keys = list(self._entries)
        if len(keys) > 1:
            keys.sort(key=self._rank)
        return (self._entries[key][0][3] for key in keys)

    def _rank(self, key: object) -> tuple[float, float]:
        negated = self._entries[key][0][0]
        due = negated == -PROOF and self._proof_due > 0
        return -math.inf if due else negated, self._served[key]

    def charge(self, job: Job, seconds: float) -> None:
        """Stream time that a job was served."""
        self._served[job.key] = self._served.get(job.key, 0.0) + seconds
        proofs = sum(entries[0][0] == -PROOF for entries in self._entries.values())
        if job.urgency.priority != PROOF:
            due = self._proof_due + PROOF_SHARE * seconds * (proofs > 0)
            self._proof_due = min(due, _PROOF_DUE_SECONDS)
        elif proofs < len(self._entries):  # what nobody else wants is no debt
            self._proof_due -= seconds

    def forget(self, key: object) -> None:
        """Drops what is known of a key whose engine closed."""
        self._count -= len(self._entries.pop(key, ()))
        self._served.pop(key, None)
