"""Who is told that a request has ended."""

import logging
import time
from collections.abc import Callable, Sequence

from serving.monitoring.timeline import Timeline

log = logging.getLogger("jaxrank")

Observer = Callable[[Timeline], None]


class Ended:
    """Shows ended requests to observers, on the request's own thread."""

    def __init__(self, observers: Sequence[Observer] = ()):
        self._observers = tuple(observers)

    def __call__(self, timeline: Timeline) -> None:
        """Before the answer goes out, so that who has it finds it counted. Never raises: it would take the
        answer's place."""
        timeline.ended = time.monotonic()
        for observe in self._observers:
            try:
                observe(timeline)
            except Exception:
                log.exception("observing a request failed")
