"""`tf.math.l2_normalize`, `x * rsqrt(max(sum(x²), epsilon))`, to jaxrank.L2Normalize(axis, epsilon).

Left alone: an epsilon that is added, several axes.
"""

from typing import Any

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Number, Op, Value, rewrite, square

_X = Value("x")
_SUM = Op("ReduceSum", square(_X), name="sum")
_SUM_SQUARE = Either(_SUM, Op("ReduceSumSquare", _X, name="sum"))
_NORM = Op("Sqrt", Op("Max", _SUM_SQUARE, Constant("epsilon")))
_PATTERN = Either(
    Op("Mul", _X, Either(Op("Reciprocal", _NORM), Op("Div", Number(1.0), _NORM))), Op("Div", _X, _NORM)
)


def lift_l2_normalize(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, _normalize)


def _normalize(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    node = graph.maker(match["sum"])
    axes, epsilon = graph.axes(node), graph.scalar(match["epsilon"])
    keepdims = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    if axes is None or len(axes) != 1 or epsilon is None or not keepdims:
        return None
    return [
        graph.node("L2Normalize", [match["x"]], root.output[0], root, own=True, axis=axes[0], epsilon=epsilon)
    ]
