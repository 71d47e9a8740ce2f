"""Steps, columns and parts that nobody reads are not computed."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mlir_pipeline.flops import dot_flops, elementwise_operations
from mlir_pipeline.rewrites.slice_pushdown import slice_pushdown
from tests.mlir_pipeline.rewrites.models import DIM, STEPS, assert_same_numbers, jaxpr, names, weights

HEADS = 2


def _block(x: jax.Array) -> jax.Array:
    """Self-attention over steps `[n, T, D]` with its feed-forward, as a BST or BERT block has them."""
    rows = x.shape[0]
    q, k, v = ((x @ weights(DIM, DIM, seed=s)).reshape(rows, STEPS, HEADS, -1) for s in range(3))
    scores = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k))
    x = x + jnp.einsum("nhqk,nkhd->nqhd", scores, v).reshape(rows, STEPS, DIM) @ weights(DIM, DIM, seed=4)
    x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    return x + jax.nn.relu(x @ weights(DIM, 4 * DIM, seed=5)) @ weights(4 * DIM, DIM, seed=6)


def test_one_query_of_an_attention_block() -> None:
    """Keys and values are of every step; the query, its scores and all that comes after are of one."""

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        return _block(candidates.reshape(-1, STEPS, DIM))[:, -1]

    (count,) = export.symbolic_shape("n")
    before, after = jaxpr(model, count), slice_pushdown(jaxpr(model, count))
    own = 2 * DIM * DIM + 2 * 2 * STEPS * DIM + 2 * DIM * DIM + 2 * 2 * DIM * 4 * DIM
    keys = 2 * 2 * STEPS * DIM * DIM
    assert dot_flops(after) == own + keys
    assert dot_flops(before) == STEPS * own + keys
    assert elementwise_operations(after) * (STEPS - 1) < elementwise_operations(before)
    assert_same_numbers(model, slice_pushdown)


def test_a_value_that_is_also_read_as_a_whole_stays_whole() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = _block(candidates.reshape(-1, STEPS, DIM))
        return x[:, 0] + x.mean(1)

    assert dot_flops(assert_same_numbers(model, slice_pushdown)) == dot_flops(jaxpr(model, 3))


def test_columns_of_a_product() -> None:
    """The range that covers both readers, as columns of the weights."""

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = jnp.tanh(candidates @ weights(STEPS * DIM, 50))
        return x[:, 10:12] + x[:, 18:20]

    closed = assert_same_numbers(model, slice_pushdown)
    assert dot_flops(closed) * 50 == dot_flops(jaxpr(model, 3)) * 10
    assert sum(np.size(c) for c in closed.consts) == STEPS * DIM * 10


def test_a_part_of_a_concatenation_that_no_slice_reaches() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        steps = [jnp.tanh(candidates @ weights(STEPS * DIM, DIM, seed=s)) for s in range(STEPS)]
        return jnp.stack(steps, 1)[:, -1]

    closed = assert_same_numbers(model, slice_pushdown)
    assert names(closed).count("dot_general") == 1 and "concatenate" not in names(closed)


def test_strided_and_split_readers() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = jnp.exp(candidates.reshape(-1, STEPS, DIM))
        first, _ = jnp.split(x, [2], axis=1)
        return first.sum(1) + x[:, 0:3:2].sum(1)

    closed = assert_same_numbers(model, slice_pushdown)
    assert elementwise_operations(closed) < elementwise_operations(jaxpr(model, 3))


def test_slices_of_candidates_are_left_alone() -> None:
    """A model that mixes candidates may read some of them: their number is not known."""

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = jnp.tanh(candidates @ weights(STEPS * DIM, 4))
        return x - x[:1]

    assert_same_numbers(model, slice_pushdown)
    (count,) = export.symbolic_shape("n", constraints=["n >= 2"])
    assert dot_flops(slice_pushdown(jaxpr(model, count))) == dot_flops(jaxpr(model, count))
