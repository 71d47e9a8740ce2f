"""The cost model: against numbers computed by hand, and against XLA's own."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from mlir_pipeline.explain.cost import Cost, cost, cost_of_modules, least_bytes, weight_bytes
from mlir_pipeline.jaxpr import flat_jaxpr


def _arrays(*shapes: tuple) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]


def test_a_small_model_by_hand() -> None:
    """`sigmoid(relu(x @ W + b) @ v)` for n rows of 4, with 8 hidden units."""
    w, b, v = np.ones((4, 8), np.float32), np.ones(8, np.float32), np.ones((8, 1), np.float32)
    (n,) = export.symbolic_shape("n")
    closed = flat_jaxpr(
        lambda x: lax.logistic(lax.max(x @ w + b[None, :], jnp.zeros((n, 8))) @ v), *_arrays((n, 4))
    )
    found = cost(closed)
    for count in (1, 7, 5000):
        assert found.at(count) == Cost(
            products=count * (2 * 4 * 8 + 2 * 8 * 1),
            elementwise=count * (8 + 8),  # + b, max
            transcendentals=count,
            bytes_moved=4 * sum((
                (count * 4 + 4 * 8) + count * 8,  # x @ W
                (count * 8 + 8) + count * 8,  # + b
                1 + count * 8,  # the zeros
                2 * count * 8 + count * 8,  # max
                (count * 8 + 8) + count,  # @ v
                count + count,  # logistic
            )),
        )  # fmt: skip
    assert weight_bytes(closed) == 4 * (4 * 8 + 8 + 8)
    assert least_bytes(closed)._evaluate({"n": 10}) == 4 * (10 * 4 + (4 * 8 + 8 + 8) + 10)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        pytest.param(jnp.matmul, ((5, 7), (7, 3)), id="matrices"),
        pytest.param(jnp.matmul, ((4, 5, 7), (4, 7, 3)), id="batched"),
        pytest.param(
            functools.partial(jnp.einsum, "bihd,bjhd->bhij"), ((2, 5, 3, 4), (2, 6, 3, 4)), id="attention"
        ),
        pytest.param(functools.partial(jnp.einsum, "td,nd->nt"), ((12, 8), (9, 8)), id="transposed"),
        pytest.param(
            functools.partial(
                lax.conv_general_dilated,
                window_strides=(2,),
                padding="VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
            ),
            ((2, 9, 4), (3, 4, 6)),
            id="convolution",
        ),
        pytest.param(
            functools.partial(
                lax.conv_general_dilated,
                window_strides=(1,),
                padding="VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=4,
            ),
            ((2, 9, 4), (3, 1, 8)),
            id="grouped",
        ),
    ],
)
def test_products_cost_what_xla_says(function: Callable, shapes: tuple) -> None:
    arrays = _arrays(*shapes)
    found = cost(jax.make_jaxpr(function)(*arrays))
    theirs = jax.jit(function).lower(*arrays).compile().cost_analysis()
    assert theirs is not None
    assert found.flops == found.products == theirs["flops"] > 0


def test_a_dense_layer_costs_what_xla_says() -> None:
    def layer(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w + b)

    arrays = _arrays((300, 70), (70, 33), (33,))
    found = cost(jax.make_jaxpr(layer)(*arrays))
    theirs = jax.jit(layer).lower(*arrays).compile().cost_analysis()
    assert theirs is not None
    assert (found.flops, found.transcendentals) == (theirs["flops"], theirs["transcendentals"])
    assert found.bytes_moved > theirs["bytes accessed"] / 2  # XLA fuses some of what we count


def test_loops_count_every_trip() -> None:
    def looped(x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry @ carry, None), x, length=9)[0]

    assert cost(jax.make_jaxpr(looped)(*_arrays((4, 4)))).products == 9 * 2 * 4**3


def test_a_condition_costs_its_dearer_branch() -> None:
    def branches(x: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)

    assert cost(jax.make_jaxpr(branches)(*_arrays((4, 4)))).products == 2 * 2 * 4**3


def test_what_cannot_be_counted_is_told() -> None:
    def until(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

    found = cost(jax.make_jaxpr(until)(*_arrays((4, 4))))
    assert found.products == 2 * 4**3
    assert found.uncounted == {"while (trips unknown, counted once)"}
    found = cost(jax.make_jaxpr(jnp.linalg.cholesky)(*_arrays((4, 4))))
    assert "cholesky" in found.uncounted


def test_candidates_that_look_at_each_other_are_quadratic() -> None:
    (n,) = export.symbolic_shape("n")
    found = cost(jax.make_jaxpr(lambda x: x @ x.T)(*_arrays((n, 6))))
    assert [found.at(count).products for count in (1, 10, 1000)] == [12, 1200, 12_000_000]


def test_modules_share_the_whole() -> None:
    def model(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.named_scope("@experts.0"):
            with jax.named_scope("@experts.0.hidden"):
                x = x @ w
            x = jnp.tanh(x)
        return x + 1

    closed = jax.make_jaxpr(model)(*_arrays((3, 4), (4, 4)))
    found = cost_of_modules(closed)
    assert found["experts.0.hidden"].products == cost(closed).products == 2 * 3 * 4 * 4
    assert found["experts.0"].transcendentals == found[""].elementwise == 12
    assert sum(found.values(), start=Cost()) == cost(closed)
