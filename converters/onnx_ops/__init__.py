"""The ONNX operator table: for each operator, the Python expression that a generated module computes it with.

One function for each operator, grouped by family. A function gets its operands as expressions and the node's
attributes as keyword arguments with ONNX's defaults; an attribute that it does not name is an error. Static
operands (axes, shapes, counts) are constants that must be known when the module is written and arrive as
NumPy arrays, so shape arithmetic stays in NumPy. Shapes are at one row: a first dimension of 1 is the row's,
and is written as -1. What needs more than an expression calls a function of `jaxrank.layers`.

Meanings are those of opset 18 and of later versions of the same operators up to 28. An operator without an
entry whose schema has a function body (`converters/onnx_graph.py`) is expanded into that.
"""

from converters.onnx_ops import (
    attention,
    control_flow,
    convolution,
    elementwise,
    indexing,
    losses,
    normalization,
    products,
    quantization,
    recurrent,
    reductions,
    resizing,
    shapes,
    signal,
)
from converters.onnx_ops.registry import OPS, Body, BoundBody, OnnxOp, Operand, Result, dtype_name, op

__all__ = ["OPS", "Body", "BoundBody", "OnnxOp", "Operand", "Result", "dtype_name", "op"]

FAMILIES = (
    attention, control_flow, convolution, elementwise, indexing, losses, normalization, products,
    quantization, recurrent, reductions, resizing, shapes, signal,
)  # fmt: skip
"""The modules of the table, for documentation generated from their docstrings."""
