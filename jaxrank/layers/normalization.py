"""Normalizations. `x` is `[N, C, spatial...]` where a function speaks of channels; statistics are float32 at
least."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def layer_normalization(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Over the axes from `axis` (negative) on. Returns the result, the means and the inverse deviations."""
    axes = tuple(range(axis, 0))
    wide = x.astype(_wide(x))
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), axis=axes, keepdims=True) + epsilon)
    y = ((wide - mean) * inverse).astype(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


def rms_normalization(x: jax.Array, scale: jax.Array, *, axis: int = -1, epsilon: float = 1e-5) -> jax.Array:
    """By the root of the mean square over the axes from `axis` (negative) on."""
    wide = x.astype(_wide(x))
    square = jnp.mean(jnp.square(wide), axis=tuple(range(axis, 0)), keepdims=True)
    return (wide * jax.lax.rsqrt(square + epsilon)).astype(x.dtype) * scale


def batch_normalization(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    epsilon: float = 1e-5,
) -> jax.Array:
    """With given statistics of each channel."""
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return ((x - _channels(mean, x)) * _channels(factor, x) + _channels(bias, x)).astype(x.dtype)


def batch_normalization_training(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With the batch's own statistics. Returns the result and the running mean and variance."""
    axes = (0, *range(2, x.ndim))
    batch_mean, batch_variance = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
    y = batch_normalization(x, scale, bias, batch_mean, batch_variance, epsilon=epsilon)
    running = (
        old * momentum + new * (1 - momentum) for old, new in ((mean, batch_mean), (variance, batch_variance))
    )
    return y, *running  # type: ignore[return-value]


def instance_normalization(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-5
) -> jax.Array:
    """Each channel of each row over its spatial axes."""
    return _channels(scale, x) * _standardized(x, tuple(range(2, x.ndim)), epsilon) + _channels(bias, x)


def group_normalization(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, *, epsilon: float = 1e-5
) -> jax.Array:
    """Groups of channels of each row; scale and bias are per channel."""
    grouped = jnp.reshape(x, (x.shape[0], groups, -1))
    y = jnp.reshape(_standardized(grouped, (2,), epsilon), x.shape)
    return _channels(scale, x) * y + _channels(bias, x)


def local_response_normalization(
    x: jax.Array, *, size: int, alpha: float, beta: float, bias: float
) -> jax.Array:
    """`x / (bias + alpha / size * sum of squares of the `size` channels around) ** beta`."""
    low = (size - 1) // 2
    squares = jax.lax.reduce_window(
        jnp.square(x),
        jnp.zeros((), x.dtype),
        jax.lax.add,
        (1, size, *[1] * (x.ndim - 2)),
        (1,) * x.ndim,
        [(0, 0), (low, size - 1 - low), *[(0, 0)] * (x.ndim - 2)],
    )
    return x / (bias + alpha / size * squares) ** beta


def lp_normalization(x: jax.Array, *, axis: int, p: int = 2) -> jax.Array:
    """Divided by the L1 or L2 norm along an axis; zero where that is zero."""
    norm = jnp.sum(jnp.abs(x) ** p, axis=axis, keepdims=True) ** (1 / p)
    return jnp.where(norm == 0, 0, x / jnp.where(norm == 0, 1, norm))


def mean_variance_normalization(x: jax.Array, *, axes: Sequence[int]) -> jax.Array:
    """`(x - mean) / (deviation + 1e-9)`, the constant being ONNX's."""
    mean = jnp.mean(x, axis=tuple(axes), keepdims=True)
    return (x - mean) / (jnp.std(x, axis=tuple(axes), keepdims=True) + 1e-9)


def _standardized(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    wide = x.astype(_wide(x))
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=axes, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def _channels(values: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.reshape(values, (-1, *[1] * (x.ndim - 2)))


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
