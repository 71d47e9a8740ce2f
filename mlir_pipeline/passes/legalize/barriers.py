# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Optimization barriers on dynamic tensors."""

from iree.compiler import ir

from mlir_pipeline.passes.legalize.lowering import Lowering


def barrier(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """IREE's barrier takes a `?` only where the size of its result is tied to it
    (https://github.com/iree-org/iree/issues/19474)."""
    if len(op.operands) != 1:
        raise ValueError("a barrier of several tensors at once")
    operand = op.operands[0]
    sizes = lowering.sizes.of(operand)
    opaque = ir.Operation.create("util.optimization_barrier", results=[operand.type], operands=[operand])
    dims = lowering.dynamic(sizes, ir.RankedTensorType(operand.type).shape)
    value = ir.Operation.create(
        "flow.tensor.tie_shape", results=[operand.type], operands=[opaque.results[0], *dims]
    ).results[0]
    lowering.sizes.record(value, sizes)
    return value
