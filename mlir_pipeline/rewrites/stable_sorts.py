# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Stable sorts, which IREE's sort is not: it compares positions too.

Rule: a stable sort by some keys is any sort by these keys and then by position. Effect on FLOPs: none.
Without it equal scores of a top-k come in another order than TensorFlow's. An operand that is the position,
as an argsort's, is that key: IREE 3.13 does not compile a sort that is given one tensor twice
(`tests/mlir_pipeline/test_workarounds.py` notices when it does).
"""

from typing import Any

from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace


def stable_sorts(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to every stable `sort` of a flat jaxpr."""
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}

    def is_position(var: Any, axis: int) -> bool:
        """Whether a value counts along an axis: an iota, maybe repeated along others."""
        eqn = producer.get(var) if isinstance(var, core.Var) else None
        if eqn is None or var.aval.dtype != "int32":
            return False
        if eqn.primitive.name == "broadcast_in_dim":
            positions = eqn.params["broadcast_dimensions"]
            return axis in positions and is_position(eqn.invars[0], positions.index(axis))
        return eqn.primitive.name == "iota" and eqn.params["dimension"] == axis

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name != "sort" or not eqn.params["is_stable"]:
            return None
        operands = [read(v) for v in eqn.invars]
        keys, axis = eqn.params["num_keys"], eqn.params["dimension"]
        if not isinstance(eqn.invars[0].aval.shape[axis], int):
            return None  # `expand_primitives` sorts candidates, and keeps equal ones in their order
        order = list(range(len(operands)))
        counted = [i for i in order[keys:] if is_position(eqn.invars[i], axis)]
        if counted:
            order.insert(keys, order.pop(counted[0]))
        else:
            operands.append(lax.broadcasted_iota("int32", eqn.invars[0].aval.shape, axis))
            order.insert(keys, len(operands) - 1)
        found = eqn.primitive.bind(
            *(operands[i] for i in order), dimension=axis, is_stable=False, num_keys=keys + 1
        )
        place = {operand: result for result, operand in enumerate(order)}
        return [found[place[i]] for i in range(len(eqn.invars))]

    return retrace(closed, rule)
