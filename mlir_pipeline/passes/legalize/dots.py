# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Matrix products with a dynamic dimension."""

import functools
from collections.abc import Sequence

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg

from mlir_pipeline.passes.legalize.dimension_numbers import integers
from mlir_pipeline.passes.legalize.lowering import Lowering, dimension, is_dynamic
from mlir_pipeline.passes.legalize.reshapes import regrouped
from mlir_pipeline.passes.legalize.sizes import DYNAMIC, constant, number, times


def dot_general(lowering: Lowering, op: ir.Operation) -> ir.Value:
    """A contraction `lhs x rhs -> [batch, lhs free, rhs free]`; `[?, ..., K] x [K, N]` becomes one matmul."""
    lhs, rhs = op.operands
    left, right = ir.RankedTensorType(lhs.type), ir.RankedTensorType(rhs.type)
    result = ir.RankedTensorType(op.results[0].type)
    numbers = str(op.attributes["dot_dimension_numbers"])
    lhs_batch, rhs_batch, lhs_contract, rhs_contract = (
        integers(numbers, field)
        for field in (
            "lhs_batching_dimensions",
            "rhs_batching_dimensions",
            "lhs_contracting_dimensions",
            "rhs_contracting_dimensions",
        )
    )
    if _is_plain(left, right, result, (lhs_batch, lhs_contract, rhs_contract)):
        return _matmul(lowering, lhs, rhs, result)
    lhs_free = [d for d in range(left.rank) if d not in lhs_batch + lhs_contract]
    rhs_free = [d for d in range(right.rank) if d not in rhs_batch + rhs_contract]
    of_left, of_right = lowering.sizes.of(lhs), lowering.sizes.of(rhs)
    sizes = [of_left[d] for d in (*lhs_batch, *lhs_free)] + [of_right[d] for d in rhs_free]
    floats = isinstance(result.element_type, ir.FloatType)
    multiply, add = (arith.mulf, arith.addf) if floats else (arith.muli, arith.addi)

    loops = result.rank + len(lhs_contract)
    lhs_loop, rhs_loop = {}, {}
    for i, (a, b) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
        lhs_loop[a] = rhs_loop[b] = i
    for i, a in enumerate(lhs_free):
        lhs_loop[a] = len(lhs_batch) + i
    for i, b in enumerate(rhs_free):
        rhs_loop[b] = len(lhs_batch) + len(lhs_free) + i
    for i, (a, b) in enumerate(zip(lhs_contract, rhs_contract, strict=True)):
        lhs_loop[a] = rhs_loop[b] = result.rank + i
    maps = [
        ir.AffineMap.get(loops, 0, [ir.AffineDimExpr.get(lhs_loop[d]) for d in range(left.rank)]),
        ir.AffineMap.get(loops, 0, [ir.AffineDimExpr.get(rhs_loop[d]) for d in range(right.rank)]),
        ir.AffineMap.get(loops, 0, [ir.AffineDimExpr.get(d) for d in range(result.rank)]),
    ]
    iterators = ["parallel"] * result.rank + ["reduction"] * len(lhs_contract)
    if floats and any(number(of_left[d]) is None for d in lhs_contract):
        wide = ir.F64Type.get()
        init = lowering.filled(0.0, sizes, wide)
        value = lowering.generic(
            [lhs, rhs],
            init,
            maps,
            iterators,
            lambda a, b, c: add(c, multiply(arith.extf(wide, a), arith.extf(wide, b))),
        )
        value = lowering.narrowed(value, sizes, result.element_type)
    else:
        init = lowering.filled(0.0 if floats else 0, sizes, result.element_type)

        def widened(operand: ir.Value) -> ir.Value:
            # Half-precision operands are multiplied and added up in the result's type.
            same = operand.type == result.element_type
            return operand if same else arith.extf(result.element_type, operand)

        value = lowering.generic(
            [lhs, rhs], init, maps, iterators, lambda a, b, c: add(c, multiply(widened(a), widened(b)))
        )
    lowering.sizes.record(value, sizes)
    return value


def _is_plain(
    left: ir.RankedTensorType,
    right: ir.RankedTensorType,
    result: ir.RankedTensorType,
    axes: tuple[Sequence[int], ...],
) -> bool:
    """Whether a product is `[?, .., K] x [K, N]` of one float type, with all of K and N known."""
    batch, of_left, of_right = axes
    kinds = {str(t.element_type) for t in (left, right, result)}
    return (
        not batch
        and list(of_left) == [left.rank - 1]
        and list(of_right) == [0]
        and right.rank == 2
        and not is_dynamic(right)
        and left.shape[-1] != DYNAMIC
        and kinds <= {"f32"}
    )


def _matmul(lowering: Lowering, lhs: ir.Value, rhs: ir.Value, result: ir.RankedTensorType) -> ir.Value:
    """The product as one matrix product of all rows: IREE packs the operands of `linalg.matmul` into tiles,
    and vectorizes over rows whatever the axes they came from."""
    sizes = lowering.sizes.of(lhs)
    rows = functools.reduce(times, sizes[:-1])
    (inner, columns), element = ir.RankedTensorType(rhs.type).shape, result.element_type
    flat = regrouped(lowering, lhs, [rows, constant(inner)], [dimension(rows), inner])
    init = lowering.filled(0.0, [rows, constant(columns)], element)
    product = linalg.matmul(flat, rhs, outs=[init])
    product = product.result if isinstance(product, ir.OpView) else product
    lowering.sizes.record(product, [rows, constant(columns)])
    wanted = [*sizes[:-1], constant(columns)]
    value = regrouped(lowering, product, wanted, list(result.shape))
    lowering.sizes.record(value, wanted)
    return value
