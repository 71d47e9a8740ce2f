"""What depends on weights alone is computed once, unless that only repeats them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import export

from tests.mlir_pipeline.rewrites.models import DIM, STEPS, assert_same_numbers, jaxpr, names, weights

WIDTH = STEPS * DIM
W, V = (jnp.asarray(weights(WIDTH, WIDTH, seed=s)) / 5 for s in (1, 2))
B = jnp.asarray(weights(WIDTH, seed=3))

_KNOWN: dict[str, Callable[[], jax.Array]] = {
    "transpose": lambda: W.T,
    "reshape": lambda: W.reshape(-1).reshape(WIDTH, WIDTH),
    "convert": lambda: W.astype(jnp.float16).astype(jnp.float32),
    "chain": lambda: W @ V,
    "slices": lambda: jnp.concatenate([W[:3], V[3:]], 0),
    "scaled": lambda: W * jax.lax.rsqrt(jnp.abs(B) + 1e-3)[:, None],
    "normalized": lambda: W / jnp.linalg.norm(W, axis=0),
    "expanded": lambda: jnp.expand_dims(B, 0) * W,
    "positions": lambda: jnp.sin(jnp.arange(WIDTH, dtype=jnp.float32))[:, None] * W,
}


@pytest.mark.parametrize("name", _KNOWN)
def test_one_product_is_left(name: str) -> None:
    closed = assert_same_numbers(lambda r, c: c @ _KNOWN[name](), lambda closed: closed)
    left = [n for n in names(closed) if n not in ("broadcast_in_dim", "mul", "div", "jit")]
    assert left == ["dot_general"] and (
        len(names(closed)) == 1 or name in ("scaled", "normalized", "expanded")
    )


def test_products_of_the_zeros_that_a_loop_starts_from() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        state = jnp.zeros((1, WIDTH)) @ W
        return candidates @ V + state

    assert names(assert_same_numbers(model, lambda closed: closed)).count("dot_general") == 1


def test_repeated_weights_are_not_stored() -> None:
    (count,) = export.symbolic_shape("n")
    closed = jaxpr(lambda r, c: c[:, None] + jnp.broadcast_to(B, (500, WIDTH)), count)
    assert sum(jnp.size(c) for c in closed.consts) == WIDTH


def test_a_large_outer_sum_is_not_stored() -> None:
    a, b = (jnp.asarray(weights(300, seed=s)) for s in (1, 2))
    closed = jaxpr(lambda r, c: r[0, 0] * jax.lax.add(a[:, None], b[None]), 3)
    assert sum(jnp.size(c) for c in closed.consts) <= 600
