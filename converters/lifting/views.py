"""Reshape, Squeeze, Unsqueeze, Flatten, Transpose, Expand and Tile that cancel or take several steps.

Two views in a row become one, named for what it does; a repeat (unsqueeze, tile, reshape) becomes an Expand;
a slice of one step that is squeezed becomes an index; unsqueezed parts that are concatenated become
jaxrank.Stack(axis). Dimension 0 holds the rows and is never taken for another one.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Match, Op, Value, rewrite

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_X = Value("x")


def simplify_views(graph: Graph) -> bool:
    changed = False
    for node in [n for n in graph.nodes if n.op_type == "Concat"]:
        stack = _stack(graph, node)
        if stack is not None:
            graph.replace(node, [stack])
            changed = True
    repeat = Op("Reshape", Op("Tile", Op("Unsqueeze", _X, Constant("axes")), Constant("repeats")))
    changed = rewrite(graph, repeat, _repeat) or changed
    sliced = Op("Slice", _X, name="slice")
    changed = rewrite(graph, Op("Squeeze", sliced, Constant("axes")), _index) or changed
    for op in _VIEWS:
        for node in [n for n in graph.nodes if n.op_type == op]:
            changed = _view(graph, node) or changed
    changed = rewrite(graph, Op("Transpose", Op("Transpose", _X, name="inner")), _transpose) or changed
    for node in list(graph.nodes):
        if graph.producer(node.output[0]) is node and _does_nothing(graph, node):
            changed = graph.bypass(node, node.input[0]) or changed
    return changed


def _does_nothing(graph: Graph, node: Any) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Transpose":
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        return perm is not None and perm == sorted(perm)
    if node.op_type == "Slice" and any(
        (graph.constants.get(n, np.zeros(1)) != 1).any() for n in node.input[4:]
    ):
        return False
    if node.op_type in (*_VIEWS, "Expand", "Tile", "Slice"):
        shape = graph.shape(node.input[0])
        return shape is not None and shape == graph.shape(node.output[0])
    return False


def _view(graph: Graph, node: Any) -> bool:
    """A view of a view reads the first value; a Reshape that only adds or drops ones says so."""
    if graph.producer(node.output[0]) is not node:
        return False
    inner, value = graph.producer(node.input[0]), node.input[0]
    while inner is not None and inner.op_type in _VIEWS and graph.shape(inner.input[0]) is not None:
        value = inner.input[0]
        inner = graph.producer(value)
    source, target = graph.shape(value), graph.shape(node.output[0])
    if not source or not target or source[0] != target[0] or source == target:
        return value != node.input[0] and source == target and graph.bypass(node, value)
    if value == node.input[0] and node.op_type != "Reshape":
        return False
    new = _plain_view(graph, value, source, target, node)
    if value == node.input[0] and new.op_type == "Reshape":
        return False
    graph.replace(node, [new])
    return True


def _plain_view(graph: Graph, value: str, source: tuple[int, ...], target: tuple[int, ...], node: Any) -> Any:
    for op, small, large in (("Unsqueeze", source, target), ("Squeeze", target, source)):
        axes = _ones_between(small, large)
        if axes:
            name = graph.constant(np.array(axes, np.int64), f"axes_{'_'.join(map(str, axes))}")
            return graph.node(op, [value, name], node.output[0], node)
    shape = graph.constant(np.array([-1, *target[1:]], np.int64), f"shape_{'_'.join(map(str, target))}")
    return graph.node("Reshape", [value, shape], node.output[0], node)


def _ones_between(small: tuple[int, ...], large: tuple[int, ...]) -> list[int] | None:
    """Axes of `large` without which it is `small`, the rows first; None if there are no such axes."""
    axes, at = [], 0
    for i, size in enumerate(large):
        if at < len(small) and size == small[at]:
            at += 1
        elif size == 1:
            axes.append(i)
        else:
            return None
    return axes if at == len(small) else None


def _transpose(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    first = next((list(a.ints) for a in graph.maker(match["inner"]).attribute if a.name == "perm"), None)
    second = next((list(a.ints) for a in root.attribute if a.name == "perm"), None)
    if first is None or second is None:
        return None
    perm = [first[i] for i in second]
    return [graph.node("Transpose", [match["x"]], root.output[0], root, perm=perm)]


def _repeat(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    """[n, 1, d] -> [n, 1, 1, d] -> [n, 1, k, d] -> [n, k, d]: how `tf.repeat` spells a broadcast."""
    source, target = graph.shape(match["x"]), graph.shape(root.output[0])
    repeats = graph.constants[match["repeats"]]
    if not source or not target or len(source) != len(target):
        return None
    grown = [i for i, (a, b) in enumerate(zip(source, target, strict=True)) if a != b]
    if len(grown) != 1 or source[grown[0]] != 1 or int(np.prod(repeats)) != target[grown[0]]:
        return None
    shape = graph.constant(np.array(target, np.int64), f"shape_{'_'.join(map(str, target))}")
    return [graph.node("Expand", [match["x"], shape], root.output[0], root)]


def _index(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    """`x[:, i:i + 1]` squeezed is `x[:, i]`."""
    node, source = graph.maker(match["slice"]), graph.shape(match["x"])
    squeezed, cut = graph.axes(root), graph.shape(match["slice"])
    if source is None or cut is None or squeezed is None or len(squeezed) != 1 or len(node.input) < 4:
        return None
    axis = squeezed[0]
    others = (*source[:axis], *source[axis + 1 :]) == (*cut[:axis], *cut[axis + 1 :])
    starts, axes = graph.constants.get(node.input[1]), graph.constants.get(node.input[3])
    if axis == 0 or not others or starts is None or axes is None or cut[axis] != 1:
        return None
    if source[axis] == 1:
        return [graph.node("Squeeze", [match["x"], match["axes"]], root.output[0], root)]
    start = next((int(s) for s, a in zip(starts, axes, strict=True) if int(a) % len(source) == axis), 0)
    start += source[axis] if start < 0 else 0
    if not 0 <= start < source[axis]:
        return None
    index = graph.constant(np.array(start, np.int64), f"index_{start}")
    return [graph.node("Gather", [match["x"], index], root.output[0], root, axis=axis)]


def _stack(graph: Graph, root: Any) -> Any | None:
    """The unsqueezed parts may have other readers: an unsqueeze costs nothing."""
    axis = next(a.i for a in root.attribute if a.name == "axis")
    parts = [graph.producer(name) for name in root.input]
    rank = len(graph.shape(root.output[0]) or ())
    if len(parts) < 2 or not rank or axis % rank == 0:
        return None
    for node in parts:
        if node is None or node.op_type != "Unsqueeze" or graph.axes(node) != (axis % rank,):
            return None
    inputs = [p.input[0] for p in parts if p is not None]
    return graph.node("Stack", inputs, root.output[0], root, own=True, axis=axis % rank)
