# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Gathers with a dynamic operand, dynamic indices or dynamic slices."""

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg, tensor

from mlir_pipeline.passes.legalize.dimension_numbers import numbers_of
from mlir_pipeline.passes.legalize.lowering import Lowering
from mlir_pipeline.passes.legalize.sizes import constant, plus


def gather(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """Every element of the result is read where its slice starts, moved inside, plus its place in the slice.

    IREE 3.13 reshapes the indices of a gather without regard to a `?` in them.
    """
    numbers = numbers_of(op)
    operand, indices = op.operands[0], op.operands[1]
    result = ir.RankedTensorType(op.results[0].type)
    of_operand, of_indices = lowering.sizes.of(operand), lowering.sizes.of(indices)
    if op.name == "stablehlo.gather":
        slices = [constant(int(d)) for d in ir.DenseI64ArrayAttr(op.attributes["slice_sizes"])]
    else:
        slices = [lowering.sizes.element(op.operands[2], axis) for axis in range(len(of_operand))]
    whole = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(of_operand)) if axis not in whole]
    batch = [axis for axis in range(result.rank) if axis not in numbers.offset_dims]
    of_batch = [s for axis, s in enumerate(of_indices) if axis != numbers.index_vector_dim]
    sizes = [
        slices[kept[numbers.offset_dims.index(axis)]]
        if axis in numbers.offset_dims
        else of_batch[batch.index(axis)]
        for axis in range(result.rank)
    ]
    rooms = {
        axis: lowering.sizes.index(plus(of_operand[axis], slices[axis], -1))
        for axis in numbers.start_index_map
    }
    zero = arith.constant(ir.IndexType.get(), 0)

    def body(_: ir.Value) -> ir.Value:
        place = [linalg.IndexOp(axis).result for axis in range(result.rank)]
        row = [place[axis] for axis in batch]
        at = [zero] * len(of_operand)
        for axis, output in zip(kept, numbers.offset_dims, strict=True):
            at[axis] = place[output]
        for axis, index_axis in zip(
            numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
        ):
            at[axis] = row[index_axis - (index_axis > numbers.index_vector_dim)]
        for k, axis in enumerate(numbers.start_index_map):
            where = list(row)
            if numbers.index_vector_dim < len(of_indices):
                where.insert(numbers.index_vector_dim, arith.constant(ir.IndexType.get(), k))
            start = arith.index_cast(ir.IndexType.get(), tensor.extract(indices, where))
            start = arith.minsi(arith.maxsi(start, zero), rooms[axis])
            at[axis] = arith.addi(start, at[axis])
        return tensor.extract(operand, at)

    value = lowering.generic(
        [],
        lowering.empty(sizes, result.element_type),
        [ir.AffineMap.get_identity(result.rank)],
        ["parallel"] * result.rank,
        body,
    )
    lowering.sizes.record(value, sizes)
    return value
