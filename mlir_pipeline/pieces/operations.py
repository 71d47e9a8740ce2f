# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What keeps an operation of a jaxpr in pieces."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.pieces.dots import dot_general
from mlir_pipeline.pieces.grid import (
    Grid,
    Piece,
    Shape,
    cell_shape,
    common_cuts,
    elements,
    positions,
    refined,
    repeated_to,
)

_ELEMENTWISE = {
    *(
        "abs",
        "add",
        "add_any",
        "and",
        "atan2",
        "cbrt",
        "ceil",
        "clamp",
        "convert_element_type",
        "copy",
        "cos",
    ),
    *("div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or"),
    *("pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub"),
    *("tan", "tanh", "xor"),
}
_REDUCTIONS = {
    "reduce_sum": (lax.reduce_sum_p, lax.add_p.bind),
    "reduce_max": (lax.reduce_max_p, lax.max_p.bind),
    "reduce_min": (lax.reduce_min_p, lax.min_p.bind),
}


def on_pieces(eqn: core.JaxprEqn, operands: Sequence[Any], maximum: bool) -> Grid | None:
    """The equation's result in pieces; None where its operation does not keep them apart."""
    name = eqn.primitive.name
    shape = eqn.outvars[0].aval.shape
    if name in _ELEMENTWISE:
        return _elementwise(eqn, operands, maximum)
    if name == "dot_general":
        return dot_general(eqn, operands)
    if name == "concatenate":
        return concatenated(operands, eqn)
    grid = operands[0]
    if not isinstance(grid, Grid):
        return None
    if name in _REDUCTIONS:
        return _reduced(grid, eqn.params["axes"], *_REDUCTIONS[name])
    if name == "transpose":
        order = eqn.params["permutation"]
        return _moved(
            grid, shape, {int(a): i for i, a in enumerate(order)}, lambda v: lax.transpose(v, order)
        )
    if name == "broadcast_in_dim" and len(eqn.invars) == 1:
        return _broadcast(grid, shape, eqn.params["broadcast_dimensions"])
    if name in ("reshape", "squeeze", "expand_dims") and not (name == "reshape" and eqn.params["dimensions"]):
        return _reshaped(grid, shape)
    if name == "slice":
        return _sliced(grid, shape, eqn.params)
    return None


def _elementwise(eqn: core.JaxprEqn, operands: Sequence[Any], maximum: bool) -> Grid:
    grids = [o for o in operands if isinstance(o, Grid)]
    shape, name = eqn.outvars[0].aval.shape, eqn.primitive.name
    # An operand of size 1 along a cut axis is repeated along it.
    cuts = common_cuts([g.cuts for g in grids])
    cells = {}
    for at in positions(cuts):
        here = [refined(o, cuts, at) for o in operands]
        if name == "exp":
            cells[at] = _exponential(here[0], eqn.params["accuracy"])
            continue
        found = None
        if name in ("mul", "div"):
            found = _scaled(eqn.primitive, here[0], here[1].value())
            if found is None and name == "mul":
                found = _scaled(eqn.primitive, here[1], here[0].value())
        elif maximum and elements(here[0].core.shape) < elements(cell_shape(shape, cuts, at)):
            found = Piece(here[0].value(), shift=here[1].value())
        cells[at] = found or Piece(_bound(eqn, [p.value() for p in here]))
    return Grid(shape, cuts, cells, any(g.saved for g in grids))


def _bound(eqn: core.JaxprEqn, values: Sequence[Any]) -> Any:
    """An elementwise operation; those that choose do not repeat axes of size 1 by themselves."""
    if eqn.primitive.name in ("select_n", "clamp"):
        ranked = [v for v in values if v.ndim]
        sizes = [_wider(v.shape[a] for v in ranked) for a in range(ranked[0].ndim)] if ranked else []
        values = [repeated_to(v, tuple(sizes)) if v.ndim else v for v in values]
    return eqn.primitive.bind(*values, **eqn.params)


def _wider(sizes: Iterable[Any]) -> Any:
    """The size of an axis of which some operands have only one."""
    return next((d for d in sizes if not (isinstance(d, int) and d == 1)), 1)


def concatenated(operands: Sequence[Any], eqn: core.JaxprEqn) -> Grid:
    """Side by side along a new or a cut axis; along another one, in each cell."""
    axis, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    own = [dict(o.cuts) if isinstance(o, Grid) else {} for o in operands]
    cuts = common_cuts([{a: s for a, s in c.items() if a != axis} for c in own])
    sizes = [c.get(axis, (v.aval.shape[axis],)) for c, v in zip(own, eqn.invars, strict=True)]
    whole = {**cuts, axis: tuple(size for part in sizes for size in part)}
    cells = {}
    for at in positions(cuts):
        offset = 0
        for o, part in zip(operands, sizes, strict=True):
            finer = {**cuts, axis: part}
            for position in range(len(part)):
                index = dict(zip(sorted(cuts), at, strict=True)) | {axis: position}
                piece = refined(o, finer, tuple(index[a] for a in sorted(finer)))
                index[axis] = offset + position
                cells[tuple(index[a] for a in sorted(whole))] = piece
            offset += len(part)
    saved = any(o.saved for o in operands if isinstance(o, Grid))
    if any(axis in c for c in own) or not any(own):
        return Grid(shape, whole, cells, saved)
    # Along an axis that no operand is cut along, the pieces of a cell are one.
    joined = {}
    for at in positions(cuts):
        index = dict(zip(sorted(cuts), at, strict=True))
        parts = []
        for position in range(len(whole[axis])):
            place = index | {axis: position}
            parts.append(cells[tuple(place[a] for a in sorted(whole))].value())
        full = []
        for a in range(len(shape)):
            widths = {p.shape[a] for p in parts}
            full.append(next(iter(widths)) if len(widths) == 1 else cell_shape(shape, cuts, at)[a])
        repeated = [
            repeated_to(p, tuple(size if a == axis else d for a, d in enumerate(full)))
            for p, size in zip(parts, whole[axis], strict=True)
        ]
        joined[at] = Piece(lax.concatenate(repeated, axis))
    return Grid(shape, cuts, joined, saved)


def _moved(grid: Grid, shape: Shape, to: dict[int, int], function: Any) -> Grid:
    """The grid with each axis moved `to` another place, by `function` on each array."""
    cuts = {to[axis]: sizes for axis, sizes in grid.cuts.items()}
    cells = {}
    for at, piece in grid.cells.items():
        place = {to[axis]: position for axis, position in zip(grid.axes, at, strict=True)}
        cells[tuple(place[a] for a in sorted(place))] = piece.map(function)
    return Grid(shape, cuts, cells, grid.saved)


def _broadcast(grid: Grid, shape: Shape, to: Sequence[Any]) -> Grid | None:
    places = [int(a) for a in to]

    def unrepeated(value: Any) -> Any:
        sizes = [1] * len(shape)
        for axis, place in enumerate(places):
            sizes[place] = value.shape[axis]
        return lax.reshape(value, sizes)

    return _moved(grid, shape, dict(enumerate(places)), unrepeated)


def _reshaped(grid: Grid, shape: Shape) -> Grid | None:
    """A reshape that leaves a cut axis alone, or merges it with axes after it."""
    groups = _groups(grid.shape, shape)
    if groups is None:
        return None
    to, factor = {}, {}
    for before, after in groups:
        for axis in (a for a in before if a in grid.cuts):
            wide = [b for b in after if shape[b] != 1]
            if axis != next((a for a in before if grid.shape[a] != 1), None) or not wide:
                return None
            if not isinstance(shape[wide[0]], int) or shape[wide[0]] % grid.shape[axis]:
                return None
            to[axis], factor[axis] = wide[0], shape[wide[0]] // grid.shape[axis]
    cuts = {to[a]: tuple(size * factor[a] for size in sizes) for a, sizes in grid.cuts.items()}
    cells = {}
    for at, piece in grid.cells.items():
        place = {to[axis]: position for axis, position in zip(grid.axes, at, strict=True)}
        index = tuple(place[a] for a in sorted(place))
        before, after = grid.cell_shape(at), cell_shape(shape, cuts, index)

        def reshape(value: Any, before: Shape = before, after: Shape = after) -> Any:
            sizes, full = list(after), list(value.shape)
            for left, right in groups:
                if all(value.shape[a] == 1 for a in left):
                    for b in right:
                        sizes[b] = 1
                elif sum(before[a] != 1 for a in left) > 1 or sum(after[b] != 1 for b in right) > 1:
                    for a in left:
                        full[a] = before[a]
            return lax.reshape(repeated_to(value, tuple(full)), sizes)

        cells[index] = piece.map(reshape)
    return Grid(shape, cuts, cells, grid.saved)


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """The shortest runs of axes of both shapes with the same number of elements; a dynamic axis must stay as
    it is."""
    left = [a for a, d in enumerate(before) if not (isinstance(d, int) and d == 1)]
    right = [b for b, d in enumerate(after) if not (isinstance(d, int) and d == 1)]
    groups = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        if not isinstance(before[a[0]], int) or not isinstance(after[b[0]], int):
            if before[a[0]] != after[b[0]]:
                return None
            groups.append((a, b))
            continue
        m, n = before[a[0]], after[b[0]]
        while m != n:
            axes, more, shape = (left, a, before) if m < n else (right, b, after)
            if not axes or not isinstance(shape[axes[0]], int):
                return None
            axis = axes.pop(0)
            more.append(axis)
            m, n = (m * shape[axis], n) if m < n else (m, n * shape[axis])
        groups.append((a, b))
    return None if left or right else groups


def _sliced(grid: Grid, shape: Shape, params: Any) -> Grid | None:
    strides = params["strides"] or [1] * len(shape)
    cuts, chosen, windows = {}, {}, []
    for axis, (start, stop, stride) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        windows.append((start, stop, stride))
        if axis not in grid.cuts:
            continue
        if stride != 1:
            return None
        begin, taken = 0, []
        for position, size in enumerate(grid.cuts[axis]):
            low, high = max(start - begin, 0), min(stop - begin, size)
            if low < high:
                taken.append((position, low, high))
            begin += size
        chosen[axis] = taken
        cuts[axis] = tuple(high - low for _, low, high in taken)
    several = [axis for axis in cuts if len(cuts[axis]) > 1]
    cells = {}
    for at in positions(cuts):
        picked = {axis: chosen[axis][p] for axis, p in zip(sorted(cuts), at, strict=True)}

        def cut(value: Any, picked: Any = picked) -> Any:
            for axis, (start, stop, stride) in enumerate(windows):
                if value.shape[axis] == 1:
                    continue
                if axis in picked:
                    _, low, high = picked[axis]
                    value = lax.slice_in_dim(value, low, high, axis=axis)
                elif (start, stop, stride) != (0, grid.shape[axis], 1):
                    value = lax.slice_in_dim(value, start, stop, stride, axis=axis)
            return value

        place = tuple(position for position, axis in zip(at, sorted(cuts), strict=True) if axis in several)
        cells[place] = grid.cells[tuple(picked[a][0] for a in sorted(picked))].map(cut)
    return Grid(shape, {axis: cuts[axis] for axis in several}, cells, grid.saved)


def _reduced(grid: Grid, axes: Sequence[int], reduce: Any, combine: Any) -> Grid:
    """A reduction over `axes`: of each cell, then of the cells along cut axes."""
    kept = [axis for axis in grid.axes if axis not in axes]
    found: dict[tuple[int, ...], Any] = {}
    for at, piece in grid.cells.items():
        place = tuple(p for axis, p in zip(grid.axes, at, strict=True) if axis in kept)
        value = _reduced_piece(piece, grid.cell_shape(at), axes, reduce)
        found[place] = combine(found[place], value) if place in found else value
    left = [axis for axis in range(len(grid.shape)) if axis not in axes]
    return Grid(
        tuple(grid.shape[axis] for axis in left),
        {left.index(axis): grid.cuts[axis] for axis in kept},
        {at: Piece(value) for at, value in found.items()},
        saved=True,
    )


def _reduced_piece(piece: Piece, shape: Shape, axes: Sequence[int], reduce: Any) -> Any:
    linear = reduce is lax.reduce_sum_p
    if piece.scale is not None and linear and all(piece.scale.shape[a] == 1 for a in axes):
        inner = _reduced_piece(Piece(piece.core), shape, axes, reduce)
        return lax.mul_p.bind(inner, lax.squeeze(piece.scale, axes))
    value = piece.value()
    full = [shape[a] if a in axes else d for a, d in enumerate(value.shape)]
    return _bind_reduce(reduce, repeated_to(value, tuple(full)) if linear else value, axes)


def _bind_reduce(reduce: Any, value: Any, axes: Sequence[int]) -> Any:
    if reduce is lax.reduce_sum_p:
        return lax.reduce_sum_p.bind(value, axes=tuple(axes), out_sharding=None)
    return reduce.bind(value, axes=tuple(axes))


def _exponential(piece: Piece, accuracy: Any) -> Piece:
    """`exp(core - shift)` as `exp(core - m) * exp(m - shift)` with `m` the maximum of `core` along the axes
    on which `shift` is constant. Requires `shift >= m`, so that both factors are at most 1."""
    if piece.shift is None:
        return Piece(lax.exp_p.bind(piece.value(), accuracy=accuracy))
    axes = [a for a, d in enumerate(piece.core.shape) if d != 1 and piece.shift.shape[a] == 1]
    keep = [1 if a in axes else d for a, d in enumerate(piece.core.shape)]
    most = lax.reshape(lax.reduce_max_p.bind(piece.core, axes=tuple(axes)), keep)
    # A row that is masked with -inf has no maximum to subtract; its scale is exp(-inf) = 0.
    masked = lax.eq(most, lax.full_like(most, -np.inf))
    finite = lax.select(masked, lax.full_like(most, 0), most)
    core = lax.exp_p.bind(lax.sub_p.bind(piece.core, finite), accuracy=accuracy)
    return Piece(core, scale=lax.exp_p.bind(lax.sub_p.bind(most, piece.shift), accuracy=accuracy))


def _scaled(primitive: Any, piece: Piece, other: Any) -> Piece | None:
    """`piece * other` or `piece / other` with the work done on the scale alone; None where `other` varies
    with the core."""
    if piece.scale is None or not other.ndim:
        return None
    if any(d != 1 and piece.scale.shape[a] == 1 for a, d in enumerate(other.shape)):
        return None
    return Piece(piece.core, scale=primitive.bind(piece.scale, other))
