"""A TensorFlow graph after evaluation: what is left of it, and what became of the rest."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.source import Weight


@dataclass(frozen=True)
class Handle:
    """A variable or lookup table, passed around by reference; `node` is the node of the source graph."""

    kind: str
    node: str


@dataclass(frozen=True)
class Dead:
    """The output of a branch that is never taken."""


@dataclass(frozen=True)
class ListHandle:
    """A TF1 TensorArray; its contents travel in its flow, as a list."""

    dtype: Any
    element_shape: Any


@dataclass(frozen=True)
class Part:
    """The elements from `start` to `stop` along an axis."""

    axis: int
    start: int
    stop: int

    def of(self, value: np.ndarray) -> np.ndarray:
        return value[(*[slice(None)] * self.axis, slice(self.start, self.stop))]


@dataclass
class FlatGraph:
    """What is left of a graph.

    `weights` and `tables` are by the name of the placeholder that stands for them; `tables` gives the source
    node. `results` are the tensors that were asked for. `sources` is the source op of every op that was
    built; `removed` are (name, type, why) of source ops that are not there any more. `constants` has every
    value that was folded, by source tensor. `per_row` has, by constant op, how much its value grows with
    each row (NaN where it does not grow evenly); `growing` are ops of constants whose shape does; `here`
    has the values of tensors that are known at this number of rows only, by name. `tensors` are by source
    name. `joins` are concatenations that the dense half makes of what the host could concatenate, and `parts`
    has the tensors, by name, that are only a part of the source tensor of their name (see
    `converters/request_parts.py`).
    `initializers` fill the lookup tables of a live graph.
    """

    graph: Any
    results: tuple[Any, ...] = ()
    weights: dict[str, Weight] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    removed: list[tuple[str, str, str]] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    per_row: dict[str, np.ndarray] = field(default_factory=dict)
    growing: set[str] = field(default_factory=set)
    here: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    joins: set[str] = field(default_factory=set)
    parts: dict[str, Part] = field(default_factory=dict)
    initializers: list[Any] = field(default_factory=list)

    def source_name(self, op: Any) -> str:
        """Name that the op had in the source graph; ops are renamed when they are built again."""
        return str(self.sources.get(op.name, op.name))
