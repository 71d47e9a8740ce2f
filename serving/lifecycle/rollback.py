"""Whether the first requests of a version say that the one before it was better."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.errors import ServingError


def fault_of(error: Exception) -> str:
    """What speaks against a version in how a request ended: a fault that is not the client's; empty
    otherwise."""
    if isinstance(error, ServingError) and error.code is not grpc.StatusCode.INTERNAL:
        return ""
    return f"internal error ({type(error).__name__})"


def fault_in(outputs: Mapping[str, np.ndarray]) -> str:
    """The same of an answer: the first output with a value that is no finite number."""
    for name, value in outputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"output {name!r} is not finite"
    return ""


@dataclass
class Outcomes:
    """How the last requests of a version ended, at most `window` of them. Not thread-safe."""

    window: int
    requests: int = 0
    """All of them."""
    _faulty: deque[bool] = field(default_factory=deque)
    faults: int = 0
    """Of the last ones."""
    last_fault: str = ""

    def add(self, fault: str) -> None:
        self.requests += 1
        self._faulty.append(bool(fault))
        self.faults += bool(fault)
        self.last_fault = fault or self.last_fault
        if len(self._faulty) > self.window:
            self.faults -= self._faulty.popleft()

    @property
    def share(self) -> float:
        """Of faults; 0 before the first request."""
        return self.faults / len(self._faulty) if self._faulty else 0.0


@dataclass(frozen=True)
class Probation:
    """The first requests of `version`, for which `fallback` stays loaded."""

    version: int
    fallback: int
    requests: int
    share: float

    def verdict(self, new: Outcomes, old: Outcomes) -> str | None:
        """Why the version is to go, empty if it has proved itself, None while that is open.

        It goes as soon as more of its first requests had a fault than the share of all of them, beyond those
        that would have had one with the other version: the share of its last requests, and two standard
        deviations of what that share and as many new requests scatter.
        """
        expected = old.share * new.requests
        scatter = 2 * math.sqrt(2 * expected * (1 - old.share))
        if new.faults > self.share * self.requests + expected + scatter:
            return (
                f"rolled back to version {self.fallback}: {new.faults} of its first {new.requests} requests "
                f"had a fault, the last one: {new.last_fault}; more than {self.share:.0%} of "
                f"{self.requests} are not taken, and version {self.fallback} had {old.share:.0%}. It is not "
                "tried again until its files change"
            )
        return "" if new.requests >= self.requests else None
