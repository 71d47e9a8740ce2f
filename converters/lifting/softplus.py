"""Softplus spelled by hand, `log(1 + exp(x))` or `max(x, 0) + log1p(exp(-|x|))`, to Softplus.

Equal up to rounding wherever the original is finite; the first form overflows above 88, Softplus does not.
"""

from converters.lifting.graph import Graph
from converters.lifting.pattern import Either, Number, Op, Value, rewrite

_X = Value("x")


def _log1p(x: Op) -> Either:
    return Either(Op("Log", Op("Add", x, Number(1.0))), Op("Log1p", x))


_POSITIVE = Either(Op("Relu", _X), Op("Max", _X, Number(0.0)))
_STABLE = Op("Add", _POSITIVE, _log1p(Op("Exp", Op("Neg", Op("Abs", _X)))))
_PATTERN = Either(_log1p(Op("Exp", _X)), _STABLE)


def lift_softplus(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, lambda g, r, m: [g.node("Softplus", [m["x"]], r.output[0], r)])
