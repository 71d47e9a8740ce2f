"""What runs a bundle's dense program: one file for each engine, all held to the same results.

`load_engine` is the entry point; an engine takes feature blocks and returns the dense outputs. Another
distribution adds one with an entry point of the group `jaxrank.engines`, named as the engine, that is an
`EngineLoader`.
"""

import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from serving.host.program import FeatureBlocks

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

    def run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]`. The arrays are the caller's
        own."""
        ...

    def close(self) -> None:
        """Ends the streams after the calls that run now."""
        ...


@runtime_checkable
class BatchEngine(Protocol):
    """An engine that scores many requests in one call."""

    def run_batch(self, requests: Sequence[FeatureBlocks]) -> list[list[np.ndarray]]:
        """What `run` gives for each request, up to the order of float32 sums. Raises `ValueError` for more
        requests than it takes at once."""
        ...


class EngineLoader(Protocol):
    """Makes an engine of a bundle's target; a library that an engine needs is imported here, not before.
    `only` is given for targets with `programs` alone. Raises `BundleError`."""

    def __call__(
        self, bundle: Path, manifest: Manifest, target: Target, *, streams: int | None = None, **only: str
    ) -> Engine: ...


def engine_names() -> list[str]:
    """Every engine that can be asked for: ours and those of other installed distributions."""
    return sorted({*_OWN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def load_engine(
    bundle: Path,
    manifest: Manifest,
    target: Target,
    *,
    streams: int | None = None,
    only: str | None = None,
) -> Engine:
    """The engine that the target names.

    `only` is the one candidate program to run, where a target has several; the engine's choice by default.

    Raises `BundleError`: an engine that is not installed, or a program that does not load here.
    """
    chosen = {} if only is None else {"only": only}
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
