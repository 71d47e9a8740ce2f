# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Products with a repeated side: the same numbers, without the batch dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.extend import core

from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.rewrites.unbatch_dots import unbatch_dots

SIZES = {"n": 5, "h": 2, "t": 4, "d": 3}


def _products(closed: core.ClosedJaxpr) -> list[core.JaxprEqn]:
    return [e for e in closed.jaxpr.eqns if e.primitive.name == "dot_general"]


def _repeated(value: jax.Array, axes: str, wanted: str, count: object) -> jax.Array:
    """`value` of axes such as "td", repeated to "ntd"."""
    sizes = {**SIZES, "n": count}
    at = [wanted.index(a) for a in axes]
    return jax.lax.broadcast_in_dim(value, tuple(sizes[a] for a in wanted), at)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("einsum", "repeated", "own"),
    [
        pytest.param("nt,ntd->nd", "td", "nt", id="weighted sum"),
        pytest.param("nd,ntd->nt", "td", "nd", id="scores"),
        pytest.param("nht,nhtd->nhd", "htd", "nht", id="weighted sum for each head"),
        pytest.param("nhd,nthd->nht", "thd", "nhd", id="scores for each head"),
        pytest.param("nt,ntd->nd", "d", "nt", id="the same at every step"),
    ],
)
def test_the_candidates_are_rows(einsum: str, repeated: str, own: str) -> None:
    (count,) = export.symbolic_shape("n")
    wanted = einsum.split(",")[1].split("->")[0]

    def closed(count: object) -> core.ClosedJaxpr:
        sizes = {**SIZES, "n": count}
        return flat_jaxpr(
            lambda k, w: jnp.einsum(einsum, w, _repeated(k, repeated, wanted, count)),
            jax.ShapeDtypeStruct(tuple(SIZES[a] for a in repeated), jnp.float32),
            jax.ShapeDtypeStruct(tuple(sizes[a] for a in own), jnp.float32),
        )

    for product in _products(unbatch_dots(closed(count))):
        _, batch = product.params["dimension_numbers"]
        for side, axes in enumerate(batch):
            assert all(isinstance(product.invars[side].aval.shape[a], int) for a in axes)
    rng = np.random.default_rng(0)
    before, after = closed(SIZES["n"]), unbatch_dots(closed(SIZES["n"]))
    inputs = [rng.standard_normal(v.aval.shape).astype(np.float32) for v in before.jaxpr.invars]
    np.testing.assert_allclose(
        core.jaxpr_as_fun(after)(*inputs)[0], core.jaxpr_as_fun(before)(*inputs)[0], rtol=1e-5, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_product(data: st.DataObject) -> None:
    """Random batch, contracted and free axes in random order, each side repeated along random ones."""
    roles = {axis: data.draw(st.sampled_from(["batch", "contracted", "left", "right"])) for axis in "nhtd"}
    left = data.draw(st.permutations([a for a, role in roles.items() if role != "right"]))
    right = data.draw(st.permutations([a for a, role in roles.items() if role != "left"]))
    own = [[a for a in axes if data.draw(st.booleans())] for axes in (left, right)]
    numbers = [
        tuple([side.index(a) for a in "nhtd" if roles[a] == role] for side in (left, right))
        for role in ("contracted", "batch")
    ]

    def model(a: jax.Array, b: jax.Array) -> jax.Array:
        sides = [
            _repeated(v, "".join(o), "".join(axes), SIZES["n"])
            for v, o, axes in zip((a, b), own, (left, right), strict=True)
        ]
        return jax.lax.dot_general(sides[0], sides[1], tuple(numbers))  # type: ignore[arg-type]

    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = [rng.standard_normal([SIZES[a] for a in o]).astype(np.float32) for o in own]
    closed = flat_jaxpr(model, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs))
    (found,) = core.jaxpr_as_fun(unbatch_dots(closed))(*map(np.asarray, inputs))
    np.testing.assert_allclose(found, model(*map(jnp.asarray, inputs)), rtol=1e-4, atol=1e-5)
