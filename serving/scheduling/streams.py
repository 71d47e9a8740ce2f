"""Threads for the streams of a device, and which call each of them runs next."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from serving.background import low
from serving.errors import CancelledError, DeadlineError, OverloadedError
from serving.monitoring.timeline import Moved
from serving.scheduling.costs import Costs
from serving.scheduling.jobs import Call, Job
from serving.scheduling.lateness import Lateness
from serving.scheduling.load import KeyLoad, StreamLoad
from serving.scheduling.order import Waiting
from serving.scheduling.urgency import GONE, LATE, PROOF, Urgency

_T = TypeVar("_T")

_TRY_EVERY = 4
"""Of the requests that seem too large for their deadlines on a device that does nothing, one in so many is
tried."""

MAX_SHARED_REQUESTS = 64
"""Of one shared call."""

MAX_WAITING = 4096
"""Of `SchedulingOptions.max_waiting`: each request waits on a thread."""

_QUIET_SECONDS = 0.05
"""After a client's request, in which a version that is to prove itself takes its share only: a call that runs
is not interrupted for the next request."""

_HAS_AFFINITY = hasattr(os, "sched_getaffinity")
# The core that a thread runs on; `PyDLL` keeps the GIL for a call of nanoseconds.
_current_core = ctypes.PyDLL(None).sched_getcpu if _HAS_AFFINITY else None


@dataclass(frozen=True)
class SchedulingOptions:
    """How requests wait for a device.

    Attributes:
        max_waiting: requests that may wait, for their turn (`turns.py`) or for a device; more are refused.
        max_delay: seconds that a request waits for others to share its call with. Those that wait for a
            stream share calls whatever this is.
        max_shared_rows: candidates, with padding, of a shared call. What sharing saves is the fixed cost of a
            call, a small part of so many rows.
    """

    max_waiting: int = 64
    max_delay: float = 0.0
    max_shared_rows: int = 512


@dataclass
class _Counts:
    """Jobs of one key that began, the seconds that they had waited, and those of their calls."""

    started: int = 0
    waited: float = 0.0
    seconds: float = 0.0


class StreamScheduler:
    """A thread for each stream of one device. All models on the device share them.

    On a CPU the threads are pinned, one core for each stream, and a caller whose request goes first runs it
    on its own thread, on the stream of the core that it is on when that one is free: waking another thread
    takes longer than a small request, and a stream's buffers lie in that core's caches, which makes a request
    of 200 candidates 3-8% faster. Other streams take calls of that request while it does.
    """

    def __init__(self, streams: int, *, on_cpu: bool, options: SchedulingOptions | None = None):
        """`streams` are the calls that run at once."""
        options = options or SchedulingOptions()
        self.streams = streams
        self._max_waiting, self._max_delay = options.max_waiting, options.max_delay
        self._max_shared_rows = options.max_shared_rows
        self._cores = sorted(os.sched_getaffinity(0)) if on_cpu and _HAS_AFFINITY else []
        self._lock = threading.Lock()
        self._wake = [threading.Condition(self._lock) for _ in range(streams)]
        self._free = list(range(streams))
        """Streams that run nothing; the one that was used last is last."""
        self._waiting, self._costs, self._closed = Waiting(streams), Costs(), False
        self._quiet_at = 0.0
        """When clients have sent nothing for a while."""
        self._lateness: dict[tuple[object, int], Lateness] = {}
        """By key and priority: who is overtaken is late by another measure than those who overtake."""
        self._running: dict[int, tuple[Job, float]] = {}
        """By stream, the job whose call runs there, and since when."""
        self._doubted: dict[object, int] = {}
        """Requests of a key that were refused while nothing ran, since one was tried."""
        self._loads: dict[object, _Counts] = {}
        self._seconds = 0.0
        """That calls of all keys took."""
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"stream-{n}", daemon=True)
            for n in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, job: Job) -> Any:
        """A request's result.

        Raises:
            OverloadedError: too many wait, or it would hardly end before its deadline.
            DeadlineError, CancelledError: nobody waits for it any more.
            Whatever one of its calls raises.
        """
        job.urgency.check()
        with self._lock:
            needed = self._refuse_late(job.key, job.urgency, job.rows)
            job.arrived = time.monotonic()
            job.expected = job.arrived + needed
            stream = None
            if job.urgency.priority > PROOF:
                self._quiet_at = job.arrived + _QUIET_SECONDS
            if not self._waiting.clients and not self._is_delayed(job, job.arrived):
                stream = self._nearest()
            if stream is None:
                self._waiting.add(job)
                self._notify(1)
            else:
                self._free.remove(stream)
                call = self._start(job, stream)
        job.urgency.turn_over()
        if stream is not None:
            while call is not None:
                call = self._execute(job, call, stream, then=partial(self._own, job))
        # gRPC keeps what it calls when a client leaves until its call ends, which may have other jobs.
        waiting = [job]
        if stream is None:
            job.urgency.on_leave(lambda: self._left(*waiting))
        remaining = job.urgency.remaining()
        try:
            if not job.done.wait(None if remaining == float("inf") else max(remaining, 0.0)):
                self._left(job)
                raise DeadlineError(LATE)
        finally:
            waiting.clear()
        job.describe(job.urgency.timeline)
        if stream is None and job.rows and job.urgency.deadline != float("inf"):
            job.urgency.afterwards.append(partial(self._answered, (job.key, job.urgency.priority), job.ended))
        return job.result()

    def load(self) -> StreamLoad:
        """Its state now."""
        with self._lock:
            running = self.streams - len(self._free)
            return StreamLoad(self.streams, running, len(self._waiting), self._seconds)

    def refuse_late(self, key: object, urgency: Urgency) -> None:
        """Raises what `run` would for an average request of a key: before a request has cost anything."""
        urgency.check()
        with self._lock:
            self._refuse_late(key, urgency, None)

    def on_each(self, work: Callable[[int], _T], *, in_background: bool = False) -> list[_T]:
        """What `work` gives for each stream, on a thread of that stream's core; `in_background` one that
        gives way to the requests there."""

        def pinned(stream: int) -> _T:
            self._pin(stream)
            return low(work, stream) if in_background else work(stream)

        with ThreadPoolExecutor(self.streams, "open-stream") as pool:
            return list(pool.map(pinned, range(self.streams)))

    def load_of(self, key: object) -> KeyLoad:
        """What was done for a key since its first job, and for all keys."""
        with self._lock:
            own = self._loads.get(key, _Counts())
            return KeyLoad(self.streams, own.started, own.waited, own.seconds, self._seconds)

    def forget(self, key: object) -> None:
        """Drops what was learned about a key that gets no more jobs."""
        with self._lock:
            self._loads.pop(key, None)
            self._doubted.pop(key, None)
            for known in [k for k in self._lateness if k[0] is key]:
                del self._lateness[known]
            self._waiting.forget(key)
            self._costs.forget(key)

    def close(self, seconds: float | None = None) -> None:
        """Ends the threads after the calls that run now, which it waits for, at most so long. Requests that
        wait are refused."""
        with self._lock:
            self._closed = True
            for job in list(self._waiting):
                self._waiting.remove(job)
                job.fail(OverloadedError("the server is stopping", "stopping"))
            for condition in self._wake:
                condition.notify()
        ends = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if ends is None else max(0.0, ends - time.monotonic()))

    def _work(self, stream: int) -> None:
        self._pin(stream)
        taken: tuple[Job, Call] | None = None
        while True:
            if taken is None:
                with self._lock:
                    while (taken := self._take(stream)) is None:
                        if self._closed:
                            return
                        self._wake[stream].wait(self._longest_delay())
            taken = self._execute(*taken, stream, then=self._take)

    def _take(self, stream: int) -> tuple[Job, Call] | None:
        """The next call, for a stream that is then no longer free; None when there is nothing to do."""
        if stream not in self._free:
            return None  # lent to a caller
        while self._waiting:
            now = time.monotonic()
            for first in self._waiting.in_order(now):
                job = next((j for j in self._waiting.of(first.key) if not self._is_delayed(j, now)), None)
                if job is not None:
                    break
            else:
                return None
            if not self._give_up(job, now):
                self._free.remove(stream)
                return job, self._start(job, stream) if not job.started else self._next(job, stream)
        return None

    def _own(self, job: Job, stream: int) -> Call | None:
        """The next call of a job for the stream that its caller holds; None where there is none, or another
        job goes before it."""
        now = time.monotonic()
        first = next(self._waiting.in_order(now), None)
        if first is not job or self._give_up(job, now):
            return None
        self._free.remove(stream)
        return self._next(job, stream)

    def _give_up(self, job: Job, now: float) -> bool:
        """Drops a waiting job if nobody waits for any of its requests."""
        if not all(m.urgency.deadline <= now or m.urgency.left() for m in job.members):
            return False
        self._waiting.remove(job)
        late = job.urgency.is_late()
        if late:
            self._observe_end(job, now)
        job.fail(DeadlineError(LATE) if late else CancelledError(GONE))
        return True

    def _left(self, *jobs: Job) -> None:
        """Nobody waits for jobs any more."""
        with self._lock:
            for job in jobs:
                if job in self._waiting:
                    self._give_up(job, time.monotonic())

    def _start(self, job: Job, stream: int) -> Call:
        """The first call of a job, with the waiting jobs that share it."""
        self._waiting.remove(job)
        if job.shared_rows:
            rows = job.shared_rows
            for other in list(self._sharing(job.key)):
                rows += other.shared_rows
                if rows > self._max_shared_rows or len(job.members) == MAX_SHARED_REQUESTS:
                    break
                self._waiting.remove(other)
                job.members.append(other)
        job.started = True
        job.began = time.monotonic()
        job.running += 1
        self._running[stream] = job, job.began
        load = self._loads.setdefault(job.key, _Counts())
        load.started += len(job.members)
        load.waited += sum(job.began - member.arrived for member in job.members)
        return job.calls.popleft()

    def _next(self, job: Job, stream: int) -> Call:
        call = job.calls.popleft()
        job.running += 1
        self._running[stream] = job, time.monotonic()
        if not job.calls:
            self._waiting.remove(job)
        return call

    def _execute(self, job: Job, call: Call, stream: int, then: Callable[[int], _T]) -> _T:
        """Runs a call, and what `then` gives under the lock once the stream is free again."""
        error: BaseException | None = None
        moved: object = None
        started = time.perf_counter()
        try:
            moved = call(stream)
        except BaseException as raised:
            error = raised
        seconds = time.perf_counter() - started
        with self._lock:
            self._free.append(stream)
            del self._running[stream]
            self._waiting.charge(job, seconds)
            job.running -= 1
            job.ran += 1
            job.seconds += seconds
            if isinstance(moved, Moved):
                job.moved.add(moved)
            self._loads.setdefault(job.key, _Counts()).seconds += seconds
            self._seconds += seconds
            if error is not None:
                self._waiting.remove(job)
                job.fail(error)
            elif self._closed and job.calls:
                # The threads have ended that would run them.
                self._waiting.remove(job)
                job.fail(OverloadedError("the server is stopping", "stopping"))
            elif job.calls and not job.is_waiting:
                job.is_waiting = True
                self._waiting.add(job)
            ended = not (job.calls or job.running or job.done.is_set())
            # What a new version scores to prove itself says little about requests: a single row costs a call.
            if ended and job.rows and job.urgency.priority > PROOF:
                self._costs.observe(job.key, _rows(job), job.seconds, job.ran)
                self._observe_end(job, time.monotonic())
            next_call = then(stream)
            if self._waiting:
                self._notify(self.streams)
        if ended:
            job.complete()
        return next_call

    def _is_delayed(self, job: Job, now: float) -> bool:
        """Whether a job still waits for others to share its call, or for clients to be quiet."""
        if job.urgency.priority == PROOF:
            return now < self._quiet_at and not self._waiting.is_proof_due(now)
        if not self._max_delay or not job.shared_rows or job.started:
            return False
        late = min(job.arrived + self._max_delay, job.urgency.deadline - 2 * self._costs.seconds(job.key))
        return now < late and sum(j.shared_rows for j in self._sharing(job.key)) < self._max_shared_rows

    def _longest_delay(self) -> float | None:
        """Seconds after which a job that is delayed may no longer be; None where none is."""
        delays = (
            self._max_delay * (self._waiting.clients > 0),
            _QUIET_SECONDS * (self._waiting.background > 0),
        )
        return min(filter(None, delays), default=None)

    def _sharing(self, key: object) -> Iterator[Job]:
        return (job for job in self._waiting.of(key) if job.shared_rows and not job.started)

    def _observe_end(self, job: Job, now: float) -> None:
        for member in job.members:
            if member.urgency.deadline != float("inf"):
                known = self._lateness.setdefault((job.key, member.urgency.priority), Lateness())
                known.observe(now - member.expected)

    def _answered(self, of: tuple[object, int], ended: float) -> None:
        """The answer of a request that had waited, of a key and a priority, went out; its calls had ended
        then."""
        with self._lock:
            if (known := self._lateness.get(of)) is not None:
                known.answered(time.monotonic() - ended)

    def _refuse_late(self, key: object, urgency: Urgency, rows: int | None) -> float:
        """Seconds that a request is estimated to take; 0 for one that has no deadline."""
        if self._closed:
            raise OverloadedError("the server is stopping", "stopping")
        # A version proves itself with one request at a time.
        if len(self._waiting) >= self._max_waiting and urgency.priority != PROOF:
            raise OverloadedError(
                f"{len(self._waiting)} requests wait already; send fewer at once", "queue_full"
            )
        if urgency.deadline == float("inf"):
            return 0.0
        needed = self._needed(key, urgency, rows)
        # Where nothing waits, the margin does not count: there is always somebody to learn it from.
        late = self._lateness.get((key, urgency.priority)) if self._waiting else None
        likely = needed + (late.margin if late is not None else 0.0)
        if likely > urgency.remaining() and not self._is_tried(key):
            raise OverloadedError(
                f"it would take {likely * 1e3:.0f} ms with the requests before it, and its deadline is in "
                f"{max(urgency.remaining(), 0.0) * 1e3:.0f} ms; send fewer at once",
                "would_be_late",
            )
        return needed

    def _is_tried(self, key: object) -> bool:
        """Whether a request runs that seems too large for its deadline. Where nothing runs, nothing is
        learned either: one call that took long for once would have every later request refused."""
        if self._waiting or self._running:
            return False
        self._doubted[key] = doubted = (self._doubted.get(key, 0) + 1) % _TRY_EVERY
        return doubted == 0

    def _needed(self, key: object, urgency: Urgency, rows: int | None) -> float:
        """Seconds until a request that comes now ends: as if what goes before it, and then its calls, were
        poured over the streams, those first that are free first."""
        now = time.monotonic()
        own = self._costs.seconds(key, rows)
        longest = own / min(self._costs.calls(key, rows), self.streams)
        if not self._running and not self._waiting:
            return longest
        free_in = sorted(
            [0.0] * len(self._free) + [self._left_of_call(*r, now) for r in self._running.values()]
        )
        ahead = self._ahead(key, urgency)
        return max(_level(free_in, ahead + own), _level(free_in, ahead) + longest)

    def _left_of_call(self, job: Job, since: float, now: float) -> float:
        """Seconds that a call still runs, if the calls of its job that are left are of one size."""
        left = self._costs.seconds(job.key, _rows(job)) - job.seconds
        return max(0.0, left / (job.running + len(job.calls)) - (now - since))

    def _ahead(self, key: object, urgency: Urgency) -> float:
        """Stream seconds of the calls that go before those of a request that comes now."""
        own = others = 0.0
        keys, due = {key}, urgency.due(time.monotonic())
        for job in self._waiting:
            if job.urgency.priority < urgency.priority:
                continue
            left = max(0.0, self._costs.seconds(job.key, _rows(job)) - job.seconds)
            seconds = left * len(job.calls) / (job.running + len(job.calls))
            if job.key != key:
                keys.add(job.key)
                others += seconds
            elif (-job.urgency.priority, job.urgency.due(job.arrived)) <= (-urgency.priority, due):
                own += seconds
        return min(own + others, own * len(keys) + self._costs.seconds(key) * (len(keys) - 1))

    def _notify(self, streams: int) -> None:
        """Wakes the threads of so many free streams."""
        for stream in self._free[-streams:]:
            self._wake[stream].notify()

    def _nearest(self) -> int | None:
        """A free stream: of the caller's core, or else the one that was used last."""
        if _current_core is not None and self._cores:
            core = _current_core()
            for stream in reversed(self._free):
                if self._cores[stream % len(self._cores)] == core:
                    return stream
        return self._free[-1] if self._free else None

    def _pin(self, stream: int) -> None:
        # Left to the scheduler, two slices of a request may wake on one core, where one waits for the other.
        if self._cores:
            os.sched_setaffinity(0, {self._cores[stream % len(self._cores)]})


def _rows(job: Job) -> int:
    return sum(member.rows for member in job.members)


def _level(free_in: Sequence[float], work: float) -> float:
    """When the first stream is free after so many seconds of work were poured over streams that are free in
    so many seconds, the first ones first."""
    below = free_in[0]
    for number, seconds in enumerate(free_in[1:], 1):
        if work + below <= number * seconds:
            return (work + below) / number
        below += seconds
    return (work + below) / len(free_in)
