"""Random models of a request and its candidates, written as models write them, and their jaxprs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.extend import core

from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.rewrites.known_gathers import known_gathers

STEPS, DIM = 5, 4
Model = Callable[[jax.Array, jax.Array], Any]
Rewrite = Callable[[core.ClosedJaxpr], core.ClosedJaxpr]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def jaxpr(model: Model, count: Any) -> core.ClosedJaxpr:
    """Of `model(request [1, STEPS * DIM], candidates [count, STEPS * DIM])`; `count` may be symbolic. As in
    the compiler, `x[:, 0]` is a slice before anything else happens."""
    request, candidates = (jax.ShapeDtypeStruct((rows, STEPS * DIM), jnp.float32) for rows in (1, count))
    return known_gathers(flat_jaxpr(model, request, candidates))


def inputs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return weights(1, STEPS * DIM, seed=seed), weights(rows, STEPS * DIM, seed=seed + 1)


def assert_same_numbers(model: Model, rewrite: Rewrite, seed: int = 0, rows: int = 3) -> core.ClosedJaxpr:
    """The rewritten jaxpr for `rows` candidates, which must give the model's numbers: within 1e-5 of values
    up to 1, relative beyond."""
    values = inputs(rows, seed)
    closed = rewrite(jaxpr(model, rows))
    found, expected = core.jaxpr_as_fun(closed)(*values), jax.tree.leaves(model(*map(jnp.asarray, values)))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return closed


def names(closed: core.ClosedJaxpr) -> list[str]:
    return [eqn.primitive.name for eqn in closed.jaxpr.eqns]


# Each takes `[n, STEPS, W]` and the seed of its weights, and gives `[n, STEPS', W']`.
_LAYERS: dict[str, Callable[[jax.Array, int], Any]] = {
    "dense": lambda x, s: jax.nn.relu(x @ weights(x.shape[-1], 6, seed=s) + weights(6, seed=s + 1)) / 2,
    "linear": lambda x, s: x @ weights(x.shape[-1], 4, seed=s) / 2,
    "experts": lambda x, s: sum(jnp.tanh(x @ weights(x.shape[-1], 3, seed=s + i)) for i in range(3)),
    "heads": lambda x, s: jnp.concatenate([x @ weights(x.shape[-1], 2 + i, seed=s) for i in range(3)], -1),
    "norm": lambda x, s: (x - weights(x.shape[-1], seed=s)) * weights(x.shape[-1], seed=s + 1) + 0.5,
    "affine": lambda x, s: (1 - x / 3) * weights(x.shape[-1], seed=s),
    "leaky": lambda x, s: jax.nn.leaky_relu(x * weights(x.shape[-1], seed=s) - 0.25),
    "rounded": lambda x, s: x + jnp.floor(x * 2 - 0.5),
    "softmax": lambda x, s: jax.nn.softmax(x, -1),
    "over_steps": lambda x, s: jax.nn.softmax(x, 1) * x,
    "last": lambda x, s: x[:, -1:],
    "some": lambda x, s: x[:, max(0, x.shape[1] - 3) : x.shape[1]],
    "columns": lambda x, s: x[..., 1:],
    "pooled": lambda x, s: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape) + x,
    "weighted": lambda x, s: jnp.sum(x[:, None] * x.mean(1)[:, None, None], 2) + x[:, :1],
    "tiled": lambda x, s: jnp.tile(x[:, :1], (1, 3, 1)),
    "attention": lambda x, s: jnp.einsum("nts,nsd->ntd", jax.nn.softmax(jnp.einsum("ntd,nsd->nts", x, x)), x),
    "split": lambda x, s: jnp.concatenate(jnp.split(x, [1], axis=-1)[::-1], -1),
    "reversed": lambda x, s: x.reshape(x.shape[0], -1, 1, x.shape[-1]).transpose(0, 2, 1, 3)[:, 0],
}  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A model that combines what request and candidates give, goes through a few layers, and reads some of
    the result."""
    how = draw(st.sampled_from(["candidate", "request", "concat", "difference", "product"]))
    layers = draw(st.lists(st.sampled_from(sorted(_LAYERS)), min_size=1, max_size=6))
    reads = draw(st.sampled_from(["all", "last", "first", "sum"]))
    seed = draw(st.integers(0, 1000))

    def model(request: jax.Array, candidates: jax.Array) -> jax.Array:
        rows = candidates.shape[0]
        keys = jnp.broadcast_to(request.reshape(1, STEPS, DIM), (rows, STEPS, DIM))
        steps = candidates.reshape(rows, STEPS, DIM)
        x = {
            "candidate": lambda: steps,
            "request": lambda: keys,
            "concat": lambda: jnp.concatenate([keys, steps], -1),
            "difference": lambda: keys - steps,
            "product": lambda: keys * steps[:, :1],
        }[how]()
        for i, layer in enumerate(layers):
            if x.shape[-1] > 1:
                x = _LAYERS[layer](x, seed + 10 * i)
        return {"all": x, "last": x[:, -1], "first": x[:, 0], "sum": x.sum(1)}[reads]

    return model
