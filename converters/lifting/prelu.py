"""PReLU to PRelu: `relu(x) - alpha relu(-x)` (Keras), `max(x, 0) + alpha min(x, 0)`, and
`relu(x) + alpha (x - |x|) / 2` (the Deep Interest Network's own code).

Left alone: a slope that is not a constant.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Number, Op, Value, product, rewrite

_X = Value("x")
_POSITIVE = Either(Op("Relu", _X), Op("Max", _X, Number(0.0)))
_NEGATIVE = Either(Op("Min", _X, Number(0.0)), Op("Neg", Op("Relu", Op("Neg", _X))))
_TWICE_NEGATIVE = Op("Sub", _X, Op("Abs", _X))
_ALPHA, _MINUS_ALPHA = Constant("alpha"), Constant("minus_alpha")
_PATTERN = Either(
    Op("Add", _POSITIVE, Op("Mul", _ALPHA, _NEGATIVE)),
    Op("Add", _POSITIVE, Op("Mul", _MINUS_ALPHA, Op("Relu", Op("Neg", _X)))),
    Op("Sub", _POSITIVE, Op("Mul", _ALPHA, Op("Relu", Op("Neg", _X)))),
    Op("Add", _POSITIVE, product(_ALPHA, _TWICE_NEGATIVE, Number(0.5))),
    Op("Add", _POSITIVE, Op("Mul", Constant("half_alpha"), _TWICE_NEGATIVE)),
)


def lift_prelu(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, _prelu)


def _prelu(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    if graph.shape(match["x"]) is None or graph.shape(match["x"]) != graph.shape(root.output[0]):
        return None
    slope = match.get("alpha")
    for role, factor in (("minus_alpha", -1.0), ("half_alpha", 2.0)):
        if match.get(role) is not None:
            value = graph.constants[match[role]]
            slope = graph.constant(value * np.float32(factor), f"{root.name.rpartition('/')[0]}/alpha")
    if slope is None:
        return None
    return [graph.node("PRelu", [match["x"], slope], root.output[0], root)]
