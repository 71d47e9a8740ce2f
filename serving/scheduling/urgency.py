"""When a request's answer is wanted."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from serving.errors import CancelledError, DeadlineError, InvalidRequestError
from serving.monitoring.timeline import Timeline

LATE = "the deadline passed before the answer was there"
GONE = "the client no longer waits for the answer"

PRIORITY = "jaxrank-priority"
"""Name of the gRPC metadata, and of the HTTP header, with a request's priority."""

PRIORITIES: dict[str | bytes, int] = {"low": -1, "normal": 0, "high": 1}
_LONGEST_SECONDS = 1e6
PATIENCE = 5.0
"""Seconds after which a request is due that has no earlier deadline."""
_WAY_SECONDS = 0.1
"""That a request may take to be read by a server with much to do."""

PROOF, SHADOW = -2, -3
"""Of what the server asks itself, after every client's request: of a version that is to prove itself, which
has a share under any load (`order.py`), and of one that is only compared."""


@dataclass(frozen=True)
class Urgency:
    """Who waits for an answer: until when, before whom, and whether they still do.

    Attributes:
        deadline: on the clock of `time.monotonic`, seconds; infinite for none.
        priority: requests of a greater one go first, whatever their deadlines.
        left: whether the client went away.
        on_leave: has something called when that happens, on any thread, or when the call ends.
        turn_over: is called before the request's thread waits for a device (`turns.py`).
        turn_given_back: inside, another request may have the turn; it is taken again at the end.
        remarks: what the client is told beside the answer, by name: gRPC's trailing metadata, HTTP's headers.
        timeline: what happens to the request is written here.
        routing_key: what says whether the request is one of a canary's: the client's key, or the request.
        afterwards: is called when the answer went out.
    """

    deadline: float = math.inf
    priority: int = 0
    left: Callable[[], bool] = lambda: False
    on_leave: Callable[[Callable[[], None]], object] = lambda callback: None
    turn_over: Callable[[], None] = lambda: None
    turn_given_back: Callable[[], AbstractContextManager[None]] = nullcontext
    remarks: dict[str, str] = field(default_factory=dict, compare=False)
    timeline: Timeline = field(default_factory=Timeline, compare=False)
    routing_key: bytes = b""
    afterwards: list[Callable[[], None]] = field(default_factory=list, compare=False)

    def due(self, since: float) -> float:
        """When a request that came at `since` is to go: one that has no deadline, or a far one, does not
        starve behind those that have one."""
        return min(self.deadline, since + PATIENCE)

    @classmethod
    def within(
        cls,
        seconds: float | None,
        priority: int = 0,
        left: Callable[[], bool] = lambda: False,
        on_leave: Callable[[Callable[[], None]], object] = lambda callback: None,
        timeline: Timeline | None = None,
        routing_key: bytes = b"",
    ) -> "Urgency":
        """So many seconds from now; None is no deadline, and so is what no lock can wait for: gRPC's Python
        server gives centuries for a call without one (github.com/grpc/grpc/issues/9423)."""
        deadline = math.inf if seconds is None or seconds > _LONGEST_SECONDS else time.monotonic() + seconds
        return cls(
            deadline, priority, left, on_leave, timeline=timeline or Timeline(), routing_key=routing_key
        )

    def answered(self) -> None:
        """Does what was to be done after the answer."""
        for work in self.afterwards:
            work()

    def remaining(self) -> float:
        """Seconds to the deadline, negative when it has passed."""
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raises `DeadlineError` or `CancelledError` when an answer would come too late."""
        if self.is_late():
            raise DeadlineError(LATE)
        if self.left():
            raise CancelledError(GONE)

    def is_late(self) -> bool:
        """Whether the deadline has passed. A client that leaves just before it left because of it: it counts
        from when it sent the request, and the server from when it came."""
        return self.remaining() <= (_WAY_SECONDS if self.left() else 0.0)


ANY_TIME = Urgency()
"""No deadline, and a client that stays."""


def priority_of(name: str | bytes | None) -> int:
    """The priority of that name; normal for None. Raises `InvalidRequestError`."""
    found = PRIORITIES.get(name or "normal")
    if found is None:
        raise InvalidRequestError(f"{PRIORITY} is {str(name)[:50]!r}; it may be low, normal, high")
    return found
