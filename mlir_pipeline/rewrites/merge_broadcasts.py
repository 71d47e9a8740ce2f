# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Makes one broadcast of a tile, and of a broadcast that is reshaped or squeezed.

Rules: a tile of dimensions of size 1 is a broadcast; `reshape(broadcast(a))`, where the reshape only adds or
drops dimensions of size 1, is a broadcast of `a` without them. Effect on FLOPs: none. It lets `hoist_dots`
see that the rows of a tiled query are all the same, however a model tiled it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace

_RESHAPES = {"reshape", "squeeze", "expand_dims"}


def merge_broadcasts(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule until nothing changes."""
    while True:
        merged = _once(closed)
        if _count(merged) >= _count(closed):
            return merged
        closed = merged


def _once(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name == "tile":
            return _tile_of_ones(eqn, read)
        if (
            eqn.primitive.name not in _RESHAPES
            or eqn.params.get("dimensions")
            and eqn.primitive.name == "reshape"
        ):
            return None
        broadcast = producer.get(eqn.invars[0]) if isinstance(eqn.invars[0], core.Var) else None
        if broadcast is None or broadcast.primitive.name != "broadcast_in_dim":
            return None
        operand = broadcast.invars[0]
        if isinstance(operand, core.Literal):
            return None
        before, after = broadcast.outvars[0].aval.shape, eqn.outvars[0].aval.shape
        at = _same_dimensions(before, after)
        if at is None:
            return None
        positions = broadcast.params["broadcast_dimensions"]
        keep = [i for i, d in enumerate(positions) if int(d) in at]
        if any(operand.aval.shape[i] != 1 for i in range(operand.aval.ndim) if i not in keep):
            return None
        value = read(operand)
        if len(keep) < operand.aval.ndim:
            value = lax.squeeze(value, [i for i in range(operand.aval.ndim) if i not in keep])
        return [lax.broadcast_in_dim(jnp.asarray(value), after, [at[int(positions[i])] for i in keep])]

    return retrace(closed, rule)


def _tile_of_ones(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
    """Repeating dimensions of size 1 is a broadcast."""
    (operand,), (result,) = eqn.invars, eqn.outvars
    if any(
        isinstance(d, int) and d != 1 and r != 1
        for d, r in zip(operand.aval.shape, eqn.params["reps"], strict=True)
    ):
        return None
    return [lax.broadcast_in_dim(read(operand), result.aval.shape, range(operand.aval.ndim))]


def _same_dimensions(before: tuple[Any, ...], after: tuple[Any, ...]) -> dict[int, int] | None:
    """Where each dimension of `before` that is not 1 is in `after`; None if they are not the same ones in the
    same order."""
    left = [i for i, d in enumerate(before) if not (isinstance(d, int) and d == 1)]
    right = [i for i, d in enumerate(after) if not (isinstance(d, int) and d == 1)]
    if [before[i] for i in left] != [after[i] for i in right]:
        return None
    return dict(zip(left, right, strict=True))


def _count(closed: core.ClosedJaxpr) -> int:
    return sum(eqn.primitive.name in _RESHAPES | {"tile"} for eqn in closed.jaxpr.eqns)
