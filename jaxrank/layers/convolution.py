"""Convolutions and pooling over `[N, C, spatial...]`; kernels are `[out, in / groups, spatial...]`.

`strides`, `dilations` are one number for each spatial axis (1 by default), `pads` a pair of numbers before
and after (0 by default).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pads = Sequence[tuple[int, int]]


def conv(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
    groups: int = 1,
) -> jax.Array:
    """The cross-correlation of neural networks, plus a bias for each output channel."""
    n = x.ndim - 2
    y = jax.lax.conv_general_dilated(
        x,
        w,
        strides or (1,) * n,
        pads or [(0, 0)] * n,
        rhs_dilation=dilations or (1,) * n,
        feature_group_count=groups,
    )
    return y if b is None else y + jnp.reshape(b, (-1, *[1] * n))


def conv_transpose(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    groups: int = 1,
) -> jax.Array:
    """The gradient of `conv` with respect to its input; `w [in, out / groups, spatial...]`. `pads` cut the
    full result, `output_padding` makes it longer at the end."""
    n = x.ndim - 2
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    pads, output_padding = pads or [(0, 0)] * n, output_padding or (0,) * n
    kernel = jnp.reshape(w, (groups, -1, *w.shape[1:]))
    kernel = jnp.flip(jnp.swapaxes(kernel, 1, 2), tuple(range(3, kernel.ndim)))
    kernel = jnp.reshape(kernel, (-1, *kernel.shape[2:]))
    margins = []
    for size, d, (low, high), extra in zip(w.shape[2:], dilations, pads, output_padding, strict=True):
        full = (size - 1) * d
        margins.append((full - low, full - high + extra))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1,) * n, margins, lhs_dilation=strides, rhs_dilation=dilations, feature_group_count=groups
    )
    return y if b is None else y + jnp.reshape(b, (-1, *[1] * n))


def max_pool(
    x: jax.Array,
    window: Sequence[int],
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
) -> jax.Array:
    """The largest value in each window."""
    return _pool(x, _lowest(x.dtype), jax.lax.max, window, strides, pads, dilations)


def max_pool_with_indices(
    x: jax.Array,
    window: Sequence[int],
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
    column_major: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The largest value in each window and its position in the flattened `x`; `column_major` counts the
    spatial axes the other way round."""
    n, spatial = x.ndim - 2, x.shape[2:]
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or [(0, 0)] * n
    positions = np.arange(math.prod(spatial)).reshape(spatial[::-1] if column_major else spatial)
    positions = positions.T if column_major else positions
    counts = [
        (size + low + high - (k - 1) * d - 1) // s + 1
        for size, k, s, d, (low, high) in zip(spatial, window, strides, dilations, pads, strict=True)
    ]
    padded = jnp.pad(x, [(0, 0), (0, 0), *pads], constant_values=_lowest(x.dtype))
    where = np.pad(positions, pads)
    values, places = [], []
    for offset in itertools.product(*(range(k) for k in window)):
        at = tuple(
            slice(o * d, o * d + (c - 1) * s + 1, s)
            for o, d, c, s in zip(offset, dilations, counts, strides, strict=True)
        )
        values.append(padded[(slice(None), slice(None), *at)])
        places.append(where[at])
    stacked = jnp.stack(values)
    best = jnp.argmax(stacked, axis=0)
    place = jnp.broadcast_to(jnp.asarray(np.stack(places))[:, None, None], stacked.shape)
    place = jnp.take_along_axis(place, best[None], axis=0)[0]
    plane = jnp.reshape(jnp.arange(x.shape[0] * x.shape[1]), (*x.shape[:2], *[1] * n)) * math.prod(spatial)
    index = (place + plane).astype(jax.dtypes.canonicalize_dtype(np.int64))
    return jnp.max(stacked, axis=0), index


def average_pool(
    x: jax.Array,
    window: Sequence[int],
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
    overhang: Sequence[int] = (),
    count_padding: bool = False,
) -> jax.Array:
    """The mean of each window over the values in it; `count_padding` counts the zeros of `pads` too, never
    those of `overhang`, which lets a last window stick out."""
    n = x.ndim - 2
    pads, overhang = pads or [(0, 0)] * n, overhang or (0,) * n
    wide = [(low, high + extra) for (low, high), extra in zip(pads, overhang, strict=True)]
    total = _pool(x, 0, jax.lax.add, window, strides, wide, dilations)
    ones = jnp.ones((1, 1, *x.shape[2:]), x.dtype)
    if count_padding:
        ones = jnp.pad(ones, [(0, 0), (0, 0), *pads], constant_values=1)
        wide = [(0, extra) for extra in overhang]
    return total / _pool(ones, 0, jax.lax.add, window, strides, wide, dilations)


def lp_pool(
    x: jax.Array,
    window: Sequence[int],
    p: int,
    *,
    strides: Sequence[int] = (),
    pads: Pads = (),
    dilations: Sequence[int] = (),
) -> jax.Array:
    """The p-norm of each window."""
    return _pool(jnp.abs(x) ** p, 0, jax.lax.add, window, strides, pads, dilations) ** (1 / p)


def max_unpool(
    x: jax.Array, indices: jax.Array, spatial: Sequence[int], shape: Sequence[int] | None = None
) -> jax.Array:
    """Values put back where a pooling over `[N, C, *spatial]` took them from, zeros elsewhere; then zeros to
    `[N, C, *shape]` at the end."""
    whole = (*x.shape[:2], *spatial)
    flat = jnp.zeros(math.prod(whole), x.dtype).at[jnp.ravel(indices)].set(jnp.ravel(x))
    y = jnp.reshape(flat, whole)
    if shape is None:
        return y
    return jnp.pad(y, [(0, 0), (0, 0), *((0, b - a) for a, b in zip(spatial, shape, strict=True))])


def col2im(
    x: jax.Array,
    image: Sequence[int],
    block: Sequence[int],
    *,
    strides: Sequence[int],
    pads: Pads,
    dilations: Sequence[int],
) -> jax.Array:
    """Blocks `[N, C * prod(block), L]` added up where they were cut from: `[N, C, *image]`."""
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    counts = [
        (size + low + high - (k - 1) * d - 1) // s + 1
        for size, k, s, d, (low, high) in zip(image, block, strides, dilations, pads, strict=True)
    ]
    parts = jnp.reshape(x, (n, channels, math.prod(block), *counts))
    whole = jnp.zeros((n, channels, *(s + a + b for s, (a, b) in zip(image, pads, strict=True))), x.dtype)
    for i, offset in enumerate(itertools.product(*(range(k) for k in block))):
        at = tuple(
            slice(o * d, o * d + (c - 1) * s + 1, s)
            for o, d, c, s in zip(offset, dilations, counts, strides, strict=True)
        )
        whole = whole.at[(slice(None), slice(None), *at)].add(parts[:, :, i])
    return whole[
        (slice(None), slice(None), *(slice(a, a + s) for s, (a, _) in zip(image, pads, strict=True)))
    ]


def depth_to_space(x: jax.Array, block: int, *, mode: str = "DCR") -> jax.Array:
    """Channels into blocks of pixels: `[N, C * block**2, H, W]` to `[N, C, H * block, W * block]`. In `DCR`
    the block is the outer part of the channel axis, in `CRD` the inner one."""
    n, c, h, w = x.shape
    if mode == "DCR":
        y = jnp.transpose(jnp.reshape(x, (n, block, block, -1, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = jnp.transpose(jnp.reshape(x, (n, -1, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return jnp.reshape(y, (n, c // block**2, h * block, w * block))


def space_to_depth(x: jax.Array, block: int, *, mode: str = "DCR") -> jax.Array:
    """Blocks of pixels into channels: the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    y = jnp.reshape(x, (n, c, h // block, block, w // block, block))
    y = jnp.transpose(y, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return jnp.reshape(y, (n, c * block**2, h // block, w // block))


def _pool(
    x: jax.Array,
    start: Any,
    function: Any,
    window: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    dilations: Sequence[int],
) -> jax.Array:
    n = x.ndim - 2
    return jax.lax.reduce_window(
        x,
        np.array(start, x.dtype)[()],
        function,
        (1, 1, *window),
        (1, 1, *(strides or (1,) * n)),
        [(0, 0), (0, 0), *(pads or [(0, 0)] * n)],
        window_dilation=(1, 1, *(dilations or (1,) * n)),
    )


def _lowest(dtype: Any) -> Any:
    return jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else -jnp.inf
