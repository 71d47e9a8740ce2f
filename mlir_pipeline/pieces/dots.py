# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Matrix products of pieces, with what repeats taken out of the batch."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax import lax
from jax.extend import core

from mlir_pipeline.pieces.grid import (
    Grid,
    Piece,
    Shape,
    cell_shape,
    common_cuts,
    positions,
    refined,
    repeated_to,
)


def dot_general(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Grid:
    numbers = eqn.params["dimension_numbers"]
    (contract, batch) = numbers
    precision = {key: eqn.params[key] for key in ("precision", "preferred_element_type")}
    left, right = (dict(o.cuts) if isinstance(o, Grid) else {} for o in operands)
    for a, b in (*zip(*contract, strict=True), *zip(*batch, strict=True)):
        both = common_cuts([{0: c[x]} for c, x in ((left, a), (right, b)) if x in c])
        if both:
            left[a] = right[b] = both[0]
    free = [
        [a for a in range(v.aval.ndim) if a not in contract[side] and a not in batch[side]]
        for side, v in enumerate(eqn.invars)
    ]
    # Where each axis of the result is in the left and the right side.
    places = [*zip(*batch, strict=True), *((a, None) for a in free[0]), *((None, b) for b in free[1])]
    cuts = {}
    for axis, (a, b) in enumerate(places):
        if a is not None and a in left:
            cuts[axis] = left[a]
        elif a is None and b in right:
            cuts[axis] = right[b]
    inner = {i: left[a] for i, a in enumerate(contract[0]) if a in left}
    shapes = [v.aval.shape for v in eqn.invars]
    cells = {}
    for at in positions(cuts):
        outer = dict(zip(sorted(cuts), at, strict=True))
        terms = []
        for along in positions(inner):
            summed = dict(zip(sorted(inner), along, strict=True))
            index_left = {a: outer[i] for i, (a, _) in enumerate(places) if a is not None and i in outer}
            index_right = {b: outer[i] for i, (_, b) in enumerate(places) if b is not None and i in outer}
            for i, position in summed.items():
                index_left[contract[0][i]] = index_right[contract[1][i]] = position
            found = []
            for o, c, index, whole in zip(
                operands, (left, right), (index_left, index_right), shapes, strict=True
            ):
                place = tuple(index[a] for a in sorted(c))
                found.append((refined(o, c, place), cell_shape(whole, c, place)))
            (a, shape_a), (b, shape_b) = found
            terms.append(_dot(a, b, numbers, (shape_a, shape_b), precision))
        total = terms[0]
        for term in terms[1:]:
            total = lax.add_p.bind(total, term)
        cells[at] = Piece(total)
    return Grid(eqn.outvars[0].aval.shape, cuts, cells, saved=True)


def _dot(
    left: Piece, right: Piece, numbers: Any, shapes: tuple[Shape, Shape], precision: Mapping[str, Any]
) -> Any:
    """`dot_general` of two pieces of cells of `shapes`, with size 1 where the result repeats.

    A batch dimension that one side only repeats becomes a free dimension of the other; a scale that is
    constant along the contraction multiplies the result.
    """
    (contract, batch) = numbers
    sides = []
    scales = []
    for side, piece in enumerate((left, right)):
        scale = piece.scale
        if scale is not None and any(scale.shape[a] != 1 for a in contract[side]):
            scale = None
        value = piece.core if scale is not None else piece.value()
        full = [shapes[side][a] if a in contract[side] else d for a, d in enumerate(value.shape)]
        sides.append(repeated_to(value, tuple(full)))
        if scale is not None:
            scales.append(_as_result(scale, numbers, side, sides, shapes))
    result = unrepeated_dot(sides[0], sides[1], (contract, batch), precision)
    return functools.reduce(lax.mul_p.bind, scales, result)


def _as_result(scale: Any, numbers: Any, side: int, sides: Any, shapes: tuple[Shape, Shape]) -> Any:
    """A scale of one side as a factor of the product."""
    (contract, batch) = numbers
    free = [a for a in range(scale.ndim) if a not in contract[side] and a not in batch[side]]
    others = len(shapes[1 - side]) - len(contract[side]) - len(batch[side])
    moved = lax.transpose(scale, [*batch[side], *free, *contract[side]])
    sizes = [scale.shape[a] for a in (*batch[side], *free)]
    at = len(batch[side]) + (len(free) if side == 0 else 0)
    sizes[at:at] = [1] * others
    return lax.reshape(moved, sizes)


def unrepeated_dot(left: Any, right: Any, numbers: Any, precision: Mapping[str, Any]) -> Any:
    """`dot_general` where a batch dimension may have size 1 on one side: that side's matrix is then the same
    for the whole batch, which becomes rows of the other side's."""
    (contract, batch) = numbers
    if math.prod(d if isinstance(d, int) else 2 for d in (left.shape[a] for a in contract[0])) == 1:
        return _outer(left, right, numbers)
    shared: list[tuple[int, int]] = []
    drop: tuple[list[int], list[int]] = ([], [])
    for a, b in zip(batch[0], batch[1], strict=True):
        one, other = left.shape[a] == 1, right.shape[b] == 1
        if one == other:
            shared.append((a, b))
        else:
            drop[0 if one else 1].append(a if one else b)
    operands = [lax.squeeze(v, d) if d else v for v, d in zip((left, right), drop, strict=True)]

    def moved(side: int, axes: Sequence[int]) -> list[int]:
        return [a - sum(d < a for d in drop[side]) for a in axes]

    new = (
        (moved(0, contract[0]), moved(1, contract[1])),
        (moved(0, [a for a, _ in shared]), moved(1, [b for _, b in shared])),
    )
    result = lax.dot_general(operands[0], operands[1], new, **precision)
    # Name each axis of the result by the batch pair or the side's own axis that it comes from.
    names: list[Any] = [("batch", a) for a, _ in shared]
    pair = dict(zip(batch[1], batch[0], strict=True))
    for side, ndim in ((0, left.ndim), (1, right.ndim)):
        used = {*contract[side], *drop[side], *(s[side] for s in shared)}
        for axis in (a for a in range(ndim) if a not in used):
            if axis in batch[side]:
                names.append(("batch", axis if side == 0 else pair[axis]))
            else:
                names.append((side, axis))
    wanted: list[Any] = [("batch", a) for a in batch[0]]
    for side, ndim in ((0, left.ndim), (1, right.ndim)):
        wanted += [(side, a) for a in range(ndim) if a not in contract[side] and a not in batch[side]]
    order = [names.index(name) for name in wanted]
    return result if order == list(range(len(order))) else lax.transpose(result, order)


def _outer(left: Any, right: Any, numbers: Any) -> Any:
    """A product over one element: an elementwise product of the free axes."""
    (contract, batch) = numbers
    arranged = []
    for side, value in enumerate((left, right)):
        free = [a for a in range(value.ndim) if a not in contract[side] and a not in batch[side]]
        moved = lax.transpose(value, [*batch[side], *free, *contract[side]])
        arranged.append((value, moved, [value.shape[a] for a in batch[side]], [value.shape[a] for a in free]))
    (_, a, batch_a, free_a), (_, b, batch_b, free_b) = arranged
    a = lax.reshape(a, [*batch_a, *free_a, *[1] * len(free_b)])
    b = lax.reshape(b, [*batch_b, *[1] * len(free_a), *free_b])
    return lax.mul_p.bind(a, b)
