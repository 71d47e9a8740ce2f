"""What runs a bundle's dense program: one file for each engine, all held to the same results.

`load_engine` is the entry point; an engine takes feature blocks and returns the dense outputs. Another
distribution adds one with an entry point of the group `jaxrank.engines`, named as the engine, that is an
`EngineLoader`.
"""

import importlib
import threading
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from serving.cores import usable_cores
from serving.host.program import FeatureBlocks
from serving.scheduling import ANY_TIME, KeyLoad, SchedulingOptions, StreamLoad, StreamScheduler, Urgency

ENTRY_POINTS = "jaxrank.engines"

_OWN = {
    "iree": "serving.engines.iree:IreeEngine",
    "onnxruntime": "serving.engines.onnxruntime:OnnxRuntimeEngine",
    "xla": "serving.engines.xla:XlaEngine",
}


class Engine(Protocol):
    """One compiled dense program on one device. Thread-safe."""

    streams: int
    """Calls that may run at once."""

    def run(self, blocks: FeatureBlocks, urgency: Urgency = ANY_TIME) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]`. The arrays are the caller's own.
        Raises what `Urgency.check` and `StreamScheduler.run` do."""
        ...

    def close(self) -> None:
        """Ends the streams after the calls that run now."""
        ...


@runtime_checkable
class BatchEngine(Protocol):
    """An engine that scores many requests in one call."""

    def run_batch(
        self, requests: Sequence[FeatureBlocks], urgency: Urgency = ANY_TIME
    ) -> list[list[np.ndarray]]:
        """What `run` gives for each request, up to the order of float32 sums. Raises `ValueError` for more
        requests than it takes at once."""
        ...


@runtime_checkable
class StatefulEngine(Protocol):
    """An engine whose `run` takes blocks with the request tower's state, and does not compute it then."""

    def prepare(self, request: np.ndarray, urgency: Urgency = ANY_TIME) -> Sequence[Any]:
        """The state of a request's block `[1, R]`, in memory of its own that has `nbytes`; empty where the
        model has none. Raises as `run` does."""
        ...


def default_streams(target: Target) -> int:
    """Calls of a target that run at once unless told otherwise: all cores on a CPU, one on a device."""
    return usable_cores() if target.on_cpu else 1


@runtime_checkable
class ScheduledEngine(Protocol):
    """An engine that knows how long its requests wait."""

    def refuse_late(self, urgency: Urgency) -> None:
        """Raises what `run` would for an average request, before it has cost anything."""
        ...

    def stream_load(self) -> KeyLoad:
        """What its streams did for it, and for all models on them."""
        ...


class EngineLoader(Protocol):
    """Makes an engine of a bundle's target; a library that an engine needs is imported here, not before.
    `only` is given for targets with `programs` alone. Raises `BundleError`."""

    def __call__(
        self, bundle: Path, manifest: Manifest, target: Target, *, streams: int | None = None, **only: Any
    ) -> Engine: ...


class StreamSchedulers:
    """The threads of each device that a server uses, made when the first model needs them. Thread-safe."""

    def __init__(self, streams: int | None = None, options: SchedulingOptions | None = None):
        """`streams` of each device, the target's default for None."""
        self.streams, self._options = streams, options
        self._lock, self._schedulers = threading.Lock(), dict[str, StreamScheduler]()

    def of(self, target: Target) -> StreamScheduler:
        """Those of a target's device; the CPU is one for all of its drivers."""
        device = "cpu" if target.on_cpu else target.driver
        with self._lock:
            if device not in self._schedulers:
                streams = self.streams or default_streams(target)
                self._schedulers[device] = StreamScheduler(
                    streams, on_cpu=target.on_cpu, options=self._options
                )
            return self._schedulers[device]

    def loads(self) -> dict[str, StreamLoad]:
        """How busy each device is: "cpu", or by its driver."""
        with self._lock:
            return {driver: scheduler.load() for driver, scheduler in self._schedulers.items()}

    def close(self, seconds: float | None = None) -> None:
        """As `StreamScheduler.close`, for every device."""
        with self._lock:
            ends = None if seconds is None else time.monotonic() + seconds
            for scheduler in self._schedulers.values():
                scheduler.close(None if ends is None else max(0.0, ends - time.monotonic()))


def engine_names() -> list[str]:
    """Every engine that can be asked for: ours and those of other installed distributions."""
    return sorted({*_OWN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def load_engine(
    bundle: Path,
    manifest: Manifest,
    target: Target,
    *,
    streams: int | None = None,
    scheduler: StreamScheduler | None = None,
    only: str | None = None,
) -> Engine:
    """The engine that the target names.

    Args:
        streams: calls that run at once; the engine's default by default.
        scheduler: threads of the target's device that several models share. XLA's engine, and those of other
            distributions, have threads of their own.
        only: the one candidate program to run, where a target has several; the engine's choice by default.

    Raises `BundleError`: an engine that is not installed, or a program that does not load here.
    """
    chosen: dict[str, Any] = {} if only is None else {"only": only}
    if scheduler is not None and target.engine in ("iree", "onnxruntime"):
        chosen["scheduler"] = scheduler
    return _loader(bundle, target)(bundle, manifest, target, streams=streams, **chosen)


def _loader(bundle: Path, target: Target) -> EngineLoader:
    own = _OWN.get(target.engine)
    if own is not None:
        module, _, name = own.partition(":")
        return getattr(importlib.import_module(module), name)
    for point in entry_points(group=ENTRY_POINTS, name=target.engine):
        try:
            return point.load()
        except Exception as error:  # another distribution's module raises what it likes
            raise BundleError(
                f"{bundle}: the engine {target.engine!r} of {point.value} does not load: {error!r}"
            ) from error
    raise BundleError(
        f"{bundle}: the target {target.name} needs the engine {target.engine!r}; installed engines are: "
        f"{', '.join(engine_names())}"
    )
