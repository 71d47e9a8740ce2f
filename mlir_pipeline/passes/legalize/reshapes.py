# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Row-major reshapes, for which IREE has no lowering where a size depends on the number of candidates."""

from collections.abc import Sequence

from iree.compiler import ir
from iree.compiler.dialects import tensor

from mlir_pipeline.passes.legalize.lowering import Lowering, dimension, result_of
from mlir_pipeline.passes.legalize.sizes import Size, constant, times


def reshape(lowering: Lowering, op: ir.Operation) -> ir.Value:
    result, sizes = result_of(lowering, op)
    value = regrouped(lowering, op.operands[0], sizes, result.shape)
    lowering.sizes.record(value, sizes)
    return value


def regrouped(lowering: Lowering, value: ir.Value, target: Sequence[Size], shape: Sequence[int]) -> ir.Value:
    """Row-major reshape by grouping: the dimensions of both shapes are cut into runs of equal size. Where
    they cannot be, as from `[2 n, 3]` to `[n, 6]`, all are merged and taken apart again."""
    source = lowering.sizes.of(value)
    if source == list(target):
        return value
    groups = common_refinement(source, target)
    if groups is None:
        groups = [(list(range(len(source))), list(range(len(target))))]
    middle = [_product([source[d] for d in left]) for left, _ in groups]
    if len(middle) != len(source):
        value = _collapse(value, middle, [left for left, _ in groups])
    if len(middle) != len(target):
        value = _expand(lowering, value, target, shape, [right for _, right in groups])
    return value


def _collapse(value: ir.Value, sizes: Sequence[Size], groups: list[list[int]]) -> ir.Value:
    element = ir.RankedTensorType(value.type).element_type
    kind = ir.RankedTensorType.get([dimension(s) for s in sizes], element)
    return tensor.CollapseShapeOp(kind, value, groups).result


def _expand(
    lowering: Lowering, value: ir.Value, sizes: Sequence[Size], shape: Sequence[int], groups: list[list[int]]
) -> ir.Value:
    element = ir.RankedTensorType(value.type).element_type
    kind = ir.RankedTensorType.get(list(shape), element)
    return tensor.ExpandShapeOp(kind, value, groups, lowering.dynamic(sizes, shape), list(shape)).result


def common_refinement(
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
