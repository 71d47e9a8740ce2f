"""GELU, exact (with erf or erfc) and by tanh, to Gelu.

Exact: `0.5 x (1 + erf(x / sqrt 2))` or `0.5 x erfc(-x / sqrt 2)`. Approximate: `0.5 x (1 + tanh(sqrt(2 / pi)
(x + 0.044715 x³)))`. Left alone: other constants.
"""

import math
from typing import Any

from converters.lifting.graph import Graph
from converters.lifting.pattern import Either, Match, Number, Op, Value, product, rewrite, square

_X = Value("x")
_HALF = Number(0.5)
_OVER_SQRT_2 = Either(Op("Mul", _X, Number(math.sqrt(0.5))), Op("Div", _X, Number(math.sqrt(2.0))))
_MINUS_OVER_SQRT_2 = Either(
    Op("Mul", Op("Neg", _X), Number(math.sqrt(0.5))),
    Op("Div", Op("Neg", _X), Number(math.sqrt(2.0))),
    Op("Mul", _X, Number(-math.sqrt(0.5))),
    Op("Neg", _OVER_SQRT_2),
)
_EXACT = product(
    _X,
    _HALF,
    Either(Op("Add", Op("Erf", _OVER_SQRT_2), Number(1.0)), Op("Erfc", _MINUS_OVER_SQRT_2)),
)
_SQUARE = Either(square(_X))
_CUBE = Either(Op("Pow", _X, Number(3.0)), Op("Mul", _X, _SQUARE))
_COEFFICIENT = Number(0.044715, tolerance=1e-4)
_INNER = Either(
    Op("Add", _X, Op("Mul", _COEFFICIENT, _CUBE)),
    Op("Add", _X, product(_COEFFICIENT, _X, _SQUARE)),
    Op("Mul", _X, Op("Add", Op("Mul", _COEFFICIENT, _SQUARE), Number(1.0))),
)
_TANH = Op("Tanh", Op("Mul", _INNER, Number(math.sqrt(2.0 / math.pi), tolerance=1e-4)))
_APPROXIMATE = product(_X, _HALF, Op("Add", _TANH, Number(1.0)))


def lift_gelu(graph: Graph) -> bool:
    exact = rewrite(graph, _EXACT, lambda g, root, match: _gelu(g, root, match, "none"))
    return rewrite(graph, _APPROXIMATE, lambda g, root, match: _gelu(g, root, match, "tanh")) or exact


def _gelu(graph: Graph, root: Any, match: Match, approximate: str) -> list[Any]:
    return [graph.node("Gelu", [match["x"]], root.output[0], root, approximate=approximate)]
