"""Operators that read or write at computed places: gather and scatter, partition and stitch, where, unique,
search."""

from collections.abc import Callable
from typing import Any

import numpy as np

from serving.host.operators.registry import (
    Lookups,
    Operator,
    array,
    axis_of,
    check,
    filled,
    refuse,
    scalar,
    zero_of,
)


def check_ids(ids: np.ndarray, size: int, what: str = "index") -> None:
    """Raises `InvalidRequestError` that names the first id outside of [0, size)."""
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= size):
        bad = ids[(ids < 0) | (ids >= size)].ravel()[0]
        refuse(f"{what} {bad} is not in [0, {size})")


def gather(
    lookups: Lookups, params: np.ndarray, indices: np.ndarray, *, validate_indices: bool = True
) -> np.ndarray:
    """The rows at the indices. Indices are always validated on a CPU, as TensorFlow does."""
    check(params.ndim >= 1, "gather from a scalar")
    check_ids(indices, len(params))
    return array(params[indices])


def gather_v2(
    lookups: Lookups, params: np.ndarray, indices: np.ndarray, axis: np.ndarray, *, batch_dims: int = 0
) -> np.ndarray:
    """Slices of `params` along an axis; the first `batch_dims` dimensions of both belong together."""
    along = axis_of(scalar(axis, "axis"), params.ndim)
    if batch_dims < 0:
        batch_dims += indices.ndim
    check(0 <= batch_dims <= min(along, indices.ndim), f"batch_dims {batch_dims} with axis {along}")
    check_ids(indices, params.shape[along])
    if batch_dims == 0:
        return array(np.take(params, indices, along))
    batch = params.shape[:batch_dims]
    check(indices.shape[:batch_dims] == batch, f"batches {list(batch)} and {list(indices.shape)}")
    rows = int(np.prod(batch, dtype=np.int64))
    flat = params.reshape(rows, *params.shape[batch_dims:])
    at = indices.reshape(rows, *indices.shape[batch_dims:])
    # Move the gathered axis next to the batch, gather, and move the indices' dimensions back to where the
    # axis was.
    moved = np.moveaxis(flat, along - batch_dims + 1, 1)
    picked = moved[np.arange(rows).reshape(rows, *[1] * (at.ndim - 1)), at]
    outer = along - batch_dims
    order = [0, *range(at.ndim, at.ndim + outer), *range(1, at.ndim), *range(at.ndim + outer, picked.ndim)]
    shape = params.shape[:along] + indices.shape[batch_dims:] + params.shape[along + 1 :]
    return np.ascontiguousarray(picked.transpose(order)).reshape(shape)


def _check_policy(policy: str) -> None:
    check(policy in ("", "DEFAULT", "ERROR"), f"bad_indices_policy {policy!r} is not supported")


def _places(indices: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """`[..., depth]` coordinates as an index of an array of the shape. Raises `InvalidRequestError` outside
    of it."""
    depth = indices.shape[-1] if indices.ndim else 1
    check(depth <= len(shape), f"coordinates of {depth} dimensions in a tensor of {len(shape)}")
    bad = (indices < 0) | (indices >= np.array(shape[:depth], np.int64))
    if bad.any():
        first = indices.reshape(-1, depth)[bad.reshape(-1, depth).any(1)][0]
        refuse(f"coordinates {first.tolist()} are outside of a tensor of shape {list(shape)}")
    return tuple(np.moveaxis(indices, -1, 0))


def gather_nd(
    lookups: Lookups, params: np.ndarray, indices: np.ndarray, *, bad_indices_policy: str = ""
) -> np.ndarray:
    """The slices at coordinates `[..., depth]`."""
    _check_policy(bad_indices_policy)
    check(indices.ndim >= 1, "coordinates must have at least one dimension")
    if indices.shape[-1] == 0:
        return np.broadcast_to(params, indices.shape[:-1] + params.shape).copy()
    return array(params[_places(indices, params.shape)])


def _scatter(
    tensor: np.ndarray, indices: np.ndarray, updates: np.ndarray, at: Callable[..., Any] | None
) -> np.ndarray:
    """A copy of the tensor with the updates combined into it, one after the other; `None` overwrites."""
    check(indices.ndim >= 1, "coordinates must have at least one dimension")
    slices = tensor.shape[indices.shape[-1] :]
    expected = indices.shape[:-1] + slices
    check(updates.shape == expected, f"updates of shape {list(updates.shape)}, expected {list(expected)}")
    out = tensor.copy()
    depth = indices.shape[-1]
    if depth == 0:  # every update is for the whole tensor
        places: Any = (np.zeros(indices.shape[:-1], np.int64),)
        view = out.reshape(1, *out.shape)
    else:
        places, view = _places(indices, tensor.shape), out
    if at is not None:
        at(view, places, updates)
    else:
        # NumPy promises no order among repeated places: keep the last update of each.
        flat = np.ravel_multi_index(places, view.shape[: len(places)]).ravel()
        rows = updates.reshape(flat.size, *slices)
        last = flat.size - 1 - np.unique(flat[::-1], return_index=True)[1]
        view.reshape(-1, *slices)[flat[last]] = rows[last]
    return out


def scatter_nd(
    lookups: Lookups,
    indices: np.ndarray,
    updates: np.ndarray,
    shape: np.ndarray,
    *,
    bad_indices_policy: str = "",
) -> np.ndarray:
    """Zeros of the shape plus the updates at coordinates `[..., depth]`; repeated ones add up."""
    _check_policy(bad_indices_policy)
    sizes = shape.tolist()
    if updates.dtype.kind == "O":
        return _scatter(filled(sizes, b"", updates.dtype), indices, updates, _add_strings)
    return _scatter(np.zeros(sizes, updates.dtype), indices, updates, np.add.at)


def _add_strings(view: np.ndarray, places: Any, updates: np.ndarray) -> None:
    np.add.at(view, places, updates)


def _tensor_scatter(at: Callable[..., Any] | None) -> Operator:
    def run(
        lookups: Lookups,
        tensor: np.ndarray,
        indices: np.ndarray,
        updates: np.ndarray,
        *,
        bad_indices_policy: str = "",
    ) -> np.ndarray:
        _check_policy(bad_indices_policy)
        return _scatter(tensor, indices, updates, at)

    return run


def dynamic_partition(
    lookups: Lookups, data: np.ndarray, partitions: np.ndarray, *, num_partitions: int
) -> tuple[np.ndarray, ...]:
    """For each partition number, the slices of `data` that carry it, in their order."""
    fits = data.shape[: partitions.ndim] == partitions.shape
    check(fits, f"partitions {list(partitions.shape)} of data {list(data.shape)}")
    check_ids(partitions, num_partitions, "partition")
    flat = data.reshape(partitions.size, *data.shape[partitions.ndim :])
    return tuple(flat[partitions.ravel() == i] for i in range(num_partitions))


def dynamic_stitch(lookups: Lookups, *indices_and_data: np.ndarray) -> np.ndarray:
    """Slices of the data lists put where the index lists say; the last of repeated ones wins, missing rows
    are zero."""
    half = len(indices_and_data) // 2
    indices, data = indices_and_data[:half], indices_and_data[half:]
    slices = data[0].shape[indices[0].ndim :]
    for at, values in zip(indices, data, strict=True):
        fits = values.shape == at.shape + slices
        check(fits, f"data of shape {list(values.shape)}, expected {list(at.shape + slices)}")
    places = np.concatenate([at.ravel() for at in indices])
    check((places >= 0).all(), "a negative index to stitch")
    out = filled((int(places.max(initial=-1)) + 1, *slices), zero_of(data[0].dtype), data[0].dtype)
    for at, values in zip(indices, data, strict=True):
        _overwrite(out, at.ravel(), values.reshape(at.size, *slices))
    return out


def _overwrite(out: np.ndarray, at: np.ndarray, rows: np.ndarray) -> None:
    last = at.size - 1 - np.unique(at[::-1], return_index=True)[1]
    out[at[last]] = rows[last]


def where(lookups: Lookups, condition: np.ndarray) -> np.ndarray:
    """`[found, rank]` int64 coordinates of what is not zero, row-major."""
    return np.argwhere(condition).astype(np.int64).reshape(-1, condition.ndim)


def _first_seen(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions where each distinct value occurs first (in order), each value's number, and the counts."""
    equal_nan = {} if values.dtype.kind == "O" or values.ndim > 1 else {"equal_nan": False}
    if values.dtype.kind == "O" and values.ndim == 1:
        seen: dict[bytes, int] = {}
        number = np.fromiter((seen.setdefault(v, len(seen)) for v in values.tolist()), np.int64, values.size)
        first = np.full(len(seen), values.size, np.int64)
        np.minimum.at(first, number, np.arange(values.size))
        return first, number, np.bincount(number, minlength=len(seen))
    _, first, inverse, counts = np.unique(
        values,
        return_index=True,
        return_inverse=True,
        return_counts=True,
        axis=0 if values.ndim > 1 else None,
        **equal_nan,
    )
    order = np.argsort(first, kind="stable")
    renumber = np.empty(len(order), np.int64)
    renumber[order] = np.arange(len(order))
    return first[order], renumber[inverse.ravel()], counts[order]


def unique(lookups: Lookups, x: np.ndarray, *, out_idx: str = "int32") -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in the order they first occur, and each value's place among them."""
    check(x.ndim == 1, f"unique of a tensor of rank {x.ndim}")
    first, number, _ = _first_seen(x)
    return x[first], number.astype(out_idx)


def unique_with_counts(
    lookups: Lookups, x: np.ndarray, *, out_idx: str = "int32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `unique`, and how often each value occurs."""
    check(x.ndim == 1, f"unique of a tensor of rank {x.ndim}")
    first, number, counts = _first_seen(x)
    return x[first], number.astype(out_idx), counts.astype(out_idx)


def unique_v2(
    lookups: Lookups, x: np.ndarray, axis: np.ndarray, *, out_idx: str = "int32"
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct slices along an axis in the order they first occur, and each slice's place among them."""
    return unique_with_counts_v2(lookups, x, axis, out_idx=out_idx)[:2]


def unique_with_counts_v2(
    lookups: Lookups, x: np.ndarray, axis: np.ndarray, *, out_idx: str = "int32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `unique_v2`, and how often each slice occurs."""
    check(axis.size <= 1, f"unique along several axes {axis.tolist()}")
    check(axis.size or x.ndim == 1, f"unique of a tensor of rank {x.ndim} needs an axis")
    along = axis_of(int(axis.ravel()[0]), x.ndim) if axis.size else 0
    rows = np.moveaxis(x, along, 0)
    if x.ndim == 1:
        first, number, counts = _first_seen(x)
    else:
        flat = rows.reshape(len(rows), -1)
        names = filled((len(flat),), b"", np.dtype(object))
        if x.dtype.kind == "O":
            names[:] = [tuple(row) for row in flat.tolist()]
        else:  # -0.0 and 0.0 are equal
            names[:] = [row.tobytes() for row in (flat + flat.dtype.type(0) if x.dtype.kind == "f" else flat)]
        first, number, counts = _first_seen(names)
    found = np.ascontiguousarray(np.moveaxis(rows[first], 0, along))
    return found, number.astype(out_idx), counts.astype(out_idx)


def one_hot(
    lookups: Lookups,
    indices: np.ndarray,
    depth: np.ndarray,
    on_value: np.ndarray,
    off_value: np.ndarray,
    *,
    axis: int = -1,
) -> np.ndarray:
    """A new axis of size `depth` with `on_value` at the index; an index outside of it has only
    `off_value`."""
    size = scalar(depth, "depth")
    check(size >= 0, f"a one-hot of depth {size}")
    hot = np.asarray(indices)[..., None] == np.arange(size)
    out = filled(hot.shape, scalar(off_value, "off_value"), on_value.dtype)
    out[hot] = scalar(on_value, "on_value")
    return np.ascontiguousarray(np.moveaxis(out, -1, axis_of(axis, out.ndim)))


def invert_permutation(lookups: Lookups, x: np.ndarray) -> np.ndarray:
    """y with y[x[i]] = i."""
    check(x.ndim == 1, f"a permutation is a vector, found shape {list(x.shape)}")
    check_ids(x, x.size)
    check(len(np.unique(x)) == x.size, "a permutation names one place twice")
    out = np.empty_like(x)
    out[x] = np.arange(x.size, dtype=x.dtype)
    return out


def _bound(side: Any) -> Callable[[np.ndarray, np.ndarray, str], np.ndarray]:
    def find(rows: np.ndarray, values: np.ndarray, out_type: str) -> np.ndarray:
        fits = rows.ndim == values.ndim == 2 and len(rows) == len(values)
        check(fits, f"search of {list(values.shape)} in {list(rows.shape)}")
        found = [np.searchsorted(row, wanted, side) for row, wanted in zip(rows, values, strict=True)]
        return np.array(found, out_type).reshape(values.shape)

    return find


_lower, _upper = _bound("left"), _bound("right")


def lower_bound(
    lookups: Lookups, sorted_inputs: np.ndarray, values: np.ndarray, *, out_type: str = "int32"
) -> np.ndarray:
    """Where each value would go in its sorted row, before equal ones."""
    return _lower(sorted_inputs, values, out_type)


def upper_bound(
    lookups: Lookups, sorted_inputs: np.ndarray, values: np.ndarray, *, out_type: str = "int32"
) -> np.ndarray:
    """Where each value would go in its sorted row, after equal ones."""
    return _upper(sorted_inputs, values, out_type)


OPERATORS: dict[str, Operator] = {
    "gather": gather,
    "gather_v2": gather_v2,
    "gather_nd": gather_nd,
    "scatter_nd": scatter_nd,
    "tensor_scatter_update": _tensor_scatter(None),
    "tensor_scatter_add": _tensor_scatter(np.add.at),
    "tensor_scatter_sub": _tensor_scatter(np.subtract.at),
    "tensor_scatter_max": _tensor_scatter(np.maximum.at),
    "tensor_scatter_min": _tensor_scatter(np.minimum.at),
    "dynamic_partition": dynamic_partition,
    "dynamic_stitch": dynamic_stitch,
    "parallel_dynamic_stitch": dynamic_stitch,
    "where": where,
    "unique": unique,
    "unique_v2": unique_v2,
    "unique_with_counts": unique_with_counts,
    "unique_with_counts_v2": unique_with_counts_v2,
    "one_hot": one_hot,
    "invert_permutation": invert_permutation,
    "lower_bound": lower_bound,
    "upper_bound": upper_bound,
}
