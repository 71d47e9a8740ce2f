"""A circuit breaker: what failed is not asked again by requests, but by one probe in the background."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("jaxrank")

_LONGEST_PAUSE = 16
"""Pauses between probes grow up to this many times the first."""


class Breaker:
    """Closed: asked as usual. Open: not asked, until a probe succeeds. Thread-safe."""

    def __init__(self, name: str, probe: Callable[[], None], *, failures_to_open: int, pause_s: float):
        """`probe` raises as long as what it looks at is not well. It runs in a thread of its own."""
        self._name = name
        self._probe = probe
        self._failures_to_open = failures_to_open
        self._pause_s = pause_s
        self._failures = 0
        self._open = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def open(self) -> bool:
        return self._open

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, why: str, *, at_once: bool) -> None:
        """Counts a failure; opens after several in a row, or `at_once`."""
        with self._lock:
            self._failures += 1
            if self._open or self._stopped.is_set():
                return
            if not at_once and self._failures < self._failures_to_open:
                return
            self._open = True
        log.warning("%s is not asked for rows until it is well again: %s", self._name, why)
        threading.Thread(target=self._recover, name=f"probe {self._name}", daemon=True).start()

    def close(self) -> None:
        """Ends probing."""
        self._stopped.set()

    def _recover(self) -> None:
        pause, said = self._pause_s, ""
        while not self._stopped.wait(pause):
            try:
                self._probe()
            except Exception as error:  # whatever it is, it is not well yet
                if str(error) != said:
                    said = str(error)
                    log.info("%s is still not well: %s", self._name, said)
                pause = min(pause * 2, self._pause_s * _LONGEST_PAUSE)
                continue
            with self._lock:
                self._open, self._failures = False, 0
            log.info("%s is well again", self._name)
            return
