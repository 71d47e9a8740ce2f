"""Matrix products and convolutions in ONNX."""

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlir_pipeline.engines.onnx_graph import Graph, Tensor
from mlir_pipeline.errors import CompileError


def dot_general(
    g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """A `MatMul` after transpositions where each side has one axis left of its own, else an `Einsum`.

    JAX's result is `[*batch, *free axes of a, *free axes of b]`.
    """
    (a_contract, b_contract), (a_batch, b_batch) = params["dimension_numbers"]
    a, b = operands
    if a.dtype == bool:
        raise CompileError("a product of booleans")
    free_a = [i for i in range(len(a.shape)) if i not in (*a_contract, *a_batch)]
    free_b = [i for i in range(len(b.shape)) if i not in (*b_contract, *b_batch)]
    matrix = len(a_contract) == 1 and len(free_b) == 1
    if matrix and (len(free_a) == 1 or (free_a and not a_batch)):
        left = _transposed(g, a, [*a_batch, *free_a, *a_contract])
        right = _transposed(g, b, [*b_batch, *b_contract, *free_b])
        name = g.node("MatMul", left, right)
    else:
        letters = iter(string.ascii_lowercase)
        terms = [[""] * len(a.shape), [""] * len(b.shape)]
        shared = [*zip(a_batch, b_batch, strict=True), *zip(a_contract, b_contract, strict=True)]
        for own, other in shared:
            terms[0][own] = terms[1][other] = next(letters)
        for term, free in zip(terms, (free_a, free_b), strict=True):
            for axis in free:
                term[axis] = next(letters)
        result = [terms[0][i] for i in (*a_batch, *free_a)] + [terms[1][i] for i in free_b]
        equation = ",".join("".join(t) for t in terms) + "->" + "".join(result)
        name = g.node("Einsum", a.name, b.name, equation=equation)
    return [Tensor(name, tuple(avals[0].shape), np.dtype(avals[0].dtype))]


def _transposed(g: Graph, x: Tensor, order: list[int]) -> str:
    return x.name if order == sorted(order) else g.node("Transpose", x.name, perm=order)


def convolution(
    g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """ONNX's layout is batch, channels, space for the operand, and output, input, space for the kernel."""
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise CompileError("a transposed convolution, or one grouped by batch")
    if any(edge < 0 for pair in params["padding"] for edge in pair):
        raise CompileError("a convolution with negative padding")
    x = _transposed(g, operands[0], list(numbers.lhs_spec))
    kernel = _transposed(g, operands[1], list(numbers.rhs_spec))
    found = g.node(
        "Conv",
        x,
        kernel,
        strides=list(strides),
        pads=[pair[side] for side in (0, 1) for pair in params["padding"]],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    back = [numbers.out_spec.index(axis) for axis in range(len(numbers.out_spec))]
    if back != sorted(back):
        found = g.node("Transpose", found, perm=back)
    return [Tensor(found, tuple(avals[0].shape), np.dtype(avals[0].dtype))]
