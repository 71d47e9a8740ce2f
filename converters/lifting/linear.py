"""Products with a constant matrix to jaxrank.Linear(x, kernel[, bias]), over the last axis of any rank.

Gemm and MatMul; a constant vector added after it becomes the bias; the reshapes to a matrix and back that
TensorFlow puts around the product of a sequence go; a bias added to split heads moves before the split.
Left alone: a transposed input, scaled products, weights that are not float32, a bias that other rows share.
"""

from typing import Any

import numpy as np

from converters.lifting.graph import Graph
from converters.lifting.pattern import Constant, Match, Op, Value, rewrite

_X, _KERNEL, _BIAS = Value("x"), Constant("kernel"), Constant("bias")
_NO_BIAS = Op("Linear", _X, _KERNEL, name="product")
_SPLIT_HEADS = Op("Add", Op("Reshape", _NO_BIAS, Constant("shape"), name="heads"), _BIAS)
_ON_ROWS = Op("Reshape", Op("Linear", Op("Reshape", _X), _KERNEL, name="product"))


def lift_linear(graph: Graph) -> bool:
    found = rewrite(graph, Op("MatMul", _X, _KERNEL), _linear)
    found = rewrite(graph, Op("Gemm", _X, _KERNEL), _gemm) or found
    found = rewrite(graph, _ON_ROWS, _on_last_axis) or found
    found = rewrite(graph, Op("Add", _NO_BIAS, _BIAS), _biased) or found
    return rewrite(graph, _SPLIT_HEADS, _biased_heads) or found


def _is_kernel(value: np.ndarray) -> bool:
    return value.ndim == 2 and value.dtype == np.float32


def _linear(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    if not _is_kernel(graph.constants[match["kernel"]]) or len(graph.shape(match["x"]) or ()) < 2:
        return None
    return [graph.node("Linear", [match["x"], match["kernel"]], root.output[0], root, own=True)]


def _gemm(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    attributes = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in root.attribute}
    kernel = graph.constants[match["kernel"]]
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    if not _is_kernel(kernel):
        return None
    inputs = [match["x"], match["kernel"]]
    if attributes.get("transB"):
        kernel = kernel.T
        inputs[1] = graph.constant(np.ascontiguousarray(kernel), f"{inputs[1]}__transposed")
    if len(root.input) > 2 and root.input[2]:
        bias = _vector(graph, root.input[2], kernel.shape[1])
        rows = graph.shape(match["x"])
        if bias is None and rows is not None:
            product = graph.value(root.output[0], (*rows[:-1], kernel.shape[1]))
            return [
                graph.node("Linear", inputs, product, root, own=True),
                graph.node("Add", [product, root.input[2]], root.output[0], root),
            ]
        if bias is None:
            return None
        inputs.append(bias)
    return [graph.node("Linear", inputs, root.output[0], root, own=True)]


def _vector(graph: Graph, name: str, width: int) -> str | None:
    """The constant as a vector of one value for each feature; None if it is not one."""
    value = graph.constants.get(name)
    if value is None or value.dtype != np.float32 or value.size != width or value.shape[-1:] != (width,):
        return None
    return name if value.ndim == 1 else graph.constant(value.reshape(-1), f"{name}__vector")


def _biased(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    product = graph.maker(match["product"])
    shape = graph.shape(match["product"])
    if len(product.input) > 2 or shape is None or graph.shape(root.output[0]) != shape:
        return None
    bias = _vector(graph, match["bias"], shape[-1])
    if bias is None:
        return None
    return [graph.node("Linear", [match["x"], match["kernel"], bias], root.output[0], product, own=True)]


def _biased_heads(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    product, flat = graph.maker(match["product"]), graph.shape(match["product"])
    heads, bias = graph.shape(match["heads"]), graph.constants[match["bias"]]
    if flat is None or heads is None or len(product.input) > 2 or bias.dtype != np.float32:
        return None
    split = heads[len(flat) - 1 :]
    if heads[: len(flat) - 1] != flat[:-1] or bias.size != flat[-1] or bias.shape[-len(split) :] != split:
        return None
    vector = graph.constant(bias.reshape(-1), f"{match['bias']}__vector")
    biased = graph.value(match["product"], flat)
    return [
        graph.node("Linear", [match["x"], match["kernel"], vector], biased, product, own=True),
        graph.node("Reshape", [biased, match["shape"]], root.output[0], graph.maker(match["heads"])),
    ]


def _on_last_axis(graph: Graph, root: Any, match: Match) -> list[Any] | None:
    product = graph.maker(match["product"])
    source, target = graph.shape(match["x"]), graph.shape(root.output[0])
    lead = source[:-1] if source else ()
    kernel = graph.constants[match["kernel"]]
    if not source or not target or target[: len(lead)] != lead or source[-1] != kernel.shape[0]:
        return None
    inputs = [match["x"], *product.input[1:]]
    if target == (*lead, kernel.shape[1]):
        return [graph.node("Linear", inputs, root.output[0], product, own=True)]
    if int(np.prod(target[len(lead) :])) != kernel.shape[1]:
        return None
    split = graph.value(match["product"], (*lead, kernel.shape[1]))  # heads
    shape = graph.constant(np.array([-1, *target[1:]], np.int64), f"shape_{'_'.join(map(str, target))}")
    return [
        graph.node("Linear", inputs, split, product, own=True),
        graph.node("Reshape", [split, shape], root.output[0], root),
    ]
