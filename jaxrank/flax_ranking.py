"""Layers of ranking models that Flax does not have, for generated modules and for training them further.

All take `[..., D]` float32 and compute row by row.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class ScaleShift(nnx.Module):
    """`x * scale + shift`, both of width `features`: what batch norm is once its statistics are fixed."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(features))
        self.shift = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...] + self.shift[...]


class PReLU(nnx.Module):
    """`x` where it is positive, `slope * x` elsewhere. `shape` is the slope's, without the rows."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.slope = nnx.Param(jnp.full(shape, 0.25))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.where(x < 0, self.slope[...] * x, x)


class Dice(nnx.Module):
    """The activation of the Deep Interest Network (Zhou et al., 2018): a PReLU whose knee follows the data.

    `p * x + alpha * (1 - p) * x` with `p = sigmoid(norm(x))`; `norm` is a batch norm with fixed statistics.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.norm = ScaleShift(features, rngs=rngs)
        self.alpha = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(self.norm(x))
        return p * x + self.alpha[...] * (1 - p) * x


def factorization_machine(x: jax.Array, axis: int, keepdims: bool = False) -> jax.Array:
    """Sum over all pairs of fields of their elementwise products (Rendle, 2010); `axis` holds the fields."""
    summed = jnp.sum(x, axis=axis, keepdims=keepdims)
    return 0.5 * (summed * summed - jnp.sum(x * x, axis=axis, keepdims=keepdims))


def l2_normalize(x: jax.Array, axis: int, epsilon: float) -> jax.Array:
    """`x / sqrt(max(sum(x²), epsilon))` along an axis, as TensorFlow's `l2_normalize`."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), epsilon))
