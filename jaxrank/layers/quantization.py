"""Quantized values, `real = scale * (quantized - zero)`, and casts to the narrow types they use.

A scale is one number, one for each index of `axis`, or with `block_size` one for each block along `axis`.
Half is rounded to even; values out of range saturate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrank.layers.convolution import conv


def cast_to_float8(x: jax.Array, dtype: Any, *, saturate: bool = True, round_mode: str = "up") -> jax.Array:
    """To or from an 8-bit float. `saturate`: beyond its largest value comes that, not infinity or NaN;
    `round_mode` (up, down, nearest) is for `float8_e8m0fnu`, which holds powers of two only."""
    if jnp.dtype(dtype) == jnp.float8_e8m0fnu:
        return _power_of_two(x, saturate, round_mode)
    if not saturate or not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize > 1:
        return x.astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(jnp.isnan(wide), jnp.nan, jnp.clip(wide, -largest, largest)).astype(dtype)


def cast_to_narrow_int(x: jax.Array, dtype: Any) -> jax.Array:
    """To an integer of 2 or 4 bits: the low bits of the value."""
    if jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == bool:
        x = x.astype(jnp.int32)
    return x.astype(dtype)


def quantize(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    *,
    dtype: Any,
    axis: int = 1,
    block_size: int = 0,
    precision: Any = None,
    saturate: bool = True,
) -> jax.Array:
    """`round(x / scale) + zero`; the division is in `precision` (that of the operands by default)."""
    factor = _spread(scale, x.shape, axis, block_size)
    y = x / factor if precision is None else x.astype(precision) / factor.astype(precision)
    shift = None if zero is None else _spread(zero, x.shape, axis, block_size)
    if jnp.issubdtype(dtype, jnp.integer):
        whole = jnp.round(y).astype(jnp.int32)
        whole = whole if shift is None else whole + shift.astype(jnp.int32)
        return jnp.clip(whole, int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)).astype(dtype)
    if jnp.dtype(dtype).name.startswith("float8"):
        return cast_to_float8(y, dtype, saturate=saturate)
    return (y if shift is None else y + shift.astype(y.dtype)).astype(dtype)


def dequantize(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    *,
    dtype: Any = None,
    axis: int = 1,
    block_size: int = 0,
) -> jax.Array:
    """Real values, of `dtype` or the scale's."""
    y = x.astype(jnp.float32)
    if zero is not None:
        y = y - _spread(zero, x.shape, axis, block_size).astype(jnp.float32)
    return (y * _spread(scale, x.shape, axis, block_size)).astype(scale.dtype if dtype is None else dtype)


def dynamic_quantize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """To uint8 with the scale and the zero point of the values' own range, which includes 0."""
    high, low = jnp.maximum(jnp.max(x), 0), jnp.minimum(jnp.min(x), 0)
    scale = (high - low) / 255
    scale = jnp.where(scale == 0, 1, scale)
    zero = jnp.clip(jnp.round(-low / scale), 0, 255).astype(jnp.uint8)
    return quantize(x, scale, zero, dtype=jnp.uint8), scale, zero


def matmul_integer(
    a: jax.Array, b: jax.Array, a_zero: jax.Array | None = None, b_zero: jax.Array | None = None
) -> jax.Array:
    """`(a - a_zero) @ (b - b_zero)` in int32; a zero point may be one for each row of `a`, column of `b`."""
    if a_zero is not None and a_zero.ndim == 1 and a_zero.size > 1:
        a_zero = a_zero[:, None]
    return jnp.matmul(_shifted(a, a_zero), _shifted(b, b_zero))


def quantized_matmul(
    a: jax.Array,
    a_scale: jax.Array,
    a_zero: jax.Array,
    b: jax.Array,
    b_scale: jax.Array,
    b_zero: jax.Array,
    y_scale: jax.Array,
    y_zero: jax.Array,
) -> jax.Array:
    """A product of quantized matrices, quantized again."""
    product = matmul_integer(a, b, a_zero, b_zero).astype(jnp.float32)
    real = product * (a_scale.astype(jnp.float32) * b_scale.astype(jnp.float32))
    return quantize(real, y_scale.astype(jnp.float32), y_zero, dtype=y_zero.dtype)


def conv_integer(
    x: jax.Array,
    w: jax.Array,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    **window: Any,
) -> jax.Array:
    """`conv` of the shifted values in int32; `window` are its keyword arguments. Padding is zero after the
    shift."""
    if w_zero is not None and w_zero.ndim == 1:
        w_zero = jnp.reshape(w_zero, (-1, *[1] * (w.ndim - 1)))
    return conv(_shifted(x, x_zero), _shifted(w, w_zero), **window)


def quantized_conv(
    x: jax.Array,
    x_scale: jax.Array,
    x_zero: jax.Array,
    w: jax.Array,
    w_scale: jax.Array,
    w_zero: jax.Array,
    y_scale: jax.Array,
    y_zero: jax.Array,
    b: jax.Array | None = None,
    **window: Any,
) -> jax.Array:
    """A convolution of quantized values, quantized again; the bias is int32 of scale `x_scale * w_scale`."""
    product = conv_integer(x, w, x_zero, w_zero, **window)
    channels = (-1, *[1] * (x.ndim - 2))
    if b is not None:
        product = product + jnp.reshape(b, channels)
    scale = x_scale * (jnp.reshape(w_scale, channels) if w_scale.ndim == 1 and w_scale.size > 1 else w_scale)
    return quantize(product * scale, y_scale, y_zero, dtype=y_zero.dtype)


def _shifted(x: jax.Array, zero: jax.Array | None) -> jax.Array:
    wide = x.astype(jnp.int32)
    return wide if zero is None else wide - zero.astype(jnp.int32)


def _spread(values: jax.Array, shape: tuple[int, ...], axis: int, block_size: int) -> jax.Array:
    """A scale or zero point against every value of a tensor of this shape."""
    if values.ndim == 0 or values.size == 1:
        return jnp.reshape(values, ())
    if block_size:
        return jax.lax.slice_in_dim(jnp.repeat(values, block_size, axis=axis), 0, shape[axis], axis=axis)
    return jnp.reshape(values, [-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _power_of_two(x: jax.Array, saturate: bool, round_mode: str) -> jax.Array:
    """The exponent of a float32, in 8 bits; 255 is NaN."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    if round_mode == "up":
        more = fraction > 0
    elif round_mode == "nearest":
        more = fraction >= 0x400000
    elif round_mode == "down":
        more = jnp.zeros_like(fraction, bool)
    else:
        raise ValueError(f"round mode {round_mode!r}; there are up, down, nearest")
    limit = 254 if saturate else 255
    raised = jnp.where(more & (exponent < limit), exponent + 1, exponent)
    special = exponent == 0xFF
    kept = jnp.where(special & (fraction == 0) & saturate, 254, jnp.where(special, 255, raised))
    return jax.lax.bitcast_convert_type(kept.astype(np.uint8), jnp.float8_e8m0fnu)
