"""Affine chains: what is folded, what must not be, and the digits that are kept."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from mlir_pipeline.rewrites.fold_affine import fold_affine
from tests.mlir_pipeline.rewrites.models import DIM, STEPS, assert_same_numbers, jaxpr, names, weights

WIDTH = STEPS * DIM
W, B = weights(WIDTH, 6) / 3, weights(6, seed=1)
MEAN, SCALE, SHIFT = (weights(WIDTH, seed=s) for s in (2, 3, 4))


def _norm(x: jax.Array, n: int = WIDTH, mean: np.ndarray | float = 0.0) -> jax.Array:
    return (x - (MEAN[:n] + mean)) * SCALE[:n] + SHIFT[:n]


def _work(closed: core.ClosedJaxpr) -> list[str]:
    """Equations without those that only bring weights into shape."""
    return sorted(n for n in names(closed) if n not in ("broadcast_in_dim", "convert_element_type"))


_MODELS: dict[str, tuple[Callable[[jax.Array], jax.Array], list[str]]] = {
    "chain": (lambda x: jnp.tanh((_norm(x) / 3 - 1) * -SCALE), ["add", "mul", "tanh"]),
    "before": (lambda x: _norm(x) @ W + B, ["add", "dot_general"]),
    "after": (lambda x: _norm(x @ W + B, 6), ["add", "dot_general"]),
    "both": (lambda x: _norm(_norm(x) @ W + B, 6), ["add", "dot_general"]),
    "scale only": (lambda x: (x * SCALE) @ W, ["dot_general"]),
    "temperature": (lambda x: jax.lax.tanh((x @ W) / 8.0), ["dot_general", "tanh"]),
}  # fmt: skip


@pytest.mark.parametrize("name", _MODELS)
def test_folds(name: str) -> None:
    model, expected = _MODELS[name]
    assert _work(assert_same_numbers(lambda r, c: model(c), fold_affine)) == expected


def test_every_product_of_a_norm_takes_it_in() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        x = _norm(candidates)
        return jnp.tanh(x @ W + B) * (x @ W[:, ::-1] + B)

    assert _work(assert_same_numbers(model, fold_affine)) == [
        "add", "add", "dot_general", "dot_general", "mul", "tanh",
    ]  # fmt: skip


def test_a_norm_that_something_else_reads_stays() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = _norm(candidates)
        return x @ W + B, jnp.tanh(x)

    before = _work(jaxpr(model, 3))
    after = _work(assert_same_numbers(model, fold_affine))
    assert after.count("dot_general") == 1 and len(after) <= len(before)


def test_a_product_that_something_else_reads_is_not_made_twice() -> None:
    def model(request: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = candidates @ W
        return _norm(x, 6), jnp.tanh(x)

    assert _work(assert_same_numbers(model, fold_affine)).count("dot_general") == 1


@pytest.mark.parametrize("where", ["before", "after"])
def test_large_means_stay_a_subtraction(where: str) -> None:
    """Around 480,000, `x * a + b` would be wrong by 0.03; the difference is exact."""
    mean = 480000.0

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        if where == "before":
            return _norm(candidates, mean=mean) @ W + B
        return jnp.tanh(_norm(candidates, mean=mean) * SHIFT)

    rng = np.random.default_rng(0)
    x = (mean + rng.random((5, WIDTH))).astype(np.float32)
    request = np.zeros((1, WIDTH), np.float32)
    (found,) = core.jaxpr_as_fun(fold_affine(jaxpr(model, 5)))(request, x)
    exact = (x.astype(np.float64) - (MEAN + np.float32(mean))) * SCALE + SHIFT
    exact = exact @ W.astype(np.float64) + B if where == "before" else np.tanh(exact * SHIFT)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_what_is_rounded_is_not_folded() -> None:
    """`floor((x - 0.1) / 0.1)` at its steps: not a bucket may change."""

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        return jnp.floor((candidates - np.float32(0.1)) / np.float32(0.1))

    x = (np.arange(200, dtype=np.float32) / 10).reshape(10, WIDTH)
    request = np.zeros((1, WIDTH), np.float32)
    (found,) = core.jaxpr_as_fun(fold_affine(jaxpr(model, 10)))(request, x)
    np.testing.assert_array_equal(found, model(jnp.asarray(request), jnp.asarray(x)))


def test_a_leaky_relu_has_no_step() -> None:
    model = lambda r, c: jax.nn.leaky_relu(_norm(c @ W, 6), 0.3)  # noqa: E731
    assert _work(assert_same_numbers(model, fold_affine)) == ["add", "dot_general", "ge", "mul", "select_n"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from("asmdnrASM"), min_size=1, max_size=7), st.integers(0, 99), st.sampled_from("bam")
)
def test_any_chain(steps: str, seed: int, where: str) -> None:
    """Chains of sums, differences, products, quotients and signs, before a product, after it, or alone."""

    def chain(x: jax.Array) -> jax.Array:
        for i, step in enumerate(steps):
            w = weights(x.shape[-1], seed=seed + i)
            x = {
                "a": lambda x, w: x + w, "s": lambda x, w: x - w, "m": lambda x, w: x * w,
                "d": lambda x, w: x / (2 + abs(w)), "n": lambda x, w: -x, "r": lambda x, w: w - x,
                "A": lambda x, w: x + 0.5, "S": lambda x, w: 1 - x, "M": lambda x, w: x * 0.7,
            }[step](x, w)  # fmt: skip
        return x

    model = {
        "b": lambda r, c: chain(c) @ W + B,
        "a": lambda r, c: jnp.tanh(chain(c @ W)),
        "m": lambda r, c: chain(c),
    }[where]  # fmt: skip
    closed = assert_same_numbers(model, fold_affine)
    assert sum(n in ("mul", "add", "sub", "div", "neg") for n in _work(closed)) <= 2
