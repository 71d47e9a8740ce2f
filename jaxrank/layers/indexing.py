"""Reading and writing at indices. A negative index counts from the end of its axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def gather_nd(x: jax.Array, indices: jax.Array, *, batch_dims: int = 0) -> jax.Array:
    """`x` at index vectors `indices [..., k]`, each for the k axes after the batch axes, which both share."""
    if batch_dims:
        rows = max(x.shape[0], indices.shape[0])  # one request row may stand beside many candidates
        x, indices = (jnp.broadcast_to(v, (rows, *v.shape[1:])) for v in (x, indices))
        return jax.vmap(lambda a, i: gather_nd(a, i, batch_dims=batch_dims - 1))(x, indices)
    return x[tuple(jnp.moveaxis(indices, -1, 0))]


def gather_elements(x: jax.Array, indices: jax.Array, *, axis: int) -> jax.Array:
    """`out[i][j] = x[indices[i][j]][j]` for axis 0; the other axes of `indices` may be shorter than those of
    `x`."""
    return x[_along(indices, axis)]


def scatter_nd(x: jax.Array, indices: jax.Array, updates: jax.Array, *, reduction: str = "none") -> jax.Array:
    """A copy of `x` with `updates` written, or combined, at index vectors `indices [..., k]`."""
    return _write(x, tuple(jnp.moveaxis(indices, -1, 0)), updates, reduction)


def scatter_elements(
    x: jax.Array, indices: jax.Array, updates: jax.Array, *, axis: int, reduction: str = "none"
) -> jax.Array:
    """A copy of `x` with `out[indices[i][j]][j] = updates[i][j]` for axis 0, or combined with what is
    there."""
    return _write(x, _along(indices, axis), updates, reduction)


def tensor_scatter(
    cache: jax.Array, update: jax.Array, starts: jax.Array | None = None, *, axis: int, circular: bool = False
) -> jax.Array:
    """`cache [B, ...]` with each row's `update` written along `axis` from `starts [B]` on (0 without it);
    `circular` goes on at the front."""
    steps = jnp.arange(update.shape[axis])
    index = steps[None] + (jnp.zeros((cache.shape[0], 1), steps.dtype) if starts is None else starts[:, None])
    index = index % cache.shape[axis] if circular else index
    shape = [1] * cache.ndim
    shape[0], shape[axis] = index.shape
    along = jnp.broadcast_to(jnp.reshape(index, shape), update.shape)
    return _write(cache, _along(along, axis), update, "none")


def one_hot(indices: jax.Array, depth: int, values: jax.Array, *, axis: int = -1) -> jax.Array:
    """`values[1]` at each index, `values[0]` elsewhere; only off values where an index is not in
    `[-depth, depth)`."""
    index = jnp.where((indices < 0) & (indices >= -depth), indices + depth, indices)
    classes = jnp.arange(depth, dtype=index.dtype)
    where = axis if axis >= 0 else indices.ndim + 1 + axis
    classes = jnp.reshape(classes, [depth if i == where else 1 for i in range(indices.ndim + 1)])
    return jnp.where(jnp.expand_dims(index, where) == classes, values[1], values[0])


def top_k(x: jax.Array, k: int, *, axis: int, largest: bool = True) -> tuple[jax.Array, jax.Array]:
    """The k largest (or smallest) values along an axis in order, and where they are; of equal values the one
    with the lower index comes first."""
    order = jnp.argsort(x, axis=axis, stable=True, descending=largest)
    index = jax.lax.slice_in_dim(order, 0, k, axis=axis)
    return jnp.take_along_axis(x, index, axis=axis), index.astype(jax.dtypes.canonicalize_dtype(np.int64))


def cumsum(x: jax.Array, *, axis: int, exclusive: bool = False, reverse: bool = False) -> jax.Array:
    """Running sums; `exclusive` leaves out the value itself, `reverse` starts at the end."""
    return _running(jnp.cumsum, 0, x, axis, exclusive, reverse)


def cumprod(x: jax.Array, *, axis: int, exclusive: bool = False, reverse: bool = False) -> jax.Array:
    """Running products, as `cumsum`."""
    return _running(jnp.cumprod, 1, x, axis, exclusive, reverse)


def unique(
    x: jax.Array, size: int, *, axis: int | None = None, in_order: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The `size` unique values (slices along `axis`), where each occurs first, which one each value of `x`
    is, and how often each occurs. Sorted, or `in_order` of their first occurrence."""
    values, first, inverse, counts = jnp.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis, size=size
    )
    inverse = jnp.reshape(inverse, -1)
    if in_order:
        order = jnp.argsort(first)
        values = jnp.take(values, order, axis=axis or 0)
        first, counts, inverse = first[order], counts[order], jnp.argsort(order)[inverse]
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    return values, first.astype(dtype), inverse.astype(dtype), counts.astype(dtype)


def non_max_suppression(
    boxes: jax.Array,
    scores: jax.Array,
    size: int,
    *,
    limit: int,
    iou_threshold: float = 0.0,
    score_threshold: float | None = None,
    center_point_box: bool = False,
) -> jax.Array:
    """The first `size` selected boxes as `[size, 3]` of batch, class, box.

    `boxes [B, N, 4]` as `y1, x1, y2, x2` of any two opposite corners, or centre and size; `scores [B, C, N]`.
    For each batch and class: the best box, then the best that overlaps none before by more than
    `iou_threshold`, up to `limit`.
    """
    n = boxes.shape[1]
    if center_point_box:
        low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    else:
        low, high = jnp.minimum(boxes[..., :2], boxes[..., 2:]), jnp.maximum(boxes[..., :2], boxes[..., 2:])
    area = jnp.prod(high - low, axis=-1)
    corner = jnp.minimum(high[:, :, None], high[:, None]) - jnp.maximum(low[:, :, None], low[:, None])
    shared = jnp.prod(jnp.maximum(corner, 0), axis=-1)
    overlap = shared / (area[:, :, None] + area[:, None] - shared) > iou_threshold  # [B, N, N]

    def select(scores: jax.Array, overlap: jax.Array) -> jax.Array:
        """`[limit]` boxes of one class in the order they are chosen, n where there is none."""
        open_ = jnp.ones(n, bool) if score_threshold is None else scores > score_threshold
        chosen = []
        for _ in range(min(limit, n)):
            best = jnp.argmax(jnp.where(open_, scores, -jnp.inf))
            there = jnp.any(open_)
            chosen.append(jnp.where(there, best, n))
            open_ = open_ & ~overlap[best] & (jnp.arange(n) != best) & there
        return jnp.stack(chosen) if chosen else jnp.zeros(0, int)

    picked = jax.vmap(lambda s, o: jax.vmap(lambda one: select(one, o))(s))(scores, overlap)  # [B, C, limit]
    where = jnp.nonzero(picked < n, size=size)
    return jnp.stack([where[0], where[1], picked[where]], axis=1).astype(
        jax.dtypes.canonicalize_dtype(np.int64)
    )


def _along(indices: jax.Array, axis: int) -> tuple[Any, ...]:
    """An index for every axis: `indices` for one, positions for the others."""
    grid = [
        jnp.reshape(jnp.arange(d), [d if i == j else 1 for j in range(indices.ndim)])
        for i, d in enumerate(indices.shape)
    ]
    return tuple(indices if i == axis else positions for i, positions in enumerate(grid))


def _write(x: jax.Array, index: Sequence[Any], updates: jax.Array, reduction: str) -> jax.Array:
    at = x.at[tuple(index)]
    if reduction == "none":
        return at.set(updates)
    if reduction not in ("add", "mul", "max", "min"):
        raise ValueError(f"reduction {reduction!r}; there are none, add, mul, max, min")
    return getattr(at, reduction)(updates)


def _running(function: Any, start: int, x: jax.Array, axis: int, exclusive: bool, reverse: bool) -> jax.Array:
    x = jnp.flip(x, axis) if reverse else x
    if exclusive:
        edge = jnp.full_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis), start)
        x = jnp.concatenate([edge, jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis=axis)
    y = function(x, axis=axis, dtype=x.dtype)
    return jnp.flip(y, axis) if reverse else y
