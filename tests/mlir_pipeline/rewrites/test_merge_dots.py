"""Narrow products of one operand become one; wide ones, and those of different operands, stay."""

import jax
import jax.numpy as jnp
import pytest

from mlir_pipeline.flops import dot_flops
from mlir_pipeline.rewrites.merge_dots import MAX_WIDTH, merge_dots
from tests.mlir_pipeline.rewrites.models import DIM, STEPS, assert_same_numbers, jaxpr, names, weights

WIDTH = STEPS * DIM


def _gates(request: jax.Array, candidates: jax.Array) -> tuple[jax.Array, ...]:
    """The gates of three tasks beside two wide experts."""
    gates = [jax.nn.softmax(candidates @ weights(WIDTH, n, seed=n) + weights(n)) for n in (3, 4, MAX_WIDTH)]
    experts = [jnp.tanh(candidates @ weights(WIDTH, MAX_WIDTH + 1, seed=s)) for s in (8, 9)]
    return *gates, *experts


def test_gates_are_one_product_and_experts_are_not() -> None:
    closed = assert_same_numbers(_gates, merge_dots)
    widths = sorted(
        e.outvars[0].aval.shape[-1] for e in closed.jaxpr.eqns if e.primitive.name == "dot_general"
    )
    assert widths == [MAX_WIDTH + 1, MAX_WIDTH + 1, 3 + 4 + MAX_WIDTH]
    assert dot_flops(closed) == dot_flops(jaxpr(_gates, 3))


def test_queries_keys_and_values_of_every_step() -> None:
    def attention(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = candidates.reshape(-1, STEPS, DIM)
        q, k, v = (x @ weights(DIM, 8, seed=s) for s in range(3))
        return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v

    assert names(assert_same_numbers(attention, merge_dots)).count("dot_general") == 3


@pytest.mark.parametrize("precision", [None, "highest"])
def test_only_products_that_compute_alike(precision: str | None) -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        left = jnp.matmul(candidates, weights(WIDTH, 3), precision=precision)
        return left + candidates @ weights(WIDTH, 3, seed=1) + request @ weights(WIDTH, 3, seed=2)

    count = names(assert_same_numbers(model, merge_dots)).count("dot_general")
    assert count == (2 if precision is None else 3)
