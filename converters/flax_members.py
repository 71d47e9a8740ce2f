"""What a node with weights is in Flax: an nnx layer, its constructor and its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from converters.lifting.graph import Graph
from converters.lifting.layer_norm import WITHOUT_SCALE


@dataclass(frozen=True)
class Layer:
    """`constructor` makes it; `weights` are the constants of its parameters by attribute path."""

    constructor: str
    weights: dict[str, str]


def layer(node: Any, graph: Graph) -> Layer | None:
    """The layer that a node is, or None: then the operator table has an expression for it."""
    make = _LAYERS.get(node.op_type)
    weights = [graph.constants.get(name) for name in node.input[1:] if name]
    if make is None or any(weight is None or weight.dtype != np.float32 for weight in weights):
        return None
    return make(node, graph)


def _linear(node: Any, graph: Graph) -> Layer:
    features = graph.constants[node.input[1]].shape
    weights: dict[str, str] = dict(zip(("kernel", "bias"), node.input[1:], strict=False))
    no_bias = "" if "bias" in weights else ", use_bias=False"
    return Layer(f"nnx.Linear({features[0]}, {features[1]}{no_bias}, rngs=rngs)", weights)


def _layer_norm(node: Any, graph: Graph) -> Layer | None:
    """With the variance of differences, as TensorFlow computes it, not the mean of squares."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shape, scale = graph.shape(node.input[0]), graph.constants[node.input[1]]
    axis = attributes.get("axis", -1)
    if not shape or axis not in (-1, len(shape) - 1) or scale.shape != shape[-1:] or len(node.output) > 1:
        return None
    weights = {} if node.input[1].startswith(WITHOUT_SCALE) else {"scale": node.input[1]}
    options = "" if weights else ", use_scale=False"
    if len(node.input) > 2 and node.input[2]:
        weights["bias"] = node.input[2]
    else:
        options += ", use_bias=False"
    epsilon = str(np.float32(attributes.get("epsilon", 1e-5)))
    return Layer(
        f"nnx.LayerNorm({shape[-1]}, epsilon={epsilon}{options}, use_fast_variance=False, rngs=rngs)", weights
    )


def _prelu(node: Any, graph: Graph) -> Layer | None:
    slope = graph.constants[node.input[1]]
    if slope.dtype != np.float32 or slope.size < 2:
        return None
    return Layer(f"PReLU({tuple(slope.shape)}, rngs=rngs)", {"slope": node.input[1]})


def _dice(node: Any, graph: Graph) -> Layer:
    roles = ("norm.scale", "norm.shift", "alpha")
    width = graph.constants[node.input[3]].size
    return Layer(f"Dice({width}, rngs=rngs)", dict(zip(roles, node.input[1:], strict=True)))


def _scale_shift(node: Any, graph: Graph) -> Layer:
    width = graph.constants[node.input[1]].size
    return Layer(
        f"ScaleShift({width}, rngs=rngs)", dict(zip(("scale", "shift"), node.input[1:], strict=True))
    )


_LAYERS: dict[str, Callable[[Any, Graph], Layer | None]] = {
    "Linear": _linear,
    "LayerNormalization": _layer_norm,
    "PRelu": _prelu,
    "Dice": _dice,
    "ScaleShift": _scale_shift,
}
