"""Loops and conditions in ONNX: their bodies are subgraphs that read names of the outer graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mlir_pipeline.engines.onnx_graph import Graph, Tensor, live_nodes, onnx_type, value_info

Write = Callable[[Graph, Any, Sequence[Any], Sequence[Tensor]], list[Tensor]]
"""`(graph, jaxpr, consts, arguments) -> outputs`: adds a jaxpr's equations."""
BodyRule = Callable[[Write, Graph, dict[str, Any], Sequence[Tensor], Sequence[Any]], list[Tensor]]


def _while(
    write: Write, g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """ONNX's `Loop` asks its condition after each trip; the first answer is given from outside. A condition
    for each row goes on while any row does, and leaves alone the rows that are done."""
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    for_condition, for_body, start = operands[:first], operands[first:second], operands[second:]
    (go,) = write(g, condition.jaxpr, condition.consts, [*for_condition, *start])
    with g.body() as nodes:
        state = _state(g, start)
        after = write(g, body.jaxpr, body.consts, [*for_body, *state])
        if go.shape:
            (goes,) = write(g, condition.jaxpr, condition.consts, [*for_condition, *state])
            after = [_where(g, goes, new, old) for new, old in zip(after, state, strict=True)]
        (again,) = write(g, condition.jaxpr, condition.consts, [*for_condition, *after])
        ends = [_any(g, again), *after]
        graph = _subgraph(g, nodes, [_trip(g), (g.fresh("go"), (), np.bool_), *map(_info, state)], ends)
    found = _many(
        g.node("Loop", "", _any(g, go).name, *(t.name for t in start), outputs=len(start), body=graph)
    )
    return _results(found, avals)


def _any(g: Graph, goes: Tensor) -> Tensor:
    if not goes.shape:
        return goes
    numbers = g.node("Cast", goes.name, to=onnx_type(np.int32))
    some = g.node("Cast", g.node("ReduceMax", numbers, keepdims=0), to=onnx_type(bool))
    return Tensor(some, (), np.dtype(bool))


def _where(g: Graph, goes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows that go on; the condition has the leading axes of the state."""
    rest = range(len(goes.shape), len(new.shape))
    mask = g.node("Unsqueeze", goes.name, g.constant(list(rest), np.int64)) if rest else goes.name
    if new.dtype.kind == "b":
        changed = g.node("And", mask, new.name), g.node("And", g.node("Not", mask), old.name)
        return Tensor(g.node("Or", *changed), new.shape, new.dtype)
    return Tensor(g.node("Where", mask, new.name, old.name), new.shape, new.dtype)


def _scan(
    write: Write, g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """A `Loop` of known length: sequences are read by the trip's index, results of trips are stacked."""
    body, length, reverse = params["jaxpr"], params["length"], params["reverse"]
    first, carried = params["num_consts"], params["num_carry"]
    consts, start = operands[:first], operands[first : first + carried]
    with g.body() as nodes:
        trip = _trip(g)
        place = trip[0]
        if reverse:
            place = g.node("Sub", g.constant(length - 1, np.int64), place)
        steps = [
            Tensor(g.node("Gather", t.name, place, axis=0), t.shape[1:], t.dtype)
            for t in operands[first + carried :]
        ]
        state = _state(g, start)
        after = write(g, body.jaxpr, body.consts, [*consts, *state, *steps])
        go = Tensor(g.node("Identity", g.constant(True, np.bool_)), (), np.dtype(bool))
        graph = _subgraph(g, nodes, [trip, (g.fresh("go"), (), np.bool_), *map(_info, state)], [go, *after])
    trips = g.constant(length, np.int64)
    names = [t.name for t in start]
    found = _many(g.node("Loop", trips, "", *names, outputs=len(avals), body=graph))
    if reverse:
        back = [g.constant([v], np.int64) for v in (-1, np.iinfo(np.int64).min, 0, -1)]
        found = [*found[:carried], *(g.node("Slice", name, *back) for name in found[carried:])]
    return _results(found, avals)


def _cond(
    write: Write, g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """Branches by index, as a chain of `If`: XLA takes the last branch for an index beyond them."""
    which, rest, branches = operands[0], operands[1:], params["branches"]

    def choose(at: int) -> list[str]:
        if at == len(branches) - 1:
            return [t.name for t in write(g, branches[at].jaxpr, branches[at].consts, rest)]
        if which.dtype == bool:
            here = g.node("Not", which.name)
        else:
            here = g.node("LessOrEqual", which.name, g.constant(at, which.dtype))
        graphs = []
        for build in (
            lambda: [t.name for t in write(g, branches[at].jaxpr, branches[at].consts, rest)],
            lambda: choose(at + 1),
        ):
            with g.body() as nodes:
                ends = [
                    Tensor(n, tuple(a.shape), np.dtype(a.dtype)) for n, a in zip(build(), avals, strict=True)
                ]
                graphs.append(_subgraph(g, nodes, [], ends))
        return _many(g.node("If", here, outputs=len(avals), then_branch=graphs[0], else_branch=graphs[1]))

    return _results(choose(0), avals)


def _trip(g: Graph) -> tuple[str, tuple[int, ...], Any]:
    return g.fresh("trip"), (), np.int64


def _state(g: Graph, start: Sequence[Tensor]) -> list[Tensor]:
    return [Tensor(g.fresh("state"), t.shape, t.dtype) for t in start]


def _info(value: Tensor) -> tuple[str, tuple[Any, ...], Any]:
    return value.name, value.shape, value.dtype


def _subgraph(
    g: Graph, nodes: list[onnx.NodeProto], inputs: Sequence[tuple[str, Any, Any]], outputs: Sequence[Tensor]
) -> onnx.GraphProto:
    """Every output is a node's of its own: ONNX forbids one that is an input or belongs to the outer
    graph."""
    names = [g.node("Identity", t.name) for t in outputs]
    kept, _ = live_nodes(nodes, set(names))
    return helper.make_graph(
        kept,
        g.fresh("body"),
        [value_info(*i) for i in inputs],
        [
            helper.make_tensor_value_info(n, onnx_type(t.dtype), None)
            for n, t in zip(names, outputs, strict=True)
        ],
    )


def _many(found: Any) -> list[str]:
    return [found] if isinstance(found, str) else list(found)


def _results(names: Sequence[str], avals: Sequence[Any]) -> list[Tensor]:
    return [Tensor(n, tuple(a.shape), np.dtype(a.dtype)) for n, a in zip(names, avals, strict=True)]


BODIES: dict[str, BodyRule] = {"while": _while, "scan": _scan, "cond": _cond}
"""Primitives with bodies."""
