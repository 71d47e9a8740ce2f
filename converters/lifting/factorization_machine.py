"""The second-order interactions of a factorization machine (Rendle, 2010), `((sum x)² - sum x²) / 2` over the
field axis, to jaxrank.FactorizationMachine(axis, keepdims).

The half may also stand after a sum over the embedding. Left alone: sums over different axes.
"""

from typing import Any

from converters.lifting.graph import Graph
from converters.lifting.pattern import Either, Match, Number, Op, Value, rewrite, square

_X = Value("x")
_SUM = Op("ReduceSum", _X, name="sum")
_SUM_OF_SQUARES = Either(
    Op("ReduceSum", square(_X), name="squares"), Op("ReduceSumSquare", _X, name="squares")
)
_TWICE = Op("Sub", square(_SUM), _SUM_OF_SQUARES, name="twice")


def _half(x: Op) -> Either:
    return Either(Op("Mul", x, Number(0.5)), Op("Div", x, Number(2.0)))


_PATTERN = Either(_half(_TWICE), _half(Op("ReduceSum", _TWICE, name="pooled")))


def lift_factorization_machine(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, _interactions)


def _interactions(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    reductions = [graph.maker(match[name]) for name in ("sum", "squares")]
    axes = {graph.axes(node) for node in reductions}
    keepdims = {next((a.i for a in node.attribute if a.name == "keepdims"), 1) for node in reductions}
    found = axes.pop()
    if axes or found is None or len(found) != 1 or len(keepdims) != 1:
        return None
    attributes = {"own": True, "axis": found[0], "keepdims": keepdims.pop()}
    pooled = graph.producer(match.values.get("pooled", ""))
    if pooled is None:
        return [graph.node("FactorizationMachine", [match["x"]], root.output[0], root, **attributes)]
    value = match["twice"]
    half = graph.value(value, (graph.shape(value) or ()))
    reduction = graph.node("ReduceSum", [half, *pooled.input[1:]], root.output[0], pooled)
    reduction.attribute.extend(pooled.attribute)
    return [graph.node("FactorizationMachine", [match["x"]], half, root, **attributes), reduction]
