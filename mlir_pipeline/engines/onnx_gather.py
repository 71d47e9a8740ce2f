"""XLA's gather in ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from mlir_pipeline.engines.onnx_graph import Dim, Graph, Tensor, onnx_type
from mlir_pipeline.errors import CompileError


def gather(
    g: Graph, params: dict[str, Any], operands: Sequence[Tensor], avals: Sequence[Any]
) -> list[Tensor]:
    """Entries along neighbouring axes are one `Gather`; other windows are positions in the operand laid
    flat. XLA moves windows inside, or fills those that are outside, by the equation's mode."""
    x, indices = operands
    aval, numbers, sizes = avals[0], params["dimension_numbers"], params["slice_sizes"]
    starts = g.node("Cast", indices.name, to=onnx_type(np.int64))
    columns: dict[int, str] = {}
    inside = None
    for column, axis in enumerate(numbers.start_index_map):
        start = g.node("Gather", starts, g.constant(column, np.int64), axis=len(indices.shape) - 1)
        # Scalars: a vector of one would give a scalar start an axis.
        last = g.node("Squeeze", g.node("Sub", g.size(x.shape[axis]), g.size(sizes[axis])))
        if params["mode"] == GatherScatterMode.FILL_OR_DROP:
            fits = g.node("GreaterOrEqual", start, g.constant(0, np.int64))
            fits = g.node("And", fits, g.node("LessOrEqual", start, last))
            inside = fits if inside is None else g.node("And", inside, fits)
        columns[axis] = g.node("Min", g.node("Max", start, g.constant(0, np.int64)), last)
    batch_axes = [axis for axis in range(len(aval.shape)) if axis not in numbers.offset_dims]
    if _is_of_entries(numbers, sizes, x.shape):
        found = _entries(g, x, columns, numbers, batch_axes)
    else:
        found = _windows(g, x, columns, numbers, sizes, batch_axes, aval.shape)
    if inside is not None:
        found = _filled(g, x, _along(g, inside, batch_axes, len(aval.shape)), found, params["fill_value"])
    return [Tensor(found, tuple(aval.shape), np.dtype(aval.dtype))]


def _is_of_entries(numbers: Any, sizes: Sequence[Dim], shape: Sequence[Dim]) -> bool:
    """Whether indices pick single places of neighbouring axes, and the other axes are taken whole."""
    picked = sorted(numbers.start_index_map)
    return (
        bool(picked)
        and not numbers.operand_batching_dims
        and picked == sorted(numbers.collapsed_slice_dims)
        and picked == list(range(picked[0], picked[-1] + 1))
        and all(
            size == dim for a, (size, dim) in enumerate(zip(sizes, shape, strict=True)) if a not in picked
        )
    )


def _entries(g: Graph, x: Tensor, columns: dict[int, str], numbers: Any, batch_axes: list[int]) -> str:
    picked = sorted(columns)
    place = columns[picked[0]]
    for axis in picked[1:]:
        stride = g.node("Squeeze", g.size(x.shape[axis]))
        place = g.node("Add", g.node("Mul", place, stride), columns[axis])
    first, rank = picked[0], len(x.shape)
    name = x.name
    if len(picked) > 1:
        before, after = x.shape[:first], x.shape[picked[-1] + 1 :]
        name = g.node("Reshape", name, g.integers([*before, -1, *after]), allowzero=0)
    name = g.node("Gather", name, place, axis=first)
    # What Gather gives is [axes before, batch, axes after].
    windows = list(numbers.offset_dims)
    made = [*windows[:first], *batch_axes, *windows[first:]]
    assert len(windows) == rank - len(picked)
    order = [made.index(axis) for axis in range(len(made))]
    return name if order == sorted(order) else g.node("Transpose", name, perm=order)


def _windows(
    g: Graph,
    x: Tensor,
    columns: dict[int, str],
    numbers: Any,
    sizes: Sequence[Dim],
    batch_axes: list[int],
    shape: Sequence[Dim],
) -> str:
    """The position of an element is the sum over the operand's axes of its index times the axis' stride; an
    index is the window's start, plus the element's place in the window, or, along a batching axis, the
    window's own place. All are arrays that broadcast to the result."""
    rank = len(shape)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(len(x.shape)) if axis not in gone]
    position = g.constant(np.zeros([1] * rank), np.int64)
    for axis, dim in enumerate(x.shape):
        terms = []
        if axis in columns:
            terms.append(_along(g, columns[axis], batch_axes, rank))
        if axis in windows and sizes[axis] != 1:
            own = numbers.offset_dims[windows.index(axis)]
            terms.append(_along(g, _line(g, sizes[axis]), [own], rank))
        if axis in numbers.operand_batching_dims:
            own = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]
            terms.append(_along(g, _line(g, dim), [batch_axes[own]], rank))
        for term in terms:
            for size in x.shape[axis + 1 :]:
                term = g.node("Mul", term, g.size(size))
            position = g.node("Add", position, term)
    position = g.node("Expand", position, g.integers(shape))
    return g.node("Gather", g.node("Reshape", x.name, g.constant([-1], np.int64)), position)


def _filled(g: Graph, x: Tensor, inside: str, found: str, fill: Any) -> str:
    if x.dtype.kind == "b":
        raise CompileError("a gather of booleans with indices that may be outside")
    if fill is None:
        fill = np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).min if x.dtype.kind == "i" else 0
    return g.node("Where", inside, found, g.constant(fill, x.dtype))


def _line(g: Graph, size: Dim) -> str:
    """0, 1, ... below a size."""
    if isinstance(size, int):
        return g.constant(np.arange(size), np.int64)
    scalar = g.node("Squeeze", g.size(size))
    return g.node("Range", g.constant(0, np.int64), scalar, g.constant(1, np.int64))


def _along(g: Graph, name: str, axes: Sequence[int], rank: int) -> str:
    """An array whose axes are the result's `axes`, with size 1 in the others."""
    new = [axis for axis in range(rank) if axis not in axes]
    return g.node("Unsqueeze", name, g.constant(new, np.int64)) if new else name
