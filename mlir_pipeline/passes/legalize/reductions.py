# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Sums over candidates."""

from iree.compiler import ir
from iree.compiler.dialects import arith

from mlir_pipeline.passes.legalize.lowering import Lowering
from mlir_pipeline.passes.legalize.sizes import number


def reduce(lowering: Lowering, op: ir.Operation) -> ir.Value | None:
    """A sum over candidates, in double precision: thousands of values one after the other in single would
    lose what the certificate allows. Other reductions are left to IREE."""
    dropped = [int(d) for d in ir.DenseI64ArrayAttr(op.attributes["dimensions"])]
    source = lowering.sizes.of(op.operands[0])
    inner = [o.operation.name for o in op.regions[0].blocks[0].operations]
    result = ir.RankedTensorType(op.results[0].type)
    summed = inner == ["stablehlo.add", "stablehlo.return"] and result.element_type == ir.F32Type.get()
    if len(op.results) != 1 or not summed or all(number(source[d]) is not None for d in dropped):
        return None
    kept = [d for d in range(len(source)) if d not in dropped]
    if not kept:
        return None
    sizes = [source[d] for d in kept]
    wide = ir.F64Type.get()
    maps = [
        ir.AffineMap.get_identity(len(source)),
        ir.AffineMap.get(len(source), 0, [ir.AffineDimExpr.get(d) for d in kept]),
    ]
    iterators = ["reduction" if d in dropped else "parallel" for d in range(len(source))]
    init = lowering.filled(0.0, sizes, wide)
    value = lowering.generic(
        [op.operands[0]], init, maps, iterators, lambda a, c: arith.addf(c, arith.extf(wide, a))
    )
    value = lowering.narrowed(value, sizes, result.element_type)
    lowering.sizes.record(value, sizes)
    return value
