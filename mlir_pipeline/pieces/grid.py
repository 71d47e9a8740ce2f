# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Arrays in pieces: what a concatenation holds, kept apart, each piece without the rows that it repeats.

A `Grid` is an array cut along some axes into cells. A cell is a `Piece`: an array of the same rank that has
size 1 where the cell only repeats it, and that may stand for a product or a difference of two such arrays
which vary along different axes. What is the same for every candidate is so computed once, until an operation
mixes it with a candidate's own values.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax import lax
from jax.extend import core

Shape = tuple[Any, ...]
_MANY = 1 << 20
"""A dynamic dimension in comparisons of sizes."""


def elements(shape: Sequence[Any]) -> int:
    """Elements of a shape; a dynamic dimension counts as many."""
    return math.prod(d if isinstance(d, int) else _MANY for d in shape)


@dataclass(frozen=True)
class Piece:
    """`core`, or `core * scale`, or `core - shift`. All have the rank of the cell, and size 1 where they
    repeat."""

    core: Any
    scale: Any = None
    shift: Any = None

    def value(self) -> Any:
        """The piece as one array, which still has size 1 where it repeats."""
        if self.scale is not None:
            return lax.mul_p.bind(self.core, self.scale)
        return self.core if self.shift is None else lax.sub_p.bind(self.core, self.shift)

    def map(self, function: Any) -> "Piece":
        """The piece with the same change of shape made in each of its arrays."""
        return Piece(*(None if a is None else function(a) for a in (self.core, self.scale, self.shift)))


@dataclass(frozen=True)
class Grid:
    """An array of `shape` in cells: `cuts[axis]` are the sizes of the cells along a cut axis, and `cells` has
    a piece for each tuple of positions, in the order of the cut axes.

    `saved`: a product was already computed in pieces, so that the array is better made from them than as the
    source model does.
    """

    shape: Shape
    cuts: Mapping[int, tuple[int, ...]]
    cells: Mapping[tuple[int, ...], Piece]
    saved: bool = False
    axes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(sorted(self.cuts)))

    def cell_shape(self, at: tuple[int, ...]) -> Shape:
        """The shape of the cell at `at`, with the rows that it repeats."""
        return cell_shape(self.shape, self.cuts, at)

    def repeats(self) -> bool:
        """Whether some cell has rows that are the same."""
        return any(elements(p.core.shape) < elements(self.cell_shape(at)) for at, p in self.cells.items())

    def whole(self) -> Any:
        """The array in one piece."""
        return _joined(self, ())


def cell_shape(shape: Shape, cuts: Mapping[int, tuple[int, ...]], at: tuple[int, ...]) -> Shape:
    sizes = list(shape)
    for axis, position in zip(sorted(cuts), at, strict=True):
        sizes[axis] = cuts[axis][position]
    return tuple(sizes)


def positions(cuts: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The places of a grid's cells."""
    return itertools.product(*(range(len(cuts[axis])) for axis in sorted(cuts)))


def repeated_to(value: Any, shape: Shape) -> Any:
    """`value` with its axes of size 1 repeated to `shape`."""
    if tuple(value.shape) == tuple(shape):
        return value
    return lax.broadcast_in_dim(value, shape, range(len(shape)))


def repeating(var: Any, producer: Mapping[core.Var, core.JaxprEqn]) -> core.JaxprEqn | None:
    """The broadcast that makes `var` from fewer elements, if one does."""
    eqn = None if isinstance(var, core.Literal) else producer.get(var)
    if eqn is None or eqn.primitive.name != "broadcast_in_dim" or len(eqn.invars) != 1:
        return None
    return eqn if elements(eqn.invars[0].aval.shape) < elements(var.aval.shape) else None


def unrepeated(broadcast: core.JaxprEqn, value: Any) -> Any:
    """A broadcast's operand in the rank of its result, with size 1 where the broadcast repeats."""
    shape = [1] * broadcast.outvars[0].aval.ndim
    for axis, at in enumerate(broadcast.params["broadcast_dimensions"]):
        shape[at] = value.shape[axis]
    return lax.reshape(value, shape)


def common_cuts(cuts: Sequence[Mapping[int, tuple[int, ...]]]) -> dict[int, tuple[int, ...]]:
    """The coarsest cuts that refine all of `cuts`."""
    merged: dict[int, tuple[int, ...]] = {}
    for axis in sorted({a for c in cuts for a in c}):
        ends = sorted({end for c in cuts if axis in c for end in itertools.accumulate(c[axis])})
        merged[axis] = tuple(b - a for a, b in zip([0, *ends], ends, strict=False))
    return merged


def refined(value: Any, cuts: Mapping[int, tuple[int, ...]], at: tuple[int, ...]) -> Piece:
    """The piece of an array or a grid that is in the cell `at` of finer cuts. A scalar is in every cell."""
    grid = value if isinstance(value, Grid) else None
    piece = grid.cells[()] if grid is not None and not grid.cuts else None
    windows = {}
    for axis, position in zip(sorted(cuts), at, strict=True):
        start = sum(cuts[axis][:position])
        windows[axis] = (start, start + cuts[axis][position])
    if grid is not None and piece is None:
        source = []
        for axis in grid.axes:
            start = 0
            for place, size in enumerate(grid.cuts[axis]):
                if start <= windows[axis][0] < start + size:
                    source.append(place)
                    windows[axis] = (windows[axis][0] - start, windows[axis][1] - start)
                    break
                start += size
        piece = grid.cells[tuple(source)]
    elif piece is None:
        piece = Piece(value)

    def cut(array: Any) -> Any:
        for axis, (start, stop) in windows.items():
            if array.ndim and array.shape[axis] != 1 and (start, stop) != (0, array.shape[axis]):
                array = lax.slice_in_dim(array, start, stop, axis=axis)
        return array

    return piece.map(cut)


def _joined(grid: Grid, at: tuple[int, ...]) -> Any:
    if len(at) == len(grid.axes):
        return repeated_to(grid.cells[at].value(), grid.cell_shape(at))
    axis = grid.axes[len(at)]
    parts = [_joined(grid, (*at, position)) for position in range(len(grid.cuts[axis]))]
    return lax.concatenate(parts, axis) if len(parts) > 1 else parts[0]
