"""Sparse tensors as TensorFlow holds them: `indices [nnz, rank]` int64, `values [nnz]`, `dense_shape [rank]`
int64."""

from collections.abc import Callable

import numpy as np

from serving.host.operators.registry import Lookups, Operator, axis_of, check, filled, refuse, scalar

Sparse = tuple[np.ndarray, np.ndarray, np.ndarray]


def _check_sparse(indices: np.ndarray, values: np.ndarray, shape: np.ndarray) -> None:
    check(
        indices.ndim == 2 and values.ndim == 1 and shape.ndim == 1, "not the three parts of a sparse tensor"
    )
    fits = indices.shape == (values.size, shape.size)
    check(fits, f"indices {list(indices.shape)}, {values.size} values, shape {shape.tolist()} do not fit")


def _check_inside(indices: np.ndarray, shape: np.ndarray) -> None:
    bad = ((indices < 0) | (indices >= shape)).any(1) if indices.size else np.zeros(0, bool)
    if bad.any():
        refuse(f"sparse index {indices[bad][0].tolist()} is outside of the shape {shape.tolist()}")


def _flat(indices: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Row-major position of each index."""
    strides = np.concatenate([np.cumprod(shape[:0:-1], dtype=np.int64)[::-1], [1]]).astype(np.int64)
    return indices @ strides[: len(shape)] if len(shape) else np.zeros(len(indices), np.int64)


def _unflat(flat: np.ndarray, shape: np.ndarray) -> np.ndarray:
    out = np.empty((flat.size, len(shape)), np.int64)
    for i in range(len(shape) - 1, -1, -1):
        flat, out[:, i] = np.divmod(flat, max(int(shape[i]), 1))
    return out


def sparse_fill_empty_rows(
    lookups: Lookups,
    indices: np.ndarray,
    values: np.ndarray,
    dense_shape: np.ndarray,
    default_value: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix with `default_value` at column 0 of every row that had nothing: its indices and values
    sorted by row, which rows were empty, and where each value went."""
    _check_sparse(indices, values, dense_shape)
    check(default_value.ndim == 0, "default_value must be a scalar")
    check(dense_shape.size > 0, "a sparse scalar has no rows")
    rows, row_of = int(dense_shape[0]), indices[:, 0]
    if rows == 0:
        check(values.size == 0, f"{values.size} values in a sparse tensor of 0 rows")
    bad = (row_of < 0) | (row_of >= rows)
    check(not bad.any(), f"a row of a sparse tensor is outside of [0, {rows})")
    counts = np.bincount(row_of, minlength=rows)
    empty = counts == 0
    starts = np.cumsum(np.maximum(counts, 1)) - np.maximum(counts, 1)
    order = np.argsort(row_of, kind="stable")
    within = np.arange(values.size) - np.repeat(np.cumsum(counts) - counts, counts)
    reverse = np.empty(values.size, np.int64)
    reverse[order] = starts[row_of[order]] + within
    total = values.size + int(empty.sum())
    out_indices = np.zeros((total, indices.shape[1]), np.int64)
    out_indices[starts[empty], 0] = np.flatnonzero(empty)
    out_values = filled((total,), scalar(default_value, "default_value"), values.dtype)
    out_indices[reverse], out_values[reverse] = indices, values
    return out_indices, out_values, empty, reverse


def sparse_reshape(
    lookups: Lookups, input_indices: np.ndarray, input_shape: np.ndarray, new_shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The indices in another shape, one size of which may be -1, and that shape."""
    sizes, whole = new_shape.tolist(), int(np.prod(input_shape, dtype=np.int64))
    check(sizes.count(-1) <= 1 and min(sizes, default=0) >= -1, f"{sizes} is not a shape")
    if -1 in sizes:
        known = int(np.prod([s for s in sizes if s != -1], dtype=np.int64))
        check(known > 0 and whole % known == 0, f"reshape of {input_shape.tolist()} to {sizes}")
        sizes[sizes.index(-1)] = whole // known
    target = np.array(sizes, np.int64)
    check(int(np.prod(target)) == whole, f"reshape of {input_shape.tolist()} to {sizes}")
    check(input_indices.shape[1:] == input_shape.shape, "indices and shape of different ranks")
    return _unflat(_flat(input_indices, input_shape), target), target


def sparse_to_dense(
    lookups: Lookups,
    sparse_indices: np.ndarray,
    output_shape: np.ndarray,
    sparse_values: np.ndarray,
    default_value: np.ndarray,
    *,
    validate_indices: bool = True,
) -> np.ndarray:
    """A dense tensor of `default_value` with the values at their indices; unvalidated indices may repeat and
    the last wins."""
    shape = output_shape.astype(np.int64)
    indices = sparse_indices.astype(np.int64)
    indices = indices if indices.ndim == 2 else indices.reshape(-1, 1)
    count = len(indices)
    check(indices.shape[1] == len(shape), f"indices of rank {indices.shape[1]} for shape {shape.tolist()}")
    check(sparse_values.ndim == 0 or sparse_values.shape == (count,), "values do not fit the indices")
    _check_inside(indices, shape)
    flat = _flat(indices, shape)
    if validate_indices and count > 1:
        step = np.diff(flat)
        check((step != 0).all(), "a sparse index is repeated")
        check((step > 0).all(), "sparse indices are out of order")
    out = filled((int(np.prod(shape)),), scalar(default_value, "default_value"), sparse_values.dtype)
    last = count - 1 - np.unique(flat[::-1], return_index=True)[1]
    out[flat[last]] = np.broadcast_to(sparse_values, (count,))[last]
    return out.reshape(shape)


def sparse_concat(lookups: Lookups, *parts: np.ndarray, concat_dim: int) -> Sparse:
    """Sparse tensors joined along a dimension; the inputs are all indices, then all values, then all
    shapes."""
    n = len(parts) // 3
    indices, values, shapes = parts[:n], parts[n : 2 * n], parts[2 * n :]
    rank = len(shapes[0])
    axis = axis_of(concat_dim, rank, "concat_dim")
    for i in range(n):
        _check_sparse(indices[i], values[i], shapes[i])
        same = len(shapes[i]) == rank and (np.delete(shapes[i], axis) == np.delete(shapes[0], axis)).all()
        check(same, f"sparse shapes {shapes[0].tolist()} and {shapes[i].tolist()} do not join")
    sizes = [int(s[axis]) for s in shapes]
    offsets = np.cumsum([0, *sizes])
    shifted = []
    for part, offset in zip(indices, offsets[:-1], strict=True):
        moved = part.copy()
        moved[:, axis] += offset
        shifted.append(moved)
    shape = shapes[0].copy()
    shape[axis] = offsets[-1]
    joined = np.concatenate(shifted)
    order = np.argsort(_flat(joined, shape), kind="stable")
    return joined[order], np.concatenate(values)[order], shape


def _cut(
    indices: np.ndarray, values: np.ndarray, start: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, ...]:
    inside = ((indices >= start) & (indices < start + size)).all(1)
    return indices[inside] - start, values[inside]


def sparse_slice(
    lookups: Lookups,
    indices: np.ndarray,
    values: np.ndarray,
    shape: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
) -> Sparse:
    """The box of `size` from `start` on, cut at the tensor's own border."""
    _check_sparse(indices, values, shape)
    check(start.shape == size.shape == shape.shape, f"a slice of a sparse tensor of rank {shape.size}")
    check((start >= 0).all() and (size >= 0).all(), "a slice with a negative start or size")
    found = _cut(indices, values, start, size)
    return found[0], found[1], np.maximum(np.minimum(size, shape - start), 0)


def sparse_split(
    lookups: Lookups,
    split_dim: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    shape: np.ndarray,
    *,
    num_split: int,
) -> tuple[np.ndarray, ...]:
    """`num_split` parts along a dimension, the first ones larger by one where it does not divide: all
    indices, then all values, then all shapes."""
    _check_sparse(indices, values, shape)
    axis = axis_of(scalar(split_dim, "split_dim"), len(shape), "split_dim")
    whole = int(shape[axis])
    check(1 <= num_split <= whole, f"a dimension of size {whole} in {num_split} parts")
    small, larger = divmod(whole, num_split)
    outputs: tuple[list[np.ndarray], ...] = ([], [], [])
    at = 0
    for i in range(num_split):
        start, size = np.zeros_like(shape), shape.copy()
        start[axis], size[axis] = at, small + (i < larger)
        at += int(size[axis])
        for out, part in zip(outputs, (*_cut(indices, values, start, size), size), strict=True):
            out.append(part)
    return tuple(part for out in outputs for part in out)


def sparse_reorder(
    lookups: Lookups, input_indices: np.ndarray, input_values: np.ndarray, input_shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values in row-major order."""
    _check_sparse(input_indices, input_values, input_shape)
    order = np.lexsort(input_indices.T[::-1]) if input_indices.shape[1] else np.arange(input_values.size)
    return input_indices[order], input_values[order]


def sparse_tensor_dense_mat_mul(
    lookups: Lookups,
    a_indices: np.ndarray,
    a_values: np.ndarray,
    a_shape: np.ndarray,
    b: np.ndarray,
    *,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
) -> np.ndarray:
    """The product of a sparse and a dense matrix."""
    _check_sparse(a_indices, a_values, a_shape)
    check(a_shape.size == 2 and b.ndim == 2, "a product of tensors that are not matrices")
    rows, inner = (a_shape[1], a_shape[0]) if adjoint_a else (a_shape[0], a_shape[1])
    at, of = (a_indices[:, 1], a_indices[:, 0]) if adjoint_a else (a_indices[:, 0], a_indices[:, 1])
    dense = b.T if adjoint_b else b
    check(len(dense) == inner, f"a product of inner dimensions {int(inner)} and {len(dense)}")
    _check_inside(a_indices, a_shape)
    out = np.zeros((int(rows), dense.shape[1]), b.dtype)
    np.add.at(out, at, a_values[:, None] * dense[of])
    return out


def _sparse_reduction(ufunc: np.ufunc) -> Operator:
    def run(
        lookups: Lookups,
        input_indices: np.ndarray,
        input_values: np.ndarray,
        input_shape: np.ndarray,
        reduction_axes: np.ndarray,
        *,
        keep_dims: bool = False,
    ) -> np.ndarray:
        """Dense result; where nothing was, 0."""
        _check_sparse(input_indices, input_values, input_shape)
        rank = len(input_shape)
        axes = {axis_of(int(a), rank) for a in reduction_axes.ravel()}
        check(len(axes) == reduction_axes.size, f"axes {reduction_axes.tolist()} name one twice")
        _check_inside(input_indices, input_shape)
        kept = [i for i in range(rank) if i not in axes]
        place = _flat(input_indices[:, kept], input_shape[kept])
        out = np.zeros(int(np.prod(input_shape[kept], dtype=np.int64)), input_values.dtype)
        order = np.argsort(place, kind="stable")
        if order.size:
            starts = np.flatnonzero(np.diff(place[order], prepend=-1))
            out[place[order][starts]] = ufunc.reduceat(input_values[order], starts, dtype=out.dtype)
        sizes = input_shape.tolist()
        return out.reshape(
            [1 if i in axes else sizes[i] for i in range(rank)] if keep_dims else [sizes[i] for i in kept]
        )

    return run


def sparse_add(
    lookups: Lookups,
    a_indices: np.ndarray,
    a_values: np.ndarray,
    a_shape: np.ndarray,
    b_indices: np.ndarray,
    b_values: np.ndarray,
    b_shape: np.ndarray,
    thresh: np.ndarray,
) -> Sparse:
    """The sum of two sparse tensors with sorted indices; a sum of two values of
    magnitude below `thresh` is dropped."""
    _check_sparse(a_indices, a_values, a_shape)
    _check_sparse(b_indices, b_values, b_shape)
    check(a_shape.tolist() == b_shape.tolist(), f"shapes {a_shape.tolist()} and {b_shape.tolist()} to add")
    _check_inside(a_indices, a_shape)
    _check_inside(b_indices, b_shape)
    both = np.concatenate([a_indices, b_indices])
    values = np.concatenate([a_values, b_values])
    place = _flat(both, a_shape)
    order = np.argsort(place, kind="stable")
    if not order.size:
        return both, values, a_shape
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    total = np.add.reduceat(values[order], starts, dtype=values.dtype)
    alone = np.diff(np.append(starts, order.size)) == 1
    kept = alone | ~(np.abs(total) < scalar(thresh, "thresh"))
    return both[order][starts][kept], total[kept], a_shape


def _dense_cwise(function: Callable[..., np.ndarray]) -> Operator:
    def run(
        lookups: Lookups,
        sp_indices: np.ndarray,
        sp_values: np.ndarray,
        sp_shape: np.ndarray,
        dense: np.ndarray,
    ) -> np.ndarray:
        """New values; the dense tensor broadcasts to the sparse one."""
        _check_sparse(sp_indices, sp_values, sp_shape)
        _check_inside(sp_indices, sp_shape)
        try:
            other = np.broadcast_to(dense, sp_shape.tolist())
        except ValueError:
            refuse(f"a dense tensor {list(dense.shape)} does not broadcast to {sp_shape.tolist()}")
        with np.errstate(all="ignore"):
            picked = other[tuple(sp_indices.T)]
            if function is np.divide:
                check((picked != 0).all(), "division of a sparse tensor by zero")
            if function is np.divide and dense.dtype.kind in "iu":
                quotient = sp_values // picked
                return quotient + ((quotient < 0) & (quotient * picked != sp_values)).astype(dense.dtype)
            return function(sp_values, picked).astype(sp_values.dtype)

    return run


OPERATORS: dict[str, Operator] = {
    "sparse_fill_empty_rows": sparse_fill_empty_rows,
    "sparse_reshape": sparse_reshape,
    "sparse_to_dense": sparse_to_dense,
    "sparse_concat": sparse_concat,
    "sparse_slice": sparse_slice,
    "sparse_split": sparse_split,
    "sparse_reorder": sparse_reorder,
    "sparse_tensor_dense_mat_mul": sparse_tensor_dense_mat_mul,
    "sparse_reduce_sum": _sparse_reduction(np.add),
    "sparse_reduce_max": _sparse_reduction(np.maximum),
    "sparse_add": sparse_add,
    "sparse_dense_cwise_mul": _dense_cwise(np.multiply),
    "sparse_dense_cwise_add": _dense_cwise(np.add),
    "sparse_dense_cwise_div": _dense_cwise(np.divide),
}
