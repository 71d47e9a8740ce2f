# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Weighted sums of stacked parts: the same numbers, without the stack."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend import core

from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.rewrites.expand_primitives import expand_primitives
from mlir_pipeline.rewrites.unstack_dots import MAX_PARTS, unstack_dots

WIDTH = 4


def _stack(x: jax.Array, parts: int, axis: int = 1) -> jax.Array:
    return jnp.stack([jnp.tanh(x * (i + 1)) for i in range(parts)], axis)


def _gates(x: jax.Array, parts: int) -> jax.Array:
    return jax.nn.softmax(x @ np.random.default_rng(0).standard_normal((WIDTH, parts)).astype(np.float32))


def _matmul(x: jax.Array) -> Any:
    return jnp.matmul(_gates(x, 3)[:, None, :], _stack(x, 3))[:, 0]


def _heads(x: jax.Array) -> Any:
    """Another batch axis, and the stack on the left."""
    x = x.reshape(x.shape[0], 2, WIDTH // 2)
    return jnp.einsum("nhed,nhe->nhd", _stack(x, 3, axis=2), jnp.tanh(x @ np.ones((2, 3), np.float32)))


CASES = {
    "einsum": lambda x: jnp.einsum("ne,ned->nd", _gates(x, 3), _stack(x, 3)),
    "matmul of one row": _matmul,
    "stacked last": lambda x: jnp.einsum("nde,ne->nd", _stack(x, 3, axis=2), _gates(x, 3)),
    "two gates of one stack": lambda x: (
        jnp.einsum("ne,ned->nd", _gates(x, 3), s := _stack(x, 3)) + jnp.einsum("ne,ned->nd", _gates(-x, 3), s)
    ),
    "heads": _heads,
    "multiplied and summed": lambda x: (_gates(x, 3)[:, :, None] * _stack(x, 3)).sum(1),
    "one weight for all": lambda x: (_stack(x, 3) * x[:, None, :]).sum(1),
}


def _primitives(closed: core.ClosedJaxpr) -> set[str]:
    """Of what the results need."""
    needed, found = set(closed.jaxpr.outvars), set()
    for eqn in reversed(closed.jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            found.add(eqn.primitive.name)
            needed.update(v for v in eqn.invars if isinstance(v, core.Var))
    return found


def _traced(model: Any, count: Any) -> core.ClosedJaxpr:
    return expand_primitives(flat_jaxpr(model, jax.ShapeDtypeStruct((count, WIDTH), jnp.float32)))


@pytest.mark.parametrize("case", CASES)
def test_no_stack_is_made(case: str) -> None:
    """For any number of candidates; the numbers for 5 of them within float32 rounding of sums of 3 terms."""
    model = CASES[case]
    (count,) = export.symbolic_shape("n")
    after = unstack_dots(_traced(model, count))
    batched = [e for e in after.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert not [e for e in batched if e.params["dimension_numbers"][1][0]]
    assert "concatenate" not in _primitives(after)
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    # With 5 in place of n no product is a candidate's own, so the rule is asked on the shape that has n.
    exported = export.export(jax.jit(core.jaxpr_as_fun(after)))(
        jax.ShapeDtypeStruct((count, WIDTH), jnp.float32)
    )
    (found,) = exported.call(x)
    np.testing.assert_allclose(found, model(jnp.asarray(x)), rtol=1e-6, atol=1e-6)


KEPT = {
    "a stack that many rows read": lambda x: jnp.einsum(
        "nre,ned->nrd", x[:, :, None] * _gates(x, 3)[:, None], _stack(x, 3)
    ),
    "parts of two rows": lambda x: jnp.einsum(
        "ne,ned->nd", _gates(x, 4), jnp.concatenate([_stack(x, 2), _stack(-x, 2)], 1)
    ),
    "more parts than a dispatch takes": lambda x: jnp.einsum(
        "ne,ned->nd", _gates(x, MAX_PARTS + 1), _stack(x, MAX_PARTS + 1)
    ),
    "a sum along another axis": lambda x: (_gates(x, 3)[:, :, None] * _stack(x, 3)).sum(2),
    "the product is read again": lambda x: (p := _gates(x, 3)[:, :, None] * _stack(x, 3)).sum(1) + p.max(1),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case: str) -> None:
    (count,) = export.symbolic_shape("n")
    before = _traced(KEPT[case], count)
    assert "concatenate" in _primitives(unstack_dots(before))
