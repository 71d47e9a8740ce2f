"""Constants that hold one number everywhere become that number, where broadcasting gives the same result.

`where(mask, x, full((1, 50), -1e9))` is `where(mask, x, -1e9)` when x or the mask has the result's shape.
Left alone: vectors, which may be the biases of a model that is not trained yet.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Where", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual",
}  # fmt: skip


def simplify_constants(graph: Graph) -> bool:
    changed = False
    for node in graph.nodes:
        if node.op_type in _ELEMENTWISE:
            for at in range(len(node.input)):
                changed = _simplified(graph, node, at) or changed
    if changed:
        graph.refresh()
    return changed


def _simplified(graph: Graph, node: Any, at: int) -> bool:
    value = graph.constants.get(node.input[at])
    if value is None or value.ndim < 2 or not value.size or not (value == value.flat[0]).all():
        return False
    others = [graph.shape(name) for i, name in enumerate(node.input) if i != at]
    target = graph.shape(node.output[0])
    if any(shape is None for shape in others) or np.broadcast_shapes(*others) != target:  # pyright: ignore
        return False
    number = value.flat[0]
    node.input[at] = graph.constant(np.array(number, value.dtype), f"number_{value.dtype}_{number}")
    return True
