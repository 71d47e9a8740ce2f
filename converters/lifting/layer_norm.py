"""Layer normalisation over the last axis, as `tf.nn.moments` and Keras spell it, to LayerNormalization.

`(x - mean) * rsqrt(variance + epsilon) * gamma + beta`, or `x * inv + (beta - mean * inv)` with `inv =
rsqrt(variance + epsilon) * gamma`; gamma and beta may be missing. Left alone: other axes, a variance that is
not of `x - mean`, an epsilon added to the deviation instead of the variance.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Either, Match, Number, Op, Value, product, rewrite, square

WITHOUT_SCALE = "without_scale"
"""Begins the name of the ones that ONNX requires as a scale where the model has none."""

_X = Value("x")
_MEAN = Op("ReduceMean", _X, name="mean")
_DEVIATION = Op("Sub", _X, _MEAN, name="deviation")
_VARIANCE = Op("ReduceMean", square(_DEVIATION), name="variance")
_SHIFTED = Op("Add", _VARIANCE, Constant("epsilon"), name="shifted")
_STD = Op("Sqrt", _SHIFTED, name="std")
_RSQRT = Either(
    Op("Reciprocal", _STD, name="rsqrt"),
    Op("Div", Number(1.0), _STD, name="rsqrt"),
    Op("Pow", _SHIFTED, Number(-0.5), name="rsqrt"),
)
_GAMMA, _BETA = Constant("gamma"), Constant("beta")
# The mean may also be taken of a value that is centred again by another Sub of the same operands.
_CENTRED = Either(_DEVIATION, Op("Sub", _X, _MEAN))
_PLAIN = Either(Op("Div", _CENTRED, _STD), Op("Mul", _CENTRED, _RSQRT))
_SCALED = Either(Op("Mul", _PLAIN, _GAMMA), product(_CENTRED, _RSQRT, _GAMMA))
_INVERSE = Op("Mul", _RSQRT, _GAMMA, name="inverse")


def _affine(inverse: Any) -> Any:
    """`x * inverse + (-mean * inverse [+ beta])`, both signs of the mean."""
    minus = Op("Mul", Op("Neg", _MEAN), inverse)
    times = Op("Mul", _MEAN, inverse)
    scaled = Op("Mul", _X, inverse)
    return Either(
        Op("Add", scaled, Either(Op("Add", minus, _BETA), Op("Sub", _BETA, times), minus)),
        Op("Sub", scaled, times),
    )


_PATTERN = Either(
    Op("Add", Either(_SCALED, _PLAIN), _BETA), _SCALED, _affine(_INVERSE), _affine(_RSQRT), _PLAIN
)


def lift_layer_norm(graph: Graph) -> bool:
    return rewrite(graph, _PATTERN, _layer_norm)


def _layer_norm(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    shape, epsilon = graph.shape(match["x"]), graph.scalar(match["epsilon"])
    if shape is None or epsilon is None or graph.shape(root.output[0]) != shape:
        return None
    for node in (graph.maker(match["mean"]), graph.maker(match["variance"])):
        keepdims = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if graph.axes(node) != (len(shape) - 1,) or not keepdims:
            return None
    width = shape[-1]
    weights = {}
    for role in ("gamma", "beta"):
        name = match.get(role)
        if name is None:
            continue
        weight = graph.constants[name]
        if weight.size != width or weight.shape[-1] != width:
            return None
        weights[role] = name if weight.ndim == 1 else graph.constant(weight.reshape(width), name)
    scale = weights.get("gamma") or graph.constant(np.ones(width, np.float32), WITHOUT_SCALE)
    inputs = [match["x"], scale, *([weights["beta"]] if "beta" in weights else [])]
    return [graph.node("LayerNormalization", inputs, root.output[0], root, axis=-1, epsilon=epsilon)]
