"""What is the same along an axis is computed once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.extend import core

from mlir_pipeline.flops import elementwise_operations
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.split import split
from tests.mlir_pipeline.rewrites.models import DIM, STEPS, assert_same_numbers, jaxpr, names, weights


def _keys(request: jax.Array, rows: int) -> jax.Array:
    """A history repeated for every candidate."""
    return jnp.broadcast_to(request.reshape(1, STEPS, DIM), (rows, STEPS, DIM))


_REPEATED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "unary": jnp.exp,
    "two of them": lambda k: k + jnp.tanh(k),
    "weights": lambda k: k * weights(DIM) + 1.0,
    "select": lambda k: jnp.where(k > 0, k, 0.1 * k),
    "softmax over steps": lambda k: jax.nn.softmax(k, 1),
    "sum": lambda k: jnp.broadcast_to(k.sum(1, keepdims=True), k.shape),
    "concatenation": lambda k: jnp.concatenate([k, jnp.exp(k)], -1),
    "transpose": lambda k: jnp.exp(k.transpose(0, 2, 1)),
    "reshape": lambda k: jnp.exp(k[:, None])[:, 0],
}


@pytest.mark.parametrize("name", _REPEATED)
def test_the_candidates_part_only_repeats(name: str) -> None:
    """Everything but the last product is the request's."""

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = _REPEATED[name](_keys(request, candidates.shape[0]))
        return x * candidates[:, :1, None]

    assert_same_numbers(model, merge_broadcasts)
    (count,) = export.symbolic_shape("n")
    left = names(split(merge_broadcasts(jaxpr(model, count))).candidate)
    assert [n for n in left if n not in ("broadcast_in_dim", "slice", "squeeze", "reshape", "transpose")] == [
        "mul"
    ]


def _sums(closed: core.ClosedJaxpr) -> list[int]:
    """Operands' ranks of the sums."""
    return [e.invars[0].aval.ndim for e in closed.jaxpr.eqns if e.primitive.name == "reduce_sum"]


def test_a_factor_leaves_the_sum() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        query = jnp.broadcast_to(candidates[:, None, :DIM], (candidates.shape[0], STEPS, DIM))
        return (query * request.reshape(1, STEPS, DIM)).sum(1)

    closed = assert_same_numbers(model, merge_broadcasts)
    assert elementwise_operations(closed) * STEPS == elementwise_operations(jaxpr(model, 3))
    (count,) = export.symbolic_shape("n")
    assert "reduce_sum" not in names(split(merge_broadcasts(jaxpr(model, count))).candidate)


def test_reductions_over_what_is_repeated() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> tuple[jax.Array, ...]:
        query = jnp.broadcast_to(candidates[:, None, :DIM], (candidates.shape[0], STEPS, DIM))
        return query.sum(1), query.max(1), jnp.exp(query).sum((1, 2))

    closed = assert_same_numbers(model, merge_broadcasts)
    assert all(
        e.invars[0].aval.size <= 3 * DIM for e in closed.jaxpr.eqns if e.primitive.name.startswith("reduce")
    )


def test_what_differs_along_every_axis_stays() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        return jnp.tanh(_keys(request, candidates.shape[0]) + candidates.reshape(-1, STEPS, DIM))

    before = jaxpr(model, 3)
    assert elementwise_operations(merge_broadcasts(before)) == elementwise_operations(before)
