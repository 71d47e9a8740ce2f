"""Softmax and log-softmax spelled by hand to Softmax and LogSoftmax.

`exp(x) / sum(exp(x))` and `x - log(sum(exp(x)))` over one axis, with or without the maximum taken away first.
Left alone: a mask multiplied in between, sums over another axis than the maximum, a sum without keepdims.
"""

from typing import Any

from converters.lifting.graph import Graph
from converters.lifting.pattern import Either, Match, Op, Value, rewrite

_X = Value("x")
_MAX = Op("ReduceMax", _X, name="max")
_SHIFTED = Op("Sub", _X, _MAX, name="shifted")


def _sum(exponential: Op) -> Op:
    return Op("ReduceSum", exponential, name="sum")


_EXP_SHIFTED, _EXP = Op("Exp", _SHIFTED, name="exp"), Op("Exp", _X, name="exp")
_SOFTMAX = Either(*(Op("Div", e, _sum(e)) for e in (_EXP_SHIFTED, _EXP)))
_LOG_SOFTMAX = Either(
    Op("Sub", _SHIFTED, Op("Log", _sum(_EXP_SHIFTED))),
    Op("Sub", _X, Op("Add", _MAX, Op("Log", _sum(_EXP_SHIFTED)))),
    Op("Sub", _X, Op("Log", _sum(_EXP))),
    Op("Sub", _X, Op("ReduceLogSumExp", _X, name="sum")),
)


def lift_softmax(graph: Graph) -> bool:
    softmax = rewrite(graph, _SOFTMAX, lambda g, r, m: _softmax(g, r, m, "Softmax"))
    return rewrite(graph, _LOG_SOFTMAX, lambda g, r, m: _softmax(g, r, m, "LogSoftmax")) or softmax


def _softmax(graph: Graph, root: Any, match: Match, op: str) -> list[Any] | None:
    axes = set()
    for name in ("max", "sum"):
        node = graph.producer(match.values.get(name, ""))
        if node is None:
            continue
        axes.add(graph.axes(node))
        if next((a.i for a in node.attribute if a.name == "keepdims"), 1) != 1:
            return None
    found = axes.pop()
    if axes or found is None or len(found) != 1:
        return None
    rank = len(graph.shape(match["x"]) or ())
    axis = -1 if found[0] == rank - 1 else found[0]
    return [graph.node(op, [match["x"]], root.output[0], root, axis=axis)]
