# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Sizes of dynamic dimensions, as polynomials in the number of candidates.

StableHLO computes them as 32-bit tensors, which IREE would run on the device and read back. Here the
arithmetic is done symbolically, and what is left of it becomes `index` arithmetic on the host. Polynomials
also tell which dimensions a reshape merges: `[n, 3] -> [3 n]`.
"""

from collections.abc import Callable, Mapping, Sequence

from iree.compiler import ir
from iree.compiler.dialects import arith, tensor

DYNAMIC = ir.ShapedType.get_dynamic_size()

Size = Mapping[tuple[int, ...], int]
"""A polynomial: coefficients by monomial, a sorted tuple of unknowns. Unknown 0 is the number of
candidates; the others are elements of tensors, as a loop's counter."""


def constant(value: int) -> Size:
    """The size that is a number."""
    return {(): value} if value else {}


def number(size: Size) -> int | None:
    """The number that a size is; None where it depends on an unknown."""
    return size.get((), 0) if size.keys() <= {()} else None


def plus(a: Size, b: Size, sign: int = 1) -> Size:
    """`a + sign * b`."""
    total = dict(a)
    for monomial, coefficient in b.items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient
    return {m: c for m, c in total.items() if c}


def times(a: Size, b: Size) -> Size:
    """`a * b`."""
    total: dict[tuple[int, ...], int] = {}
    for left, x in a.items():
        for right, y in b.items():
            monomial = tuple(sorted(left + right))
            total[monomial] = total.get(monomial, 0) + x * y
    return {m: c for m, c in total.items() if c}


class Sizes:
    """Sizes of the tensors of one function whose last argument has the number of candidates as dimension
    0."""

    def __init__(self, count: ir.Value):
        """`count` is that number as an `index`."""
        self._count = count
        self._elements: list[tuple[ir.Value, int] | None] = [None]
        self._known: dict[ir.Value, list[Size]] = {}

    def record(self, value: ir.Value, sizes: Sequence[Size]) -> None:
        """Notes the sizes of a tensor, which its operation does not tell."""
        self._known[value] = list(sizes)

    def of(self, value: ir.Value) -> list[Size]:
        """Sizes of all dimensions of a tensor."""
        shape = list(ir.RankedTensorType(value.type).shape)
        if DYNAMIC not in shape:
            return [constant(d) for d in shape]
        if value not in self._known:
            found = self._infer(value, shape)
            self._known[value] = [
                constant(d) if d != DYNAMIC else found[axis] for axis, d in enumerate(shape)
            ]
        return self._known[value]

    def element(self, value: ir.Value, position: int) -> Size:
        """An element of a vector of sizes, or a scalar."""
        owner = value.owner
        name = owner.name if isinstance(owner, (ir.Operation, ir.OpView)) else ""
        if name == "stablehlo.constant":
            values = ir.DenseIntElementsAttr(owner.attributes["value"])
            return constant(int(values[0 if values.is_splat else position]))
        if name == "stablehlo.get_dimension_size":
            return self.of(owner.operands[0])[ir.IntegerAttr(owner.attributes["dimension"]).value]
        if name == "stablehlo.concatenate":
            for operand in owner.operands:
                length = ir.RankedTensorType(operand.type).shape[0]
                if position < length:
                    return self.element(operand, position)
                position -= length
        if name in ("stablehlo.reshape", "stablehlo.convert"):
            return self.element(owner.operands[0], position)
        if name == "stablehlo.broadcast_in_dim" and ir.RankedTensorType(value.type).rank <= 1:
            source = ir.RankedTensorType(owner.operands[0].type)
            return self.element(owner.operands[0], 0 if 1 in source.shape or not source.rank else position)
        if name in _ARITHMETIC and ir.RankedTensorType(value.type).rank <= 1:
            left, right = (self.element(v, position) for v in owner.operands)
            return _ARITHMETIC[name](left, right)
        return {(self._unknown(value, position),): 1}

    def index(self, size: Size) -> ir.Value:
        """A size as an `index`, computed at the insertion point."""
        total: ir.Value | None = None
        for monomial, coefficient in sorted(size.items()):
            term: ir.Value | None = None
            for unknown in monomial:
                term = self._value(unknown) if term is None else arith.muli(term, self._value(unknown))
            if term is None or coefficient != 1:
                scale = arith.constant(ir.IndexType.get(), coefficient)
                term = scale if term is None else arith.muli(term, scale)
            total = term if total is None else arith.addi(total, term)
        return arith.constant(ir.IndexType.get(), 0) if total is None else total

    def _unknown(self, value: ir.Value, position: int) -> int:
        for unknown, element in enumerate(self._elements):
            if element is not None and element[0] == value and element[1] == position:
                return unknown
        self._elements.append((value, position))
        return len(self._elements) - 1

    def _value(self, unknown: int) -> ir.Value:
        element = self._elements[unknown]
        if element is None:
            return self._count
        value, position = element
        kind = ir.RankedTensorType(value.type)
        if isinstance(kind.element_type, ir.IndexType):  # a dimension of a tensor
            raise AssertionError(value)
        at = [arith.constant(ir.IndexType.get(), position)] if kind.rank else []
        return arith.index_cast(ir.IndexType.get(), tensor.extract(value, at))

    def _infer(self, value: ir.Value, shape: Sequence[int]) -> list[Size]:
        """Sizes from the operation that makes a tensor."""
        count: Size = {(0,): 1}
        owner = value.owner
        if isinstance(owner, ir.Block):
            return self._of_argument(value, owner, count)
        op = owner.operation if isinstance(owner, ir.OpView) else owner
        if op.name == "stablehlo.while":
            return self.of(op.operands[ir.OpResult(value).result_number])
        if op.name in _SHAPE_OPERAND:
            given = op.operands[_SHAPE_OPERAND[op.name]]
            return [self.element(given, axis) for axis in range(len(shape))]
        if op.name == "stablehlo.transpose":
            source = self.of(op.operands[0])
            return [source[int(d)] for d in ir.DenseI64ArrayAttr(op.attributes["permutation"])]
        if op.name == "stablehlo.reduce":
            dropped = set(ir.DenseI64ArrayAttr(op.attributes["dimensions"]))
            return [s for axis, s in enumerate(self.of(op.operands[0])) if axis not in dropped]
        if op.name == "stablehlo.concatenate":
            sizes = list(self.of(op.operands[0]))
            axis = ir.IntegerAttr(op.attributes["dimension"]).value
            for operand in list(op.operands)[1:]:
                sizes[axis] = plus(sizes[axis], self.of(operand)[axis])
            return sizes
        if op.name == "stablehlo.gather":
            return self._of_gather(op, len(shape))
        if op.name == "stablehlo.pad":
            return self._of_pad(op)
        if op.name == "stablehlo.convolution":
            return self._of_convolution(op, shape)
        if op.name in ("stablehlo.case", "stablehlo.if"):
            ends = op.regions[0].blocks[0].operations
            return self.of(ends[len(ends) - 1].operands[ir.OpResult(value).result_number])
        if op.name in _OTHER_SHAPES:
            raise ValueError(f"the sizes of {op.name} at {op.location} are not known")
        # What is left works on each element: one operand has the result's shape.
        for operand in op.operands:
            if isinstance(operand.type, ir.RankedTensorType) and list(operand.type.shape) == list(shape):
                return self.of(operand)
        raise ValueError(f"the sizes of {op.name} at {op.location} are not known")

    def _of_pad(self, op: ir.Operation) -> list[Size]:
        names = ("edge_padding_low", "edge_padding_high", "interior_padding")
        amounts = [list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in names]
        return [
            plus(plus(size, constant(low + high)), times(constant(inner), plus(size, constant(-1))))
            for size, low, high, inner in zip(self.of(op.operands[0]), *amounts, strict=True)
        ]

    def _of_convolution(self, op: ir.Operation, shape: Sequence[int]) -> list[Size]:
        """Only the batch is dynamic, wherever it stands."""
        dynamic = [s for s in self.of(op.operands[0]) if number(s) is None]
        if len(dynamic) != 1 or sum(d == DYNAMIC for d in shape) != 1:
            raise ValueError("a convolution over candidates")
        return [dynamic[0] if d == DYNAMIC else constant(d) for d in shape]

    def _of_argument(self, value: ir.Value, block: ir.Block, count: Size) -> list[Size]:
        owner = block.owner.operation if isinstance(block.owner, ir.OpView) else block.owner
        if owner.name == "stablehlo.while":
            return self.of(owner.operands[ir.BlockArgument(value).arg_number])
        shape = ir.RankedTensorType(value.type).shape
        return [count if d == DYNAMIC else constant(d) for d in shape]

    def _of_gather(self, op: ir.Operation, rank: int) -> list[Size]:
        """A static gather's dynamic dimensions are those of its indices, in order."""
        from mlir_pipeline.passes.legalize.dimension_numbers import numbers_of

        numbers = numbers_of(op)
        batch = [s for axis, s in enumerate(self.of(op.operands[1])) if axis != numbers.index_vector_dim]
        sizes = iter(batch)
        return [constant(0) if axis in numbers.offset_dims else next(sizes) for axis in range(rank)]


_SHAPE_OPERAND = {
    "stablehlo.dynamic_broadcast_in_dim": 1,
    "stablehlo.dynamic_reshape": 1,
    "stablehlo.dynamic_iota": 0,
}
_OTHER_SHAPES = {
    "stablehlo.reduce_window",
    "stablehlo.custom_call",
    "stablehlo.slice",
    "stablehlo.dynamic_slice",
}
_ARITHMETIC: dict[str, Callable[[Size, Size], Size]] = {
    "stablehlo.add": plus,
    "stablehlo.subtract": lambda a, b: plus(a, b, -1),
    "stablehlo.multiply": times,
}
