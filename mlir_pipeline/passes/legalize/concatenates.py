# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Concatenations with a dynamic dimension, as one copy for each operand.

IREE 3.13 lowers a dynamic `stablehlo.concatenate` to a choice of operand for every element, which does not
vectorize, and fuses that choice into what reads it.
"""

from iree.compiler import ir
from iree.compiler.dialects import tensor

from mlir_pipeline.passes.legalize.lowering import Lowering, dimension, result_of
from mlir_pipeline.passes.legalize.sizes import constant, plus


def concatenate(lowering: Lowering, op: ir.Operation) -> ir.Value:
    kind, sizes = result_of(lowering, op)
    axis = ir.IntegerAttr(op.attributes["dimension"]).value
    value, start = lowering.empty(sizes, kind.element_type), constant(0)
    for operand in op.operands:
        part, shape = lowering.sizes.of(operand), list(ir.RankedTensorType(operand.type).shape)
        offsets = [start if d == axis else constant(0) for d in range(kind.rank)]
        static = [dimension(s) for s in offsets]
        value = tensor.InsertSliceOp(
            operand,
            value,
            lowering.dynamic(offsets, static),
            lowering.dynamic(part, shape),
            [],
            static,
            shape,
            [1] * kind.rank,
        ).result
        start = plus(start, part[axis])
    lowering.sizes.record(value, sizes)
    return value
