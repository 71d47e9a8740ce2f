"""Arithmetic that JAX spells otherwise."""

from typing import Any

import jax
import jax.numpy as jnp


def integer_division(a: Any, b: Any) -> jax.Array:
    """Rounded towards zero, where `//` rounds down."""
    dtype = jnp.result_type(a, b)
    return jax.lax.div(*jnp.broadcast_arrays(jnp.asarray(a, dtype), jnp.asarray(b, dtype)))
