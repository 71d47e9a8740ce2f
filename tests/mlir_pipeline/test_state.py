"""What crosses from the request tower to the candidate tower, and what it is called."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.split import Towers, split

STEPS, DIM = 16, 4
Model = Callable[[jax.Array, jax.Array], jax.Array]
"""`(request [1, STEPS], candidate rows [n, DIM]) -> [n, ..]`."""


def _towers(model: Model, rows: int = 3) -> Towers:
    """The towers, after a check that they compute what the model does."""
    request = jax.ShapeDtypeStruct((1, STEPS), jnp.float32)
    towers = split(flat_jaxpr(model, request, jax.ShapeDtypeStruct((rows, DIM), jnp.float32)))
    rng = np.random.default_rng(rows)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in ((1, STEPS), (rows, DIM))]
    state = core.jaxpr_as_fun(towers.request)(inputs[0])
    (found,) = core.jaxpr_as_fun(towers.candidate)(*state, inputs[1])
    np.testing.assert_allclose(found, model(*inputs), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    assert len(towers.names) == len(set(towers.names)) == len(towers.state)
    return towers


def _pairs(combine: Callable[[jax.Array, jax.Array], jax.Array]) -> Model:
    def model(request: jax.Array, candidate: jax.Array) -> jax.Array:
        steps = jnp.exp(request[0])
        return candidate[:, :1, None] * combine(steps[:, None], steps[None, :])[None]

    return model


@pytest.mark.parametrize("combine", [jnp.add, jnp.maximum, lambda a, b: jnp.where(a > b, a, -b)])
def test_what_two_small_values_make_is_made_again(combine: Callable) -> None:
    towers = _towers(_pairs(combine))
    assert [s.shape for s in towers.state] == [(STEPS,)]
    assert towers.names == ("exp",)


@pytest.mark.parametrize("combine", [jnp.power, lambda a, b: jnp.exp(a + b)])
def test_what_takes_work_is_stored(combine: Callable) -> None:
    towers = _towers(_pairs(combine))
    assert [s.shape for s in towers.state] == [(STEPS, STEPS)]


def test_a_value_of_the_same_size_is_stored_once() -> None:
    """`exp(r) + 1` alone: storing `exp(r)` in its place would save nothing."""
    towers = _towers(lambda r, c: c[:, :1] * (jnp.exp(r) + 1))
    assert towers.names == ("add",)


def test_what_other_state_makes_is_made_again() -> None:
    """`exp(r)` crosses anyway."""

    def model(request: jax.Array, candidate: jax.Array) -> jax.Array:
        steps = jnp.exp(request)
        return candidate[:, :1] * steps / (candidate[:, 1:2] ** 2 + steps * 2)

    towers = _towers(model)
    assert towers.names == ("exp",)


def test_slices_of_state_are_no_state() -> None:
    def model(request: jax.Array, candidate: jax.Array) -> jax.Array:
        steps = jnp.exp(request)
        scores = candidate[:, :1] * steps
        for i in range(4):
            scores = jnp.tanh(scores) * steps[:, i : i + 1]
        return scores

    towers = _towers(model)
    assert [s.shape for s in towers.state] == [(1, STEPS)]


def test_a_slice_alone_is_stored_as_it_is() -> None:
    towers = _towers(lambda r, c: c + jnp.cumsum(r, 1)[:, 3:4])
    assert [s.shape for s in towers.state] == [(1, 1)]


def test_names_are_the_modules_and_numbered() -> None:
    def model(request: jax.Array, candidate: jax.Array) -> jax.Array:
        with jax.named_scope("@gate.0"):
            first, second = jnp.sin(request[:, :DIM]), jnp.sin(request[:, DIM : 2 * DIM])
        return (candidate + first) / (candidate + second) + request[:, -1:] + jnp.cos(request[:, :DIM])

    assert _towers(model).names == ("gate.0/sin", "gate.0/sin.1", "slice", "cos")


def test_the_request_block_itself() -> None:
    assert _towers(lambda r, c: c[:, :1] * r).names == ("request_block",)
