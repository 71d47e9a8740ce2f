"""What the suite `serve` has found out so far, and how long it takes for it."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from bench.results import NotMeasured
from bench.serve_load import Load, LoadClient, Sample
from bench.serve_overhead import Spent
from bench.serve_processes import Memory, Setting
from bench.serve_search import Search
from bench.user_models import UserModel
from serving.cores import usable_cores

if TYPE_CHECKING:
    from bench.dense_models import DenseModel

OURS, TENSORFLOW, TFS, TRITON = "jaxrank", "tensorflow", "tensorflow_serving", "triton"
PLAIN, DEGRADED = "without degradation", "with degradation"
NO_DEADLINE = 60.0
"""Seconds that a request may take where no promise is measured."""

Status = Callable[[str], None]
Model = Union["DenseModel", UserModel]


@dataclass(frozen=True)
class Effort:
    """How long each part takes. Times in seconds."""

    rounds: int
    """Of each part, with new server processes in each."""
    steps: int
    """Of a bisection."""
    seconds: float
    """Of one rate."""
    closed_seconds: float
    """Of one measurement with requests that wait for answers."""
    settle: float
    """At the start of a rate beyond saturation, in which a server finds its way."""
    multiples: tuple[float, ...]
    """Of saturation, at which goodput is taken."""
    tuned: bool
    """Whether TensorFlow's settings are tried; the first of them is taken otherwise."""


FULL = Effort(3, 5, 3.0, 1.5, 3.0, (0.9, 1.1, 2.0, 3.0), tuned=True)
OWN = Effort(3, 4, 2.0, 1.0, 3.0, (0.9, 2.0), tuned=True)
"""Within 5 minutes on two cores."""
QUICK = Effort(3, 2, 0.5, 0.25, 0.25, (0.7, 2.0), tuned=False)


@dataclass
class Measured:
    """What was found out about one model."""

    name: str
    engine: str
    """That was the fastest here when the model was compiled."""
    error: float = 0.0
    """Largest difference of a score from TensorFlow's."""
    request_bytes: int = 0
    setting: Setting | None = None
    closed: dict[str, list[float]] = field(default_factory=dict)
    """Answers per second by server, with twice as many clients as cores, one of each round; TensorFlow's by
    setting, too."""
    searches: dict[str, dict[int, Search]] = field(default_factory=dict)
    """By server and round; rounds that came to no end are not in it."""
    memory: dict[str, dict[int, Memory]] = field(default_factory=dict)
    """Of our processes, by server and round."""
    replayed: dict[str, Sample] = field(default_factory=dict)
    """Recorded traffic with its own timing, by server."""
    candidates: int = 0
    """Of a request; 0 where that is not known."""
    expected: Mapping[str, np.ndarray] = field(default_factory=dict)
    """TensorFlow's scores of the first request, once they are known."""


@dataclass
class Overhead:
    """What a request costs beside its programs."""

    model: str
    request_bytes: int
    answer_bytes: int
    rounds: list[Spent]
    """Of the requests of each."""
    candidates: int = 0


@dataclass
class Overload:
    """What is answered in time at multiples of saturation."""

    model: str
    engine: str
    rounds: list[dict[str, dict[float, Sample]]] = field(default_factory=list)
    """By kind of server and multiple, one of each round."""
    candidates: int = 0


@dataclass
class Found:
    """Everything so far."""

    slo_ms: float
    results: Path
    """Directory of the results of other suites."""
    models: list[Measured] = field(default_factory=list)
    overhead: Overhead | None = None
    overload: Overload | None = None
    missing: list[NotMeasured] = field(default_factory=list)
    asked: tuple[str, ...] = ()
    """Models whose throughput was asked for."""


@dataclass(frozen=True)
class Session:
    """What every part of one run needs."""

    found: Found
    arguments: argparse.Namespace
    effort: Effort
    client: LoadClient
    status: Status
    """Takes what is done now."""
    save: Callable[[], None]
    """Writes what was found, after each round."""

    @property
    def work(self) -> Path:
        return self.arguments.work


def server_options(model: Model) -> tuple[str, ...]:
    """A user's own model has few users: what is kept of them would be found in every request."""
    return ("--state-cache-mb", "0") if isinstance(model, UserModel) else ()


def closed_loop(session: Session, messages: Path, address: str) -> float:
    """Answers per second to twice as many clients as cores. Raises `RuntimeError` where there are none."""
    load = Load(
        address=address, requests=str(messages), seconds=session.effort.closed_seconds, deadline=NO_DEADLINE,
        clients=2 * usable_cores(),
    )  # fmt: skip
    sample = session.client.send(load)
    if not sample.latencies_ms:
        raise RuntimeError(f"nothing was answered: {sample.statuses}")
    return sample.goodput(math.inf)
