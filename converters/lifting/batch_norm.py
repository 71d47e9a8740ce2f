"""Inference batch norm, `x * scale + shift` with constant vectors, folded into the Linear before it;
elsewhere jaxrank.ScaleShift(x, scale, shift).

The folded kernel is `kernel * scale`, computed in float64 and rounded once: each product keeps a relative
error of one rounding. Left alone: `(x - mean) * scale`, which a fold would turn into a difference of large
numbers; scales that are single numbers; values that others read before the scale.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Op, Value, rewrite

_SCALED = Op("Mul", Value("x"), Constant("scale"))
_PATTERN = Either(Op("Add", _SCALED, Constant("shift")), Op("Sub", _SCALED, Constant("minus_shift")))
_AFTER_LINEAR = Op(
    "ScaleShift",
    Op("Linear", Value("x"), Constant("kernel"), name="product"),
    Constant("scale"),
    Constant("shift"),
)


def lift_batch_norm(graph: Graph) -> bool:
    found = rewrite(graph, _PATTERN, _scale_shift)
    return rewrite(graph, _AFTER_LINEAR, _folded) or found


def _scale_shift(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    shape = graph.shape(match["x"])
    if not shape or len(shape) < 2 or shape[-1] < 2 or graph.shape(root.output[0]) != shape:
        return None
    weights = []
    for role in ("scale", "shift" if match.get("shift") else "minus_shift"):
        value = graph.constants[match[role]]
        if value.size != shape[-1] or value.shape[-1] != shape[-1] or value.dtype != np.float32:
            return None
        flat = -value.reshape(-1) if role == "minus_shift" else value.reshape(-1)
        same = role != "minus_shift" and value.ndim == 1
        weights.append(match[role] if same else graph.constant(flat, f"{match[role]}__vector"))
    return [graph.node("ScaleShift", [match["x"], *weights], root.output[0], root, own=True)]


def _folded(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    product = graph.maker(match["product"])
    kernel, scale, shift = (
        graph.constants[match[n]].astype(np.float64) for n in ("kernel", "scale", "shift")
    )
    bias = graph.constants[product.input[2]].astype(np.float64) if len(product.input) > 2 else 0.0
    by = match["scale"]
    inputs = [
        match["x"],
        graph.constant((kernel * scale).astype(np.float32), f"{match['kernel']}__scaled_by__{by}"),
        graph.constant((bias * scale + shift).astype(np.float32), f"{match['shift']}__folded_with__{by}"),
    ]
    return [graph.node("Linear", inputs, root.output[0], product, own=True)]
