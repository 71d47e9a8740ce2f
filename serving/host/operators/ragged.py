"""Ragged tensors: flat values and row partitions (`row_splits`, `value_rowids`, or the number of rows)."""

from collections.abc import Sequence

import numpy as np

from serving.host.operators.indexing import check_ids
from serving.host.operators.registry import Lookups, Operator, check, filled, refuse, scalar


def _check_splits(splits: np.ndarray, size: int, what: str = "row splits") -> np.ndarray:
    """The row lengths. Raises `InvalidRequestError` unless the splits rise from 0 to `size`."""
    check(splits.ndim == 1 and splits.size > 0, f"{what} must be a vector of at least one value")
    check(splits[0] == 0 and splits[-1] == size, f"{what} do not run from 0 to {size}")
    lengths = np.diff(splits)
    check((lengths >= 0).all(), f"{what} decrease")
    return lengths


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The positions `starts[i], starts[i] + 1, ...`, `lengths[i]` of them, for each i in turn."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _partition(tensor: np.ndarray, kind: str, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and column of each value, and the width of the widest row."""
    if kind == "ROW_SPLITS":
        check(tensor.ndim == 1 and tensor.size > 0, "row splits must be a vector of at least one value")
        check(tensor.size - 1 <= rows, f"{tensor.size - 1} rows in a partition of {rows}")
        lengths = np.diff(tensor)
        check(tensor[0] == 0 and (lengths >= 0).all(), "row splits do not rise from 0")
        row = np.repeat(np.arange(lengths.size), lengths)
        column = spread(np.zeros(lengths.size, np.int64), lengths)
        return row, column, int(lengths.max(initial=0))
    if kind != "VALUE_ROWIDS":
        refuse(f"row partition type {kind} is not supported here")
    check_ids(tensor, rows, "row id")
    if not tensor.size:
        return tensor.astype(np.int64), tensor.astype(np.int64), 0
    starts = np.flatnonzero(np.concatenate([[True], tensor[1:] != tensor[:-1]]))
    lengths = np.diff(np.append(starts, tensor.size))
    return tensor.astype(np.int64), spread(np.zeros(starts.size, np.int64), lengths), int(lengths.max())


def ragged_tensor_to_tensor(
    lookups: Lookups,
    shape: np.ndarray,
    values: np.ndarray,
    default_value: np.ndarray,
    *row_partition_tensors: np.ndarray,
    row_partition_types: Sequence[str],
) -> np.ndarray:
    """A dense tensor padded with `default_value`, cut or padded to the sizes in `shape` that are not -1."""
    kinds, partitions = list(row_partition_types), list(row_partition_tensors)
    if kinds[0] == "FIRST_DIM_SIZE":
        rows = int(scalar(partitions[0], "the number of rows"))
        kinds, partitions = kinds[1:], partitions[1:]
    elif kinds[0] == "ROW_SPLITS":
        rows = partitions[0].size - 1
    else:
        refuse(f"row partition type {kinds[0]} cannot be the first")
    depth = len(kinds)
    places, widths, size = [], [], rows
    for tensor, kind in zip(partitions, kinds, strict=True):
        row, column, width = _partition(tensor, kind, size)
        places.append((row, column))
        widths.append(width)
        size = row.size
    inner = values.shape[1:]
    wanted = shape.tolist() if shape.ndim else [-1] * (1 + depth + len(inner))
    check(len(wanted) == 1 + depth + len(inner), f"shape {wanted} for a ragged tensor of another rank")
    sizes = [w if w != -1 else n for w, n in zip(wanted, [rows, *widths, *inner], strict=True)]
    check(
        tuple(sizes[depth + 1 :]) == inner, f"inner shape {sizes[depth + 1 :]}, the values' is {list(inner)}"
    )
    check(len(values) >= size, f"{len(values)} values, the partitions have {size}")
    # Where each value goes, or -1 beyond the sizes: level by level, from the rows to the values.
    target = np.where(np.arange(rows) < sizes[0], np.arange(rows), -1)
    for (row, column), width in zip(places, sizes[1 : depth + 1], strict=True):
        inside = (target[row] >= 0) & (column < width)
        target = np.where(inside, target[row] * width + column, -1)
    out = np.empty((int(np.prod(sizes[: depth + 1], dtype=np.int64)), *inner), values.dtype)
    try:
        out[...] = default_value if default_value.ndim else default_value[()]
    except ValueError:
        refuse(f"default_value of shape {list(default_value.shape)} does not broadcast to {list(inner)}")
    kept = target >= 0
    out[target[kept]] = values[:size][kept]
    return out.reshape(sizes)


def ragged_tensor_to_sparse(
    lookups: Lookups, *splits_and_values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, values and dense shape of the ragged tensor `(*nested_splits, dense_values)`."""
    *nested, values = splits_and_values
    coordinates, shape = np.zeros((0, 0), np.int64), []
    size = len(nested[0]) - 1
    coordinates, shape = np.arange(size)[:, None], [size]
    for level, splits in enumerate(nested):
        inner = len(nested[level + 1]) - 1 if level + 1 < len(nested) else len(values)
        check(splits.ndim == 1 and splits.size == len(coordinates) + 1, "row splits of another size")
        lengths = _check_splits(splits, inner)
        column = spread(np.zeros(lengths.size, np.int64), lengths)
        coordinates = np.column_stack([np.repeat(coordinates, lengths, axis=0), column])
        shape.append(int(lengths.max(initial=0)))
    if values.ndim > 1:
        inner_places = np.indices(values.shape[1:]).reshape(values.ndim - 1, -1).T
        coordinates = np.column_stack(
            [np.repeat(coordinates, len(inner_places), axis=0), np.tile(inner_places, (len(values), 1))]
        )
        shape.extend(values.shape[1:])
    return coordinates.astype(np.int64), values.ravel(), np.array(shape, np.int64)


def ragged_gather(lookups: Lookups, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of the ragged tensor `(*nested_splits, dense_values)` at the indices that are the last input:
    nested splits, one more for each dimension of the indices after the first, and values."""
    *nested, values, indices = inputs
    rows = len(nested[0]) - 1
    check_ids(indices, rows)
    outer, count = [], 1
    for size in indices.shape[:-1] if indices.ndim else ():
        count *= size
        outer.append(count)
    # Splits of the dimensions that the indices add.
    splits = [np.arange(n + 1, dtype=nested[0].dtype) * indices.shape[i + 1] for i, n in enumerate(outer)]
    at = indices.ravel().astype(np.int64)
    for level, part in enumerate(nested):
        inner = len(nested[level + 1]) - 1 if level + 1 < len(nested) else len(values)
        check(part[-1] <= inner and (np.diff(part) >= 0).all() and part[0] >= 0, "row splits do not fit")
        lengths = (part[1:] - part[:-1])[at]
        splits.append(np.concatenate([[0], np.cumsum(lengths)]).astype(part.dtype))
        at = spread(part[:-1][at], lengths)
    if indices.ndim == 0:  # one row: it has no outer dimension
        splits = splits[1:]
    return (*splits, values[at])


def ragged_range(
    lookups: Lookups,
    starts: np.ndarray,
    limits: np.ndarray,
    deltas: np.ndarray,
    *,
    Tsplits: str = "int64",  # noqa: N803
) -> tuple[np.ndarray, np.ndarray]:
    """Row splits and values of a ragged tensor whose rows are ranges; a range in the wrong direction is
    empty."""
    sizes = {v.size for v in (starts, limits, deltas) if v.ndim}
    check(len(sizes) <= 1, f"starts, limits and deltas of sizes {sorted(sizes)}")
    rows = sizes.pop() if sizes else 1
    first, last, step = (np.broadcast_to(v, (rows,)) for v in (starts, limits, deltas))
    check((step != 0).all(), "a range with delta 0")
    if starts.dtype.kind == "f":
        lengths = np.ceil(np.abs((last.astype(np.float64) - first) / step)).astype(np.int64)
        lengths = np.where(((step > 0) & (first > last)) | ((step < 0) & (first < last)), 0, lengths)
    else:
        f, t, s = (v.astype(np.int64) for v in (first, last, step))
        lengths = np.maximum(-((f - t) // s), 0)
    ends = np.cumsum(lengths)
    column = spread(np.zeros(rows, np.int64), lengths)
    if starts.dtype.kind == "f":
        values = _add_up(first, step, lengths)
    else:
        values = (np.repeat(first, lengths) + column * np.repeat(step, lengths)).astype(starts.dtype)
    return np.concatenate([[0], ends]).astype(Tsplits), values


def _add_up(first: np.ndarray, step: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """TensorFlow adds the delta again and again; a product would round differently."""
    rows = [
        np.cumsum(np.concatenate([[a], np.full(max(n - 1, 0), d)]).astype(first.dtype), dtype=first.dtype)[:n]
        for a, d, n in zip(first, step, lengths.tolist(), strict=True)
    ]
    return np.concatenate([np.zeros(0, first.dtype), *rows])


def ragged_fill_empty_rows(
    lookups: Lookups,
    value_rowids: np.ndarray,
    values: np.ndarray,
    nrows: np.ndarray,
    default_value: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row ids and values with `default_value` in every row that had nothing, which rows those were, and where
    each value went."""
    rows = int(scalar(nrows, "nrows"))
    check(value_rowids.shape == values.shape, f"{value_rowids.size} row ids for {values.size} values")
    check_ids(value_rowids, rows, "row id")
    counts = np.bincount(value_rowids, minlength=rows)
    empty = counts == 0
    sizes = np.maximum(counts, 1)
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(value_rowids, kind="stable")
    reverse = np.empty(values.size, np.int64)
    reverse[order] = spread(starts, counts)
    out = filled((int(sizes.sum()),), scalar(default_value, "default_value"), values.dtype)
    out[reverse] = values
    row_ids = np.repeat(np.arange(rows), sizes)
    # Of a ragged tensor without rows TensorFlow gives the row ids a second dimension.
    return row_ids if rows else row_ids.reshape(0, 1), out, empty, reverse


OPERATORS: dict[str, Operator] = {
    "ragged_tensor_to_tensor": ragged_tensor_to_tensor,
    "ragged_tensor_to_sparse": ragged_tensor_to_sparse,
    "ragged_gather": ragged_gather,
    "ragged_range": ragged_range,
    "ragged_fill_empty_rows": ragged_fill_empty_rows,
}
