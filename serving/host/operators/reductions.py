"""Reductions over axes, running sums, positions of extremes, and histograms."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.host.operators.registry import Lookups, Operator, array, axis_of, check, scalar


def _reduction(function: Callable[[np.ndarray, tuple[int, ...], bool], Any]) -> Operator:
    """`function(values, axes, keep_dims)` as an operator."""

    def run(lookups: Lookups, values: np.ndarray, axes: np.ndarray, *, keep_dims: bool = False) -> np.ndarray:
        found = [axis_of(int(a), values.ndim) for a in axes.ravel()]
        check(len(set(found)) == len(found), f"reduction axes {axes.tolist()} name one twice")
        with np.errstate(all="ignore"):
            return array(function(values, tuple(found), keep_dims), values.dtype)

    return run


def _sum(values: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return values.sum(axis=axes, keepdims=keep, dtype=values.dtype)


def _prod(values: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return values.prod(axis=axes, keepdims=keep, dtype=values.dtype)


def _mean(values: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    """The mean of nothing is NaN; of integers it is cut towards zero, and their sum wraps."""
    count = int(np.prod([values.shape[a] for a in axes], dtype=np.int64))
    total = np.asarray(_sum(values, axes, keep))
    if values.dtype.kind == "f":
        return total / values.dtype.type(count)
    quotient = total.astype(object) // max(count, 1)
    return (quotient + ((quotient < 0) & (quotient * count != total))).astype(values.dtype)


def lowest(dtype: np.dtype) -> Any:
    """What the maximum of nothing is."""
    return dtype.type(-np.inf) if dtype.kind == "f" else np.iinfo(dtype).min


def highest(dtype: np.dtype) -> Any:
    """What the minimum of nothing is."""
    return dtype.type(np.inf) if dtype.kind == "f" else np.iinfo(dtype).max


def _max(values: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return values.max(axis=axes, keepdims=keep, initial=lowest(values.dtype))


def _min(values: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return values.min(axis=axes, keepdims=keep, initial=highest(values.dtype))


def _arg(best: Callable[..., Any], worst: Callable[[np.dtype], Any]) -> Callable[..., np.ndarray]:
    def find(values: np.ndarray, dimension: np.ndarray, output_type: str) -> np.ndarray:
        axis = axis_of(scalar(dimension, "dimension"), values.ndim, "dimension")
        check(values.shape[axis] > 0, "the position of an extreme of no values")
        if values.dtype.kind == "f":  # TensorFlow passes over NaN
            values = np.where(np.isnan(values), worst(values.dtype), values)
        return array(best(values, axis=axis), output_type)

    return find


_arg_max, _arg_min = _arg(np.argmax, lowest), _arg(np.argmin, highest)


def arg_max(
    lookups: Lookups, values: np.ndarray, dimension: np.ndarray, *, output_type: str = "int64"
) -> np.ndarray:
    """Position of the first maximum along a dimension."""
    return _arg_max(values, dimension, output_type)


def arg_min(
    lookups: Lookups, values: np.ndarray, dimension: np.ndarray, *, output_type: str = "int64"
) -> np.ndarray:
    """Position of the first minimum along a dimension."""
    return _arg_min(values, dimension, output_type)


def _running(function: Callable[..., Any], identity: int) -> Operator:
    def run(
        lookups: Lookups, x: np.ndarray, axis: np.ndarray, *, exclusive: bool = False, reverse: bool = False
    ) -> np.ndarray:
        along = axis_of(scalar(axis, "axis"), x.ndim)
        values = np.flip(x, along) if reverse else x
        with np.errstate(all="ignore"):
            out = function(values, axis=along, dtype=x.dtype)
        if exclusive and x.size:
            out = np.roll(out, 1, along)
            out[(slice(None),) * along + (0,)] = identity
        return np.ascontiguousarray(np.flip(out, along) if reverse else out)

    return run


def top_k_v2(
    lookups: Lookups, values: np.ndarray, k: np.ndarray, *, sorted: bool = True, index_type: str = "int32"
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest values of the last dimension, largest first, and where they are; of equal values the
    first one comes first. `sorted=False` lets TensorFlow choose the order: ours is the sorted one."""
    count = scalar(k, "k")
    check(values.ndim >= 1 and 0 <= count <= values.shape[-1], f"the top {count} of {list(values.shape)}")
    # The order of a stable ascending sort of the reversed row, read backwards: equal values stay in their
    # order.
    backwards = np.argsort(values[..., ::-1], axis=-1, kind="stable")[..., ::-1][..., :count]
    at = values.shape[-1] - 1 - backwards
    return np.take_along_axis(values, at, -1), at.astype(index_type)


def in_top_k_v2(lookups: Lookups, predictions: np.ndarray, targets: np.ndarray, k: np.ndarray) -> np.ndarray:
    """bool: fewer than k predictions of the row are larger than the target's, which must be finite."""
    count, classes = scalar(k, "k"), predictions.shape[1]
    known = (targets >= 0) & (targets < classes)
    score = predictions[np.arange(len(targets)), np.where(known, targets, 0)]
    return known & np.isfinite(score) & ((predictions > score[:, None]).sum(1) < count)


def _counts(
    rows: np.ndarray, values: np.ndarray, n_rows: int, size: int, weights: np.ndarray, binary: bool
) -> np.ndarray:
    """`[n_rows, size]` counts (or sums of weights, or 1 if any) of each value below `size` in each row."""
    check((values >= 0).all(), "a histogram of negative values")
    inside = values < size
    at = rows[inside] * size + values[inside]
    out = np.zeros(n_rows * size, weights.dtype)
    if binary:
        out[at] = 1
    else:
        np.add.at(out, at, weights.ravel()[inside] if weights.size else weights.dtype.type(1))
    return out.reshape(n_rows, size)


def _bins(size: np.ndarray) -> int:
    bins = int(scalar(size, "size"))
    check(bins >= 0, f"a histogram of {bins} values")
    return bins


def bincount(lookups: Lookups, arr: np.ndarray, size: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[size]` counts (or sums of weights) of the values; those from `size` on are not counted."""
    check(weights.size in (0, arr.size), f"{weights.size} weights for {arr.size} values")
    return dense_bincount(lookups, arr.ravel(), size, weights.ravel())


def dense_bincount(
    lookups: Lookups,
    values: np.ndarray,
    size: np.ndarray,
    weights: np.ndarray,
    *,
    binary_output: bool = False,
) -> np.ndarray:
    """Counts of the values of a vector, `[size]`, or of each row of a matrix, `[rows, size]`."""
    check(values.ndim <= 2, f"a histogram of a tensor of rank {values.ndim}")
    check(weights.size == 0 or weights.shape == values.shape, "weights of another shape than the values")
    n_rows = len(values) if values.ndim == 2 else 1
    rows = np.repeat(np.arange(n_rows), values.shape[1] if values.ndim == 2 else values.size)
    out = _counts(rows, values.ravel().astype(np.int64), n_rows, _bins(size), weights, binary_output)
    return out if values.ndim == 2 else out[0]


def sparse_bincount(
    lookups: Lookups,
    indices: np.ndarray,
    values: np.ndarray,
    dense_shape: np.ndarray,
    size: np.ndarray,
    weights: np.ndarray,
    *,
    binary_output: bool = False,
) -> np.ndarray:
    """Counts of the values of a sparse vector, `[size]`, or of each row of a sparse matrix, `[rows,
    size]`."""
    check(weights.size in (0, values.size), f"{weights.size} weights for {values.size} values")
    if len(dense_shape) == 1:
        return dense_bincount(lookups, values, size, weights, binary_output=binary_output)
    n_rows = int(dense_shape[0])
    check(((indices[:, 0] >= 0) & (indices[:, 0] < n_rows)).all(), f"a row outside of [0, {n_rows})")
    return _counts(indices[:, 0], values.astype(np.int64), n_rows, _bins(size), weights, binary_output)


def ragged_bincount(
    lookups: Lookups,
    splits: np.ndarray,
    values: np.ndarray,
    size: np.ndarray,
    weights: np.ndarray,
    *,
    binary_output: bool = False,
) -> np.ndarray:
    """`[rows, size]` counts of the values of each ragged row."""
    check(weights.size in (0, values.size), f"{weights.size} weights for {values.size} values")
    check(splits.size > 0 and splits[0] == 0 and splits[-1] == values.size, "splits do not cover the values")
    lengths = np.diff(splits)
    check((lengths >= 0).all(), "splits that decrease")
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return _counts(rows, values.astype(np.int64), len(lengths), _bins(size), weights, binary_output)


def bucketize(lookups: Lookups, values: np.ndarray, *, boundaries: Sequence[float]) -> np.ndarray:
    """int32: how many boundaries are at or below each value. NaN is above all."""
    limits = np.array(boundaries, np.float32)
    # TensorFlow compares with float32 boundaries: C++ widens a double, and rounds integers to float32.
    compared = values if values.dtype.kind == "f" else values.astype(np.float32)
    return array(np.searchsorted(limits, compared, side="right"), np.int32)


OPERATORS: dict[str, Operator] = {
    "sum": _reduction(_sum),
    "mean": _reduction(_mean),
    "prod": _reduction(_prod),
    "max": _reduction(_max),
    "min": _reduction(_min),
    "all": _reduction(lambda v, axes, keep: np.all(v, axis=axes, keepdims=keep)),
    "any": _reduction(lambda v, axes, keep: np.any(v, axis=axes, keepdims=keep)),
    "arg_max": arg_max,
    "arg_min": arg_min,
    "cumsum": _running(np.cumsum, 0),
    "cumprod": _running(np.cumprod, 1),
    "top_k_v2": top_k_v2,
    "in_top_k_v2": in_top_k_v2,
    "bincount": bincount,
    "dense_bincount": dense_bincount,
    "sparse_bincount": sparse_bincount,
    "ragged_bincount": ragged_bincount,
    "bucketize": bucketize,
}
