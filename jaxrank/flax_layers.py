"""What a generated Flax module imports besides flax: operations that mix request rows and candidate rows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def concatenate(values: Sequence[jax.Array], axis: int) -> jax.Array:
    """`jnp.concatenate` along a feature axis, where one request row (`[1, ...]`) stands beside N candidate
    rows."""
    rows = max(v.shape[0] for v in values)
    return jnp.concatenate([jnp.broadcast_to(v, (rows, *v.shape[1:])) for v in values], axis=axis)


def stack(values: Sequence[jax.Array], axis: int) -> jax.Array:
    """`jnp.stack` along a new feature axis, with the same mixing of rows as `concatenate`."""
    return concatenate([jnp.expand_dims(v, axis) for v in values], axis=axis)
