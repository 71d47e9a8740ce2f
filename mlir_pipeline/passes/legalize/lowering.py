# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What the rules of this folder build tensors with."""

from collections.abc import Callable, Sequence

from iree.compiler import ir
from iree.compiler.dialects import arith, linalg, tensor

from mlir_pipeline.passes.legalize.sizes import DYNAMIC, Size, Sizes, number


class Lowering:
    """The tensor-building steps of one function. Results of a rule need `sizes.record`."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def empty(self, sizes: Sequence[Size], element: ir.Type) -> ir.Value:
        return tensor.empty([self._static_or_index(s) for s in sizes], element)

    def dynamic(self, sizes: Sequence[Size], shape: Sequence[int]) -> list[ir.Value]:
        """The values of the `?` dimensions of a type."""
        return [self.sizes.index(s) for s, d in zip(sizes, shape, strict=True) if d == DYNAMIC]

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

    def _static_or_index(self, size: Size) -> int | ir.Value:
        known = number(size)
        return self.sizes.index(size) if known is None else known


def result_of(lowering: Lowering, op: ir.Operation) -> tuple[ir.RankedTensorType, list[Size]]:
    """Type and sizes of an op's result."""
    return ir.RankedTensorType(op.results[0].type), lowering.sizes.of(op.results[0])


def dimension(size: Size) -> int:
    known = number(size)
    return DYNAMIC if known is None else known


def is_dynamic(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and DYNAMIC in kind.shape


Rule = Callable[[Lowering, ir.Operation], ir.Value | None]
"""What takes the place of an op's result; None leaves the op to IREE. Raises `ValueError` with what stands in
the way."""
