# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Gathers whose indices are known when the module is compiled.

Rules: a gather of one slice is a slice, as in `x[:, t]` of an unrolled loop; one of several, all inside of
the operand, loses the masks that stand for indices outside. Effect on FLOPs: none. It leaves IREE copies in
place of random reads, and lets the split see which part of an array a step needs.
"""

from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace


def known_gathers(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to every `gather` of a flat jaxpr."""

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name != "gather":
            return None
        operand, indices = (read(v) for v in eqn.invars)
        if isinstance(indices, jax.core.Tracer) or not isinstance(operand, jax.core.Tracer):
            return None
        starts = np.asarray(indices)
        starts = starts.reshape(-1, starts.shape[-1]).astype(np.int64)
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        if numbers.operand_batching_dims or not _inside(
            starts, numbers.start_index_map, sizes, operand.shape
        ):
            return None
        if len(starts) != 1:
            mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
            return [eqn.primitive.bind(operand, indices, **{**eqn.params, "mode": mode})]
        start = [0] * operand.ndim
        for axis, value in zip(numbers.start_index_map, starts[0], strict=True):
            start[axis] = int(value)
        limits = [a + size for a, size in zip(start, sizes, strict=True)]
        found = lax.squeeze(lax.slice(operand, start, limits), numbers.collapsed_slice_dims)
        rank = eqn.outvars[0].aval.ndim
        return [lax.expand_dims(found, [d for d in range(rank) if d not in numbers.offset_dims])]

    return retrace(closed, rule)


def _inside(starts: np.ndarray, axes: Any, sizes: Any, shape: Any) -> bool:
    """Whether every slice lies inside of the operand; a dimension that the client chooses is never
    indexed."""
    for column, axis in enumerate(axes):
        if not isinstance(shape[axis], int):
            return False
        found = starts[:, column]
        if (found < 0).any() or (found + sizes[axis] > shape[axis]).any():
            return False
    return True
