"""Activations that multiply their input by a squashed copy of it: Swish (SiLU), Mish and HardSwish.

`x sigmoid(beta x)` to Swish(alpha), `x tanh(softplus(x))` to Mish, `x relu6(x + 3) / 6` to HardSwish.
Left alone: a gate computed from another value.
"""

from typing import Any

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Number, Op, Value, product, rewrite

_X = Value("x")
_SWISH = Op("Mul", _X, Op("Sigmoid", Either(Op("Mul", _X, Constant("beta")), _X)))
_MISH = Op("Mul", _X, Op("Tanh", Op("Softplus", _X)))
_RELU6 = Either(
    Op("Clip", Op("Add", _X, Number(3.0)), Number(0.0), Number(6.0)),
    Op("Min", Op("Max", Op("Add", _X, Number(3.0)), Number(0.0)), Number(6.0)),
    Op("Min", Op("Relu", Op("Add", _X, Number(3.0))), Number(6.0)),
)
_HARD_SWISH = Either(
    product(_X, _RELU6, Number(1.0 / 6.0)), Op("Div", Op("Mul", _X, _RELU6), Number(6.0)),
    Op("Mul", _X, Op("Div", _RELU6, Number(6.0))),
    Op("Mul", _X, Op("HardSigmoid", _X, name="gate")),
)  # fmt: skip


def lift_gated_activations(graph: Graph) -> bool:
    found = rewrite(graph, _SWISH, _swish)
    mish = rewrite(graph, _MISH, lambda g, r, m: [g.node("Mish", [m["x"]], r.output[0], r)])
    hard = rewrite(graph, _HARD_SWISH, _hard_swish)
    return found or mish or hard


def _swish(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    beta = 1.0 if match.get("beta") is None else graph.scalar(match["beta"])
    if beta is None:
        return None
    return [graph.node("Swish", [match["x"]], root.output[0], root, alpha=beta)]


def _hard_swish(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    gate = graph.producer(match.values.get("gate", ""))
    if gate is not None:
        found = {a.name: a.f for a in gate.attribute}
        if abs(found.get("alpha", 0.2) - 1 / 6) > 1e-6 or found.get("beta", 0.5) != 0.5:
            return None
    return [graph.node("HardSwish", [match["x"]], root.output[0], root)]
