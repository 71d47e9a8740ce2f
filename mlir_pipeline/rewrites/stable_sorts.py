# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Stable sorts, which IREE's sort is not: it compares positions too.

Rule: a stable sort by some keys is any sort by these keys and then by position. Effect on FLOPs: none.
Without it equal scores of a top-k come in another order than TensorFlow's.
"""

from typing import Any

from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace


def stable_sorts(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to every stable `sort` of a flat jaxpr."""

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name != "sort" or not eqn.params["is_stable"]:
            return None
        operands = [read(v) for v in eqn.invars]
        keys, axis = eqn.params["num_keys"], eqn.params["dimension"]
        if not isinstance(eqn.invars[0].aval.shape[axis], int):
            return None  # `expand_primitives` sorts candidates, and keeps equal ones in their order
        position = lax.broadcasted_iota("int32", eqn.invars[0].aval.shape, axis)
        found = eqn.primitive.bind(
            *operands[:keys],
            position,
            *operands[keys:],
            dimension=axis,
            is_stable=False,
            num_keys=keys + 1,
        )
        return [*found[:keys], *found[keys + 1 :]]

    return retrace(closed, rule)
