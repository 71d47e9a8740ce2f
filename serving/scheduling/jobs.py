"""The calls of one request's dense half, or of several that share them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from serving.monitoring.timeline import Moved, Timeline
from serving.scheduling.urgency import Urgency

Call = Callable[[int], object]
"""Work on the stream of that number; it may say what it moved."""


class Job:
    """A request on its way through the streams. Its fields belong to the `StreamScheduler` that run it.

    Attributes:
        key: jobs of one key are of one engine: they share calls, and keys share the device's time.
        payload: what `begin` needs of the request.
        members: the jobs whose requests `begin` starts together: this one, and those put to it.
        results: of each member, in their order; set by `begin`, or by the last call.
        began, ended: of its calls, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        key: object,
        urgency: Urgency,
        rows: int,
        payload: Any,
        begin: Callable[["Job", int], Moved | None],
        *,
        shared_rows: int = 0,
    ):
        """
        Args:
            rows: candidates, for the estimate of the time it takes; 0 for a request side alone, from which
                nothing is learned about candidates.
            begin: the first call. It adds what is left to do with `add`, and sets `finish`.
            shared_rows: candidates, with padding, that the request adds to a call it shares; 0: it shares
                none.
        """
        self.key, self.urgency, self.rows, self.payload = key, urgency, rows, payload
        self.shared_rows = shared_rows
        self.members: list[Job] = [self]
        self.finish: Callable[[], Sequence[Any]] = lambda: ()
        self.arrived = self.expected = 0.0
        self.started = self.is_waiting = False
        self.running = self.ran = 0
        self.seconds = 0.0
        self.began = self.ended = 0.0
        self.moved = Moved()
        self._transfer_share = 0.0
        self.calls: deque[Call] = deque([lambda stream: begin(self, stream)])
        self.done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def add(self, call: Call) -> None:
        """One more call, for any stream. From within a call of this job only."""
        self.calls.append(call)

    def complete(self) -> None:
        """Gives every member its result. After the last call."""
        try:
            for member, result in zip(self.members, self.finish(), strict=True):
                member._result = result
        except BaseException as error:
            return self.fail(error)
        self.ended = time.monotonic()
        self._transfer_share = min(self.moved.seconds / self.seconds, 1.0) if self.seconds else 0.0
        for member in self.members:
            # What shared calls moved is the first request's: a sum over requests counts it once.
            member.began, member.ended = self.began, self.ended
            member._transfer_share = self._transfer_share
            member.done.set()

    def describe(self, timeline: Timeline) -> None:
        """Writes when this request waited and ran. After `done`."""
        if self.ended:
            timeline.queue = (self.arrived, self.began)
            timeline.compute = (self.began, self.ended)
            timeline.transfer = self._transfer_share * (self.ended - self.began)
            timeline.moved = self.moved

    def fail(self, error: BaseException) -> None:
        """Drops the calls that are left; every member raises the error."""
        self.calls.clear()
        for member in self.members:
            member._error = error
            member.done.set()

    def result(self) -> Any:
        """What `finish` gave for this request. Raises what a call raised."""
        if self._error is not None:
            # A batch's members share the error and raise it on threads of their own.
            raise self._error.with_traceback(None)
        return self._result
