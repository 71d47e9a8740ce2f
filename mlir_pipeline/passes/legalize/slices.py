# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Slices, updates of slices and padding, at positions and sizes that depend on the number of candidates."""

from iree.compiler import ir
from iree.compiler.dialects import arith, tensor

from mlir_pipeline.passes.legalize.lowering import Lowering, dimension
from mlir_pipeline.passes.legalize.sizes import DYNAMIC, constant, number, plus


def real_dynamic_slice(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """Starts and limits are numbers, sizes, or values that a loop computes; strides are numbers."""
    operand = op.operands[0]
    result = ir.RankedTensorType(op.results[0].type)
    starts, limits, strides = (
        [lowering.sizes.element(vector, axis) for axis in range(result.rank)] for vector in op.operands[1:4]
    )
    steps = [number(s) for s in strides]
    if any(step is None for step in steps):
        raise ValueError("a slice whose stride is not a number")
    sizes = []
    for axis, step in enumerate(steps):
        length = plus(limits[axis], starts[axis], -1)
        if result.shape[axis] != DYNAMIC:
            length = constant(result.shape[axis])
        elif step != 1:
            raise ValueError("a strided slice of a dimension that depends on the number of candidates")
        sizes.append(length)
    static = [dimension(s) for s in starts]
    value = tensor.ExtractSliceOp(
        result,
        operand,
        lowering.dynamic(starts, static),
        lowering.dynamic(sizes, result.shape),
        [],
        static,
        list(result.shape),
        steps,
    ).result
    lowering.sizes.record(value, sizes)
    return value


def dynamic_update_slice(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """`operand` with `update` written at a start that is moved inside, as StableHLO defines it."""
    operand, update, *starts = op.operands
    kind = ir.RankedTensorType(update.type)
    of_operand, of_update = lowering.sizes.of(operand), lowering.sizes.of(update)
    zero = arith.constant(ir.IndexType.get(), 0)
    offsets = []
    for axis, start in enumerate(starts):
        room = lowering.sizes.index(plus(of_operand[axis], of_update[axis], -1))
        at = lowering.sizes.index(lowering.sizes.element(start, 0))
        offsets.append(arith.minsi(arith.maxsi(at, zero), room))
    value = tensor.InsertSliceOp(
        update,
        operand,
        offsets,
        lowering.dynamic(of_update, kind.shape),
        [],
        [DYNAMIC] * kind.rank,
        list(kind.shape),
        [1] * kind.rank,
    ).result
    lowering.sizes.record(value, of_operand)
    return value


def dynamic_pad(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """Paddings are numbers; only the operand is dynamic."""
    rank = ir.RankedTensorType(op.results[0].type).rank
    sizes = lowering.sizes.of(op.operands[0])
    amounts = []
    for vector in op.operands[2:5]:
        found = [number(lowering.sizes.element(vector, axis)) for axis in range(rank)]
        if any(n is None for n in found):
            raise ValueError("a padding that depends on the number of candidates")
        amounts.append([int(n or 0) for n in found])
    low, high, interior = amounts
    if any(interior[axis] and number(s) is None for axis, s in enumerate(sizes)):
        raise ValueError("a padding between the elements of a dynamic dimension")
    padded = [
        plus(s, constant(low[axis] + high[axis] + interior[axis] * max((number(s) or 1) - 1, 0)))
        for axis, s in enumerate(sizes)
    ]
    names = ("edge_padding_low", "edge_padding_high", "interior_padding")
    value = ir.Operation.create(
        "stablehlo.pad",
        results=[op.results[0].type],
        operands=[op.operands[0], op.operands[1]],
        attributes={n: ir.DenseI64ArrayAttr.get(a) for n, a in zip(names, amounts, strict=True)},
    ).results[0]
    lowering.sizes.record(value, padded)
    return value
