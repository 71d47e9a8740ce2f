# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Broadcasts and positions of a dynamic shape.

IREE drops the `known_*_dimensions` of a dynamic broadcast and then refuses its `?` operands.
"""

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg

from mlir_pipeline.passes.legalize.lowering import Lowering, result_of


def broadcast(lowering: Lowering, op: ir.Operation) -> ir.Value:
    operand = op.operands[0]
    result, sizes = result_of(lowering, op)
    positions = [int(d) for d in ir.DenseI64ArrayAttr(op.attributes["broadcast_dimensions"])]
    shape = ir.RankedTensorType(operand.type).shape
    exprs = [
        ir.AffineConstantExpr.get(0) if size == 1 and result.shape[at] != 1 else ir.AffineDimExpr.get(at)
        for size, at in zip(shape, positions, strict=True)
    ]
    maps = [ir.AffineMap.get(result.rank, 0, exprs), ir.AffineMap.get_identity(result.rank)]
    init = lowering.empty(sizes, result.element_type)
    value = lowering.generic([operand], init, maps, ["parallel"] * result.rank, lambda a, _: a)
    lowering.sizes.record(value, sizes)
    return value


def iota(lowering: Lowering, op: ir.Operation) -> ir.Value:
    result, sizes = result_of(lowering, op)
    axis = ir.IntegerAttr(op.attributes["iota_dimension"]).value
    init = lowering.empty(sizes, result.element_type)

    def body(_: ir.Value) -> ir.Value:
        index = arith.index_cast(ir.IntegerType.get_signless(32), linalg.IndexOp(axis).result)
        if isinstance(result.element_type, ir.IntegerType):
            return index if result.element_type.width == 32 else arith.extsi(result.element_type, index)
        return arith.sitofp(result.element_type, index)

    value = lowering.generic(
        [], init, [ir.AffineMap.get_identity(result.rank)], ["parallel"] * result.rank, body
    )
    lowering.sizes.record(value, sizes)
    return value
