"""Dice, the Deep Interest Network's activation (Zhou et al., 2018), to `Dice(x, scale, shift, alpha)`.

`p x + alpha (1 - p) x` with `p = sigmoid(scale x + shift)`; scale and shift are an inference batch norm.
Left alone: an alpha, scale or shift that is not a constant, or not of the width of x.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Number, Op, Value, product, rewrite

_X = Value("x")
_SCALED = Op("Mul", _X, Constant("scale"))
_P = Op(
    "Sigmoid",
    Either(
        Op("Add", _SCALED, Constant("shift")),
        Op("Sub", _SCALED, Constant("minus_shift")),
        Op("ScaleShift", _X, Constant("scale"), Constant("shift")),
    ),
    name="p",
)
_REST = Op("Sub", Number(1.0), _P)
_ALPHA = Constant("alpha")
_PATTERN = Either(
    Op("Add", Op("Mul", _P, _X), product(_ALPHA, _REST, _X)),
    Op("Mul", _X, Op("Add", _P, Op("Mul", _ALPHA, _REST))),
)


def lift_dice(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, _dice)


def _dice(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    shape = graph.shape(match["x"])
    if not shape or graph.shape(root.output[0]) != shape:
        return None
    shift = match.get("shift")
    if shift is None:
        shift = graph.constant(-graph.constants[match["minus_shift"]], f"{match['minus_shift']}__negated")
    weights = []
    for name in (match["scale"], shift, match["alpha"]):
        value = graph.constants[name]
        if (
            value.dtype != np.float32
            or value.size not in (1, shape[-1])
            or (value.size > 1 and value.shape[-1] != shape[-1])
        ):
            return None
        flat = value.reshape(-1) if value.size == shape[-1] else value.reshape(-1).repeat(shape[-1])
        weights.append(name if value.shape == flat.shape else graph.constant(flat, f"{name}__vector"))
    return [graph.node("Dice", [match["x"], *weights], root.output[0], root, own=True)]
