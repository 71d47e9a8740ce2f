# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Lowers the dynamic StableHLO ops that IREE 3.13 refuses or compiles badly to `tensor` and `linalg`.

Requires: a function, calls inlined, in which every `?` is an expression of the number of candidates, which is
dimension 0 of the last argument; or whose dynamic ops are in the regions of its loops. Ensures: no
`dynamic_broadcast_in_dim`, `dynamic_reshape`, `real_dynamic_slice`, `dynamic_iota`, `dynamic_gather` or
dynamic `dot_general` and no shape arithmetic is left; sizes are `index` arithmetic on one `tensor.dim`.

Why: IREE drops the `known_*_dimensions` of dynamic broadcasts and then refuses their `?` operands, has no
lowering for dynamic reshapes and dot_generals, and turns i32 shape arithmetic into device dispatches with
read-backs (https://github.com/iree-org/iree/issues?q=dynamic_broadcast_in_dim).
`tests/mlir_pipeline/test_workarounds.py` notices when that changes.
"""

from collections.abc import Callable, Sequence

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg, tensor

from mlir_pipeline.errors import CompileError
from mlir_pipeline.passes.gathers import integers, numbers_of
from mlir_pipeline.passes.sizes import DYNAMIC, Size, Sizes, constant, number, plus, times


def legalize_dynamism(function: ir.Operation) -> bool:
    """Runs the pass on one `func.func`. Returns whether anything changed. Raises `CompileError` on a dynamic
    op it does not know, with the op's location."""
    block = function.regions[0].blocks[0]
    with function.context, ir.Location.unknown():
        last = block.arguments[len(block.arguments) - 1]
        if not _is_dynamic(last.type):
            return False
        with ir.InsertionPoint.at_block_begin(block):
            count = tensor.dim(last, arith.constant(ir.IndexType.get(), 0))
        _lower_block(_Lowering(Sizes(count)), block)
        _erase_dead(block)
    return True


def _lower_block(lowering: "_Lowering", block: ir.Block) -> None:
    for op in list(block.operations):
        operation = op.operation
        for region in operation.regions:
            for inner in region.blocks:
                _lower_block(lowering, inner)
        rule = _RULES.get(operation.name)
        touches = any(_is_dynamic(v.type) for v in (*operation.results, *operation.operands))
        if rule is not None and touches:
            with ir.InsertionPoint(op), op.location:
                try:
                    value = rule(lowering, operation)
                except ValueError as error:
                    raise CompileError(f"{operation.name} at {op.location}: {error}") from error
            if value is not None:
                operation.results[0].replace_all_uses_with(value)
                operation.erase()
        elif operation.name in _REFUSED and touches:
            raise CompileError(
                f"{operation.name} at {op.location} has no lowering for a dynamic number of candidates; "
                "please report this model"
            )


class _Lowering:
    """The tensor-building steps of one function."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def empty(self, sizes: Sequence[Size], element: ir.Type) -> ir.Value:
        return tensor.empty([self._static_or_index(s) for s in sizes], element)

    def dynamic(self, sizes: Sequence[Size], shape: Sequence[int]) -> list[ir.Value]:
        """The values of the `?` dimensions of a type."""
        return [self.sizes.index(s) for s, d in zip(sizes, shape, strict=True) if d == DYNAMIC]

    def reshape(self, value: ir.Value, target: Sequence[Size], shape: Sequence[int]) -> ir.Value:
        """Row-major reshape by grouping: the dimensions of both shapes are cut into runs of equal size. Where
        they cannot be, as from `[2 n, 3]` to `[n, 6]`, all are merged and taken apart again."""
        source = self.sizes.of(value)
        if source == list(target):
            return value
        groups = _common_refinement(source, target)
        if groups is None:
            groups = [(list(range(len(source))), list(range(len(target))))]
        middle = [_product([source[d] for d in left]) for left, _ in groups]
        if len(middle) != len(source):
            value = self._collapse(value, middle, [left for left, _ in groups])
        if len(middle) != len(target):
            value = self._expand(value, target, shape, [right for _, right in groups])
        return value

    def filled(self, value: float, sizes: Sequence[Size], element: ir.Type) -> ir.Value:
        return linalg.fill(arith.constant(element, value), outs=[self.empty(sizes, element)])

    def narrowed(self, value: ir.Value, sizes: Sequence[Size], element: ir.Type) -> ir.Value:
        """Doubles as floats."""
        same = ir.AffineMap.get_identity(len(sizes))
        return self.generic(
            [value],
            self.empty(sizes, element),
            [same, same],
            ["parallel"] * len(sizes),
            lambda a, _: arith.truncf(element, a),
        )

    def generic(
        self,
        inputs: Sequence[ir.Value],
        init: ir.Value,
        maps: Sequence[ir.AffineMap],
        iterators: Sequence[str],
        body: Callable[..., ir.Value],
    ) -> ir.Value:
        op = linalg.GenericOp(
            [init.type],
            list(inputs),
            [init],
            ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]),
            ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{kind}>") for kind in iterators]),
        )
        elements = [ir.RankedTensorType(v.type).element_type for v in (*inputs, init)]
        block = op.regions[0].blocks.append(*elements)
        with ir.InsertionPoint(block):
            linalg.YieldOp([body(*block.arguments)])
        return op.results[0]

    def _collapse(self, value: ir.Value, sizes: Sequence[Size], groups: list[list[int]]) -> ir.Value:
        element = ir.RankedTensorType(value.type).element_type
        kind = ir.RankedTensorType.get([_dimension(s) for s in sizes], element)
        return tensor.CollapseShapeOp(kind, value, groups).result

    def _expand(
        self, value: ir.Value, sizes: Sequence[Size], shape: Sequence[int], groups: list[list[int]]
    ) -> ir.Value:
        element = ir.RankedTensorType(value.type).element_type
        kind = ir.RankedTensorType.get(list(shape), element)
        return tensor.ExpandShapeOp(kind, value, groups, self.dynamic(sizes, shape), list(shape)).result

    def _static_or_index(self, size: Size) -> int | ir.Value:
        known = number(size)
        return self.sizes.index(size) if known is None else known


def _result(lowering: _Lowering, op: ir.Operation) -> tuple[ir.RankedTensorType, list[Size]]:
    """Type and sizes of an op's result."""
    return ir.RankedTensorType(op.results[0].type), lowering.sizes.of(op.results[0])


def _dynamic_broadcast(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    operand = op.operands[0]
    result, sizes = _result(lowering, op)
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


def _dynamic_reshape(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    result, sizes = _result(lowering, op)
    value = lowering.reshape(op.operands[0], sizes, result.shape)
    lowering.sizes.record(value, sizes)
    return value


def _dynamic_iota(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    result, sizes = _result(lowering, op)
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


def _real_dynamic_slice(lowering: _Lowering, op: ir.Operation) -> ir.Value:
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
    static = [_dimension(s) for s in starts]
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


def _dynamic_update_slice(lowering: _Lowering, op: ir.Operation) -> ir.Value:
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


def _gather(lowering: _Lowering, op: ir.Operation) -> ir.Value:
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


def _dynamic_pad(lowering: _Lowering, op: ir.Operation) -> ir.Value:
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


def _dot_general(lowering: _Lowering, op: ir.Operation) -> ir.Value:
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
        value = lowering.generic([lhs, rhs], init, maps, iterators, lambda a, b, c: add(c, multiply(a, b)))
    lowering.sizes.record(value, sizes)
    return value


def _reduce(lowering: _Lowering, op: ir.Operation) -> ir.Value | None:
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


def _barrier(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    """A copy that IREE does not fuse with what made it: its own barrier takes no `?`, but it cannot see
    through one on a position."""
    operand = op.operands[0]
    kind = ir.RankedTensorType(operand.type)
    sizes = lowering.sizes.of(operand)
    index = ir.IndexType.get()
    zero = ir.Operation.create(
        "util.optimization_barrier", results=[index], operands=[arith.constant(index, 0)]
    ).results[0]

    def body(_: ir.Value) -> ir.Value:
        first, *rest = [linalg.IndexOp(axis).result for axis in range(kind.rank)]
        return tensor.extract(operand, [arith.addi(first, zero), *rest])

    value = lowering.generic(
        [],
        lowering.empty(sizes, kind.element_type),
        [ir.AffineMap.get_identity(kind.rank)],
        ["parallel"] * kind.rank,
        body,
    )
    lowering.sizes.record(value, sizes)
    return value


_RULES: dict[str, Callable[[_Lowering, ir.Operation], ir.Value | None]] = {
    "stablehlo.dynamic_broadcast_in_dim": _dynamic_broadcast,
    "stablehlo.dynamic_reshape": _dynamic_reshape,
    "stablehlo.dynamic_iota": _dynamic_iota,
    "stablehlo.real_dynamic_slice": _real_dynamic_slice,
    "stablehlo.dot_general": _dot_general,
    "stablehlo.dynamic_gather": _gather,
    "stablehlo.gather": _gather,
    "stablehlo.dynamic_pad": _dynamic_pad,
    "stablehlo.reduce": _reduce,
    "stablehlo.optimization_barrier": _barrier,
    "stablehlo.dynamic_update_slice": _dynamic_update_slice,
}
"""A rule returns what takes the place of the op's result; None leaves the op to IREE."""
_REFUSED = {"stablehlo.dynamic_conv", "stablehlo.custom_call"}


def _common_refinement(
    source: Sequence[Size], target: Sequence[Size]
) -> list[tuple[list[int], list[int]]] | None:
    """The finest runs of dimensions of equal size in both shapes; None if there is one on either side
    only."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        left, right = [i], [j]
        i, j = i + 1, j + 1
        a, b = source[left[0]], target[right[0]]
        while a != b:
            if _grows_into(a, b) and i < len(source):
                left.append(i)
                a, i = times(a, source[i]), i + 1
            elif j < len(target):
                right.append(j)
                b, j = times(b, target[j]), j + 1
            elif i < len(source):
                left.append(i)
                a, i = times(a, source[i]), i + 1
            else:
                return None
        groups.append((left, right))
    # Dimensions of size 1 that are left belong to the last run.
    rest = [source[d] for d in range(i, len(source))] + [target[d] for d in range(j, len(target))]
    if not groups or any(s != constant(1) for s in rest):
        return None
    groups[-1][0].extend(range(i, len(source)))
    groups[-1][1].extend(range(j, len(target)))
    return groups


def _grows_into(a: Size, b: Size) -> bool:
    """Whether `a` is the smaller of two sizes: of lower degree, or of smaller coefficients."""
    degree = [max((len(m) for m in size), default=0) for size in (a, b)]
    return (degree[0], sum(a.values())) < (degree[1], sum(b.values()))


def _product(sizes: Sequence[Size]) -> Size:
    total = constant(1)
    for size in sizes:
        total = times(total, size)
    return total


def _dimension(size: Size) -> int:
    known = number(size)
    return DYNAMIC if known is None else known


def _is_dynamic(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and DYNAMIC in kind.shape


def _erase_dead(block: ir.Block) -> None:
    """Shape arithmetic that fed the lowered ops."""
    for op in reversed(list(block.operations)):
        results = op.operation.results
        if len(results) and all(not list(r.uses) for r in results):
            op.operation.erase()
            continue
        for region in op.operation.regions:
            for inner in region.blocks:
                _erase_dead(inner)
