"""ONNX loops as TensorFlow graphs write them, made simple: what does not change leaves the state, a number
of trips that follows from counters is found, and a counter is the trip's index."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_MOST_TRIPS = 4096
"""A longer count is left to run: finding it here evaluates the counters of every trip."""

_SMALL = 16
"""Values of a state that may count."""


def simplify(node: Any, constants: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[Any]:
    """The nodes that replace a Loop, `[node]` itself if there is nothing to do. New constants are put among
    `constants`; `shapes` are those known around the loop."""
    body = next(a.g for a in node.attribute if a.name == "body")
    names = {n for inner in body.node for n in (*inner.input, *inner.output)} | {v.name for v in body.input}
    states = list(zip(node.input[2:], body.input[2:], list(body.output)[1:], strict=False))
    fixed = [
        i for i, (start, inside, end) in enumerate(states) if end.name == inside.name and start not in names
    ]
    if fixed:
        return _without(node, body, states, fixed)
    trips, counters = _trips(node, body, states, constants)
    if trips is None:
        return [node]
    return _counted(node, body, states, trips, counters, constants, shapes)


def _without(node: Any, body: Any, states: list[tuple[str, Any, Any]], fixed: list[int]) -> list[Any]:
    """The loop whose body reads the values of these states from around it."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    graph = next(a.g for a in made.attribute if a.name == "body")
    outside = {states[i][1].name: states[i][0] for i in fixed}
    _rename(graph, outside)
    _drop(made, graph, fixed)
    kept = [
        helper.make_node("Identity", [states[i][0]], [node.output[i]])
        for i in fixed
        if i < len(node.output) and node.output[i]
    ]
    return [made, *kept]


def _counted(
    node: Any,
    body: Any,
    states: list[tuple[str, Any, Any]],
    trips: int,
    counters: dict[int, list[np.ndarray]],
    constants: dict[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Any]:
    """The loop with a constant number of trips and no condition; counters are computed from the index."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    graph = next(a.g for a in made.attribute if a.name == "body")
    outer = next(name for name in node.output if name)
    constants[f"{outer}/trips"] = np.array(trips, np.int64)
    while len(made.input) < 2:
        made.input.append("")
    made.input[0], made.input[1] = f"{outer}/trips", ""
    graph.output[0].name = f"{outer}/going"
    graph.initializer.append(numpy_helper.from_array(np.array(True), f"{outer}/going"))
    index, affine = body.input[0].name, []
    givens = [
        {index: np.array(k, np.int64), **{states[i][1].name: values[k] for i, values in counters.items()}}
        for k in range(trips)
    ]
    _slices_as_gathers(graph, givens, constants, shapes)
    for i, values in counters.items():
        inside = states[i][1].name
        step = values[1] - values[0] if trips else np.zeros_like(values[0])
        if any(not np.array_equal(v, values[0] + k * step) for k, v in enumerate(values)):
            continue
        affine.append(i)
        if i < len(node.output) and node.output[i]:
            constants[node.output[i]] = values[-1]
        dtype = helper.np_dtype_to_tensor_dtype(values[0].dtype)
        nodes = [helper.make_node("Cast", [index], [f"{inside}/index"], to=dtype)]
        scaled = f"{inside}/index"
        if not (step == 1).all():
            graph.initializer.append(numpy_helper.from_array(step, f"{inside}/step"))
            nodes.append(helper.make_node("Mul", [scaled, f"{inside}/step"], [f"{inside}/scaled"]))
            scaled = f"{inside}/scaled"
        if values[0].any() or values[0].shape:
            graph.initializer.append(numpy_helper.from_array(values[0], f"{inside}/start"))
            nodes.append(helper.make_node("Add", [scaled, f"{inside}/start"], [inside]))
        else:
            nodes[-1].output[0] = inside
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *rest])
    _drop(made, graph, affine)
    return [made]


def _slices_as_gathers(
    graph: Any,
    givens: list[dict[str, np.ndarray]],
    constants: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """`x[:, i]` of a counter is a slice with computed ends: where its size is the same at every trip, it is a
    gather at indices that move with the trip."""
    known = {**constants, **{t.name: numpy_helper.to_array(t) for t in graph.initializer}}
    producer = {name: inner for inner in graph.node for name in inner.output}
    index = graph.input[0].name
    made: list[Any] = []
    for inner in graph.node:
        ends = [n for n in inner.input[1:] if n] if inner.op_type == "Slice" else []
        free = set(givens[0]) if givens else set()
        if (
            not ends
            or all(n in known for n in ends)
            or inner.input[0] not in shapes
            or not givens
            or not all(_closed(n, producer, known, free) for n in ends)
        ):
            made.append(inner)
            continue
        evaluate = _evaluator(ends, graph, producer, known, free)
        moving = _moving_axes([evaluate(given) for given in givens], shapes[inner.input[0]])
        if moving is None:
            made.append(inner)
            continue
        current = inner.input[0]
        for n, (axis, rows) in enumerate(moving.items()):
            name = inner.output[0] if n == len(moving) - 1 else f"{inner.output[0]}/{axis}"
            first, step = rows[0], rows[1] - rows[0] if len(rows) > 1 else np.zeros_like(rows[0])
            where = f"{name}/where"
            if all(np.array_equal(row, first + k * step) for k, row in enumerate(rows)):
                graph.initializer.append(numpy_helper.from_array(first, f"{name}/first"))
                graph.initializer.append(numpy_helper.from_array(step, f"{name}/step"))
                made.append(
                    helper.make_node("Mul", [index, f"{name}/step"], [f"{name}/moved"], name=inner.name)
                )
                made.append(
                    helper.make_node("Add", [f"{name}/moved", f"{name}/first"], [where], name=inner.name)
                )
            else:
                graph.initializer.append(numpy_helper.from_array(np.stack(rows), f"{name}/table"))
                made.append(helper.make_node("Gather", [f"{name}/table", index], [where], name=inner.name))
            made.append(helper.make_node("Gather", [current, where], [name], axis=axis, name=inner.name))
            current = name
    del graph.node[:]
    graph.node.extend(made)


def _moving_axes(ends: list[list[np.ndarray]], shape: tuple[int, ...]) -> dict[int, list[np.ndarray]] | None:
    """For each sliced axis its indices at every trip; None where their number changes."""
    moving: dict[int, list[np.ndarray]] = {}
    for starts, stops, *rest in ends:
        axes = rest[0] if rest else np.arange(len(starts))
        steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
        for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
            at = int(axis) % len(shape)
            indices = range(shape[at])[int(start) : int(stop) : int(step)]
            moving.setdefault(at, []).append(np.array(indices, np.int64))
    if any(len({len(row) for row in rows}) != 1 for rows in moving.values()):
        return None
    changing = {
        axis: rows for axis, rows in moving.items() if any(not np.array_equal(row, rows[0]) for row in rows)
    }
    whole = {axis for axis, rows in moving.items() if np.array_equal(rows[0], np.arange(shape[axis]))}
    return {axis: rows for axis, rows in moving.items() if axis in changing or axis not in whole}


def _trips(
    node: Any, body: Any, states: list[tuple[str, Any, Any]], constants: Mapping[str, np.ndarray]
) -> tuple[int | None, dict[int, list[np.ndarray]]]:
    """How often the loop runs, and for each counter its values before every trip and after the last; None
    where that depends on other values."""
    limit, start = (node.input[i] if i < len(node.input) else "" for i in range(2))
    if (limit and limit not in constants) or (start and start not in constants):
        return None, {}
    known = {**constants, **{t.name: numpy_helper.to_array(t) for t in body.initializer}}
    producer = {name: inner for inner in body.node for name in inner.output}
    index, flag = body.input[0].name, body.input[1].name
    going = body.output[0].name
    if limit and going in known:
        return None, {}  # simple already
    counters = {
        i
        for i, (initial, _, _) in enumerate(states)
        if initial in constants and constants[initial].size <= _SMALL
    }
    while True:
        free = {index, flag, *(states[i][1].name for i in counters)}
        open_ = {i for i in counters if not _closed(states[i][2].name, producer, known, free)}
        if not open_:
            break
        counters -= open_
    if not _closed(going, producer, known, free):
        return None, {}
    ends = [states[i][2].name for i in sorted(counters)]
    evaluate = _evaluator([going, *ends], body, producer, known, free)
    most = int(constants[limit].reshape(-1)[0]) if limit else _MOST_TRIPS + 1
    still = bool(constants[start].reshape(-1)[0]) if start else True
    values = {i: [constants[states[i][0]]] for i in sorted(counters)}
    trip = 0
    while still and trip < min(most, _MOST_TRIPS + 1):
        given = {index: np.array(trip, np.int64), flag: np.array(True)}
        given.update({states[i][1].name: history[-1] for i, history in values.items()})
        still, *after = evaluate(given)
        for history, value in zip(values.values(), after, strict=True):
            history.append(np.asarray(value))
        trip += 1
    return (None, {}) if trip > _MOST_TRIPS else (trip, values)


def _closed(name: str, producer: Mapping[str, Any], known: Mapping[str, Any], free: set[str]) -> bool:
    """Whether a value follows from the free ones and constants alone."""
    if name in free or name in known or not name:
        return True
    inner = producer.get(name)
    if inner is None or any(a.type == onnx.AttributeProto.GRAPH for a in inner.attribute):
        return False
    return all(_closed(operand, producer, known, free) for operand in inner.input)


def _evaluator(
    wanted: list[str], body: Any, producer: Mapping[str, Any], known: Mapping[str, np.ndarray], free: set[str]
) -> Any:
    needed, queue = set(), list(wanted)
    while queue:
        name = queue.pop()
        if name and name not in needed and name not in free:
            needed.add(name)
            queue += list(producer[name].input) if name in producer else []
    nodes = [inner for inner in body.node if needed & set(inner.output)]
    results = [f"{name}/now" for name in wanted]
    nodes += [helper.make_node("Identity", [n], [r]) for n, r in zip(wanted, results, strict=True)]
    used = {n for inner in nodes for n in inner.input}
    graph = helper.make_graph(
        nodes,
        "counters",
        [_named(name) for name in sorted(free & used)],
        [_named(name) for name in results],
        [numpy_helper.from_array(known[n], n) for n in sorted(used - free) if n in known],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    evaluator = ReferenceEvaluator(model)
    return lambda given: evaluator.run(None, {n: v for n, v in given.items() if n in used})


def _drop(node: Any, body: Any, indices: list[int]) -> None:
    """Takes states out of a loop."""
    for i in sorted(indices, reverse=True):
        del node.input[2 + i]
        del body.input[2 + i]
        del body.output[1 + i]
        if i < len(node.output):
            del node.output[i]


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for inner in graph.node:
        inner.input[:] = [names.get(n, n) for n in inner.input]
        for attribute in inner.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _named(name: str) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto()
    value.name = name
    return value
