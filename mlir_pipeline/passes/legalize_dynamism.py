# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Lowers the dynamic StableHLO ops that IREE 3.13 refuses or compiles badly to `tensor` and `linalg`.

Requires: a flat function in which every `?` is the number of candidates, which is dimension 0 of the last
argument. Ensures: no `dynamic_broadcast_in_dim`, `dynamic_reshape`, `real_dynamic_slice`, `dynamic_iota` or
dynamic `dot_general` and no shape arithmetic is left; the number of candidates is one `tensor.dim`.

Why: IREE drops the `known_*_dimensions` of dynamic broadcasts and then refuses their `?` operands, has no
lowering for dynamic reshapes and dot_generals, and turns i32 shape arithmetic into device dispatches with
read-backs (https://github.com/iree-org/iree/issues?q=dynamic_broadcast_in_dim).
`tests/mlir_pipeline/test_workarounds.py` notices when that changes.
"""

import re
from collections.abc import Callable, Sequence

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg, tensor

from mlir_pipeline.errors import CompileError

DYNAMIC = ir.ShapedType.get_dynamic_size()


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
        lowering = _Lowering(count)
        for op in list(block.operations):
            rule = _RULES.get(op.operation.name)
            result_dynamic = any(_is_dynamic(r.type) for r in op.operation.results)
            operand_dynamic = any(_is_dynamic(v.type) for v in op.operation.operands)
            if rule is None or not (result_dynamic or operand_dynamic):
                if (
                    op.operation.name.startswith("stablehlo.")
                    and "dynamic" in op.operation.name
                    and result_dynamic
                ):
                    raise CompileError(
                        f"{op.operation.name} at {op.location} has no lowering for a dynamic number of "
                        "candidates"
                    )
                continue
            with ir.InsertionPoint(op), op.location:
                op.operation.results[0].replace_all_uses_with(rule(lowering, op.operation))
            op.operation.erase()
        _erase_dead(block)
    return True


class _Lowering:
    """One function's number of candidates, and the tensor-building steps that need it."""

    def __init__(self, count: ir.Value):
        self.count = count

    def empty(self, shape: Sequence[int], element: ir.Type) -> ir.Value:
        sizes = [self.count if d == DYNAMIC else d for d in shape]
        return tensor.empty(sizes, element)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Row-major reshape by grouping: the dimensions of both shapes are cut into runs of equal size."""
        source = list(ir.RankedTensorType(value.type).shape)
        target = list(shape)
        if source == target:
            return value
        middle, collapse, expand = _common_refinement(source, target)
        if middle != source:
            value = self._collapse(value, middle, collapse)
        if middle != target:
            value = self._expand(value, target, expand)
        return value

    def _collapse(self, value: ir.Value, shape: list[int], groups: list[list[int]]) -> ir.Value:
        element = ir.RankedTensorType(value.type).element_type
        return tensor.CollapseShapeOp(ir.RankedTensorType.get(shape, element), value, groups).result

    def _expand(self, value: ir.Value, shape: list[int], groups: list[list[int]]) -> ir.Value:
        element = ir.RankedTensorType(value.type).element_type
        dynamic = [self.count] if DYNAMIC in shape else []
        return tensor.ExpandShapeOp(
            ir.RankedTensorType.get(shape, element), value, groups, dynamic, list(shape)
        ).result

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


def _dynamic_broadcast(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    operand = op.operands[0]
    result = ir.RankedTensorType(op.results[0].type)
    positions = [int(d) for d in ir.DenseI64ArrayAttr(op.attributes["broadcast_dimensions"])]
    shape = ir.RankedTensorType(operand.type).shape
    exprs = [
        ir.AffineConstantExpr.get(0) if size == 1 and result.shape[at] != 1 else ir.AffineDimExpr.get(at)
        for size, at in zip(shape, positions, strict=True)
    ]
    maps = [ir.AffineMap.get(result.rank, 0, exprs), ir.AffineMap.get_identity(result.rank)]
    init = lowering.empty(result.shape, result.element_type)
    return lowering.generic([operand], init, maps, ["parallel"] * result.rank, lambda a, _: a)


def _dynamic_reshape(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    return lowering.reshape(op.operands[0], ir.RankedTensorType(op.results[0].type).shape)


def _dynamic_iota(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    result = ir.RankedTensorType(op.results[0].type)
    axis = ir.IntegerAttr(op.attributes["iota_dimension"]).value
    init = lowering.empty(result.shape, result.element_type)

    def body(_: ir.Value) -> ir.Value:
        index = arith.index_cast(ir.IntegerType.get_signless(32), linalg.IndexOp(axis).result)
        if isinstance(result.element_type, ir.IntegerType):
            return index if result.element_type.width == 32 else arith.extsi(result.element_type, index)
        return arith.sitofp(result.element_type, index)

    return lowering.generic(
        [], init, [ir.AffineMap.get_identity(result.rank)], ["parallel"] * result.rank, body
    )


def _real_dynamic_slice(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    """JAX slices a symbolic shape with constant starts and strides; only full ranges of the `?` dimension are
    taken."""
    operand = op.operands[0]
    result = ir.RankedTensorType(op.results[0].type)
    source = ir.RankedTensorType(operand.type).shape
    starts, strides = _constant_vector(op.operands[1], op), _constant_vector(op.operands[3], op)
    for size, full, start, stride in zip(result.shape, source, starts, strides, strict=True):
        if size == DYNAMIC and (full != DYNAMIC or start != 0 or stride != 1):
            raise CompileError(
                f"a slice of the candidate dimension at {op.location} has no lowering: candidates are mixed"
            )
    sizes = [lowering.count] if DYNAMIC in result.shape else []
    return tensor.ExtractSliceOp(result, operand, [], sizes, [], starts, list(result.shape), strides).result


def _dot_general(lowering: _Lowering, op: ir.Operation) -> ir.Value:
    """A contraction `lhs x rhs -> [batch, lhs free, rhs free]`; `[?, ..., K] x [K, N]` becomes one matmul."""
    lhs, rhs = op.operands
    left, right = ir.RankedTensorType(lhs.type), ir.RankedTensorType(rhs.type)
    result = ir.RankedTensorType(op.results[0].type)
    numbers = str(op.attributes["dot_dimension_numbers"])
    lhs_batch, rhs_batch, lhs_contract, rhs_contract = (
        _dims(numbers, field)
        for field in (
            "lhs_batching_dimensions",
            "rhs_batching_dimensions",
            "lhs_contracting_dimensions",
            "rhs_contracting_dimensions",
        )
    )
    lhs_free = [d for d in range(left.rank) if d not in lhs_batch + lhs_contract]
    rhs_free = [d for d in range(right.rank) if d not in rhs_batch + rhs_contract]
    zero = arith.constant(result.element_type, 0.0)

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
    init = linalg.fill(zero, outs=[lowering.empty(result.shape, result.element_type)])
    iterators = ["parallel"] * result.rank + ["reduction"] * len(lhs_contract)
    return lowering.generic(
        [lhs, rhs], init, maps, iterators, lambda a, b, c: arith.addf(c, arith.mulf(a, b))
    )


_RULES: dict[str, Callable[[_Lowering, ir.Operation], ir.Value]] = {
    "stablehlo.dynamic_broadcast_in_dim": _dynamic_broadcast,
    "stablehlo.dynamic_reshape": _dynamic_reshape,
    "stablehlo.dynamic_iota": _dynamic_iota,
    "stablehlo.real_dynamic_slice": _real_dynamic_slice,
    "stablehlo.dot_general": _dot_general,
}


def _common_refinement(
    source: Sequence[int], target: Sequence[int]
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """The coarsest shape that `source` collapses to and `target` expands from, with both reassociations."""
    middle: list[int] = []
    collapse: list[list[int]] = []
    expand: list[list[int]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right = [i] if i < len(source) else [], [j] if j < len(target) else []
        i, j = i + len(left), j + len(right)
        while _size([source[d] for d in left]) != _size([target[d] for d in right]):
            a, b = _size([source[d] for d in left]), _size([target[d] for d in right])
            if (a[0], a[1]) < (b[0], b[1]) and i < len(source):
                left.append(i)
                i += 1
            elif j < len(target):
                right.append(j)
                j += 1
            else:
                left.append(i)
                i += 1
        while i < len(source) and source[i] == 1 and j >= len(target):
            left.append(i)
            i += 1
        while j < len(target) and target[j] == 1 and i >= len(source):
            right.append(j)
            j += 1
        dynamic, static = _size([source[d] for d in left])
        middle.append(DYNAMIC if dynamic else static)
        collapse.append(left)
        expand.append(right)
    return middle, collapse, expand


def _size(dims: Sequence[int]) -> tuple[int, int]:
    static = 1
    for d in dims:
        static *= 1 if d == DYNAMIC else d
    return sum(d == DYNAMIC for d in dims), static


def _is_dynamic(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and DYNAMIC in kind.shape


def _dims(text: str, field: str) -> list[int]:
    found = re.search(rf"{field} = \[([\d, ]*)\]", text)
    return [int(d) for d in found.group(1).split(",") if d.strip()] if found else []


def _constant_vector(value: ir.Value, op: ir.Operation) -> list[int]:
    owner = value.owner
    if owner.name == "stablehlo.constant":
        return [int(v) for v in ir.DenseIntElementsAttr(owner.attributes["value"])]
    if owner.name == "stablehlo.concatenate":
        return [d for operand in owner.operands for d in _constant_vector(operand, op)]
    raise CompileError(f"a slice at {op.location} has bounds that are not constant: {owner.name}")


def _erase_dead(block: ir.Block) -> None:
    """Shape arithmetic that fed the lowered ops."""
    for op in reversed(list(block.operations)):
        results = op.operation.results
        if len(results) and op.operation.name != "func.return" and all(not list(r.uses) for r in results):
            op.operation.erase()
