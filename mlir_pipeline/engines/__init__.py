"""What a bundle holds for each engine but IREE: the same towers, after the same rewrites, in the form that
the engine loads.

Entry point: `build`. `xla.py` writes `jax.export` artifacts; `onnxruntime.py` writes ONNX models (`onnx.py`
walks a tower, `onnx_ops.py` has each primitive, `onnx_graph.py` the graph being made). `measure.py` compares
the engines of a bundle. Another distribution adds an engine with an entry point of the group
`jaxrank.engine_builders` (an `EngineBuilder`) beside its `jaxrank.engines`.
"""

from collections.abc import Callable, Container
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxrank.manifest import Manifest, Target
from mlir_pipeline.engines.onnxruntime import build_onnxruntime
from mlir_pipeline.engines.xla import build_xla
from mlir_pipeline.errors import CompileError
from mlir_pipeline.passes.externalize_weights import parameter_name
from mlir_pipeline.split import Towers

ENTRY_POINTS = "jaxrank.engine_builders"
IREE = "iree"
AUTO = "auto"

WeightName = Callable[[np.ndarray], str | None]
"""The name that the bundle's weight archive has for an array; None where it has none."""


class EngineBuilder(Protocol):
    """Writes what an engine needs for a target into `directory` (inside of the bundle `work`), and returns
    the manifest's entry. Raises `CompileError` for a target or a program that the engine does not take."""

    def __call__(
        self,
        towers: Towers,
        manifest: Manifest,
        target: str,
        work: Path,
        directory: Path,
        weight_name: WeightName,
    ) -> Target: ...


_OWN: dict[str, EngineBuilder] = {"onnxruntime": build_onnxruntime, "xla": build_xla}


def parse_engines(text: str) -> tuple[str, ...]:
    """The engines of an `--engine` option: a comma-separated list, or `auto` for all. Raises `CompileError`
    that lists those installed."""
    there = (IREE, *sorted({*_OWN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))
    if text == AUTO:
        return there
    wanted = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in there]
    if unknown or not wanted:
        named = repr(unknown[0]) if unknown else "no name given"
        raise CompileError(f"there is no engine {named}; engines are: auto, {', '.join(there)}")
    return wanted


def build(
    engine: str, towers: Towers, manifest: Manifest, target: str, work: Path, weight_name: WeightName
) -> Target:
    """Writes `<target>/<engine>/` into a bundle. Raises `CompileError`."""
    directory = work / target.replace(":", "-") / engine
    directory.mkdir(parents=True, exist_ok=True)
    return _builder(engine)(towers, manifest, target, work, directory, weight_name)


def _builder(engine: str) -> EngineBuilder:
    if engine in _OWN:
        return _OWN[engine]
    (point, *_) = entry_points(group=ENTRY_POINTS, name=engine)
    try:
        return point.load()
    except Exception as error:  # another distribution's module raises what it likes
        raise CompileError(f"the builder {point.value} of {engine!r} does not load: {error!r}") from error


def names_of(weights: Container[str]) -> WeightName:
    """Finds arrays in the archive, which has `weights`, by their contents."""

    def name_of(array: np.ndarray) -> str | None:
        name = parameter_name(array)
        return name if name in weights else None

    return name_of
