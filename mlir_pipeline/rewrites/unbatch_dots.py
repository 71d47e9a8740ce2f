# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Makes one matrix product of a batch of products in which one side is always the same.

Rule: `einsum("nt,ntd->nd", w, broadcast(k))  =  einsum("nt,td->nd", w, k)`: a batch dimension along which one
side only repeats becomes rows of the other side. Condition: the broadcast feeds the product directly. Effect
on FLOPs: none; the repeated operand is not made, and n products of one row become one product of n rows.
"""

from typing import Any

from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace
from mlir_pipeline.pieces.dots import unrepeated_dot
from mlir_pipeline.pieces.grid import repeated_to, repeating, unrepeated


def unbatch_dots(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to every `dot_general` of a flat jaxpr."""
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name != "dot_general":
            return None
        numbers = eqn.params["dimension_numbers"]
        (_, batch) = numbers
        operands, changed = [], False
        for side, var in enumerate(eqn.invars):
            value, shape = read(var), var.aval.shape
            broadcast = repeating(var, producer)
            if broadcast is not None:
                small = unrepeated(broadcast, read(broadcast.invars[0]))
                kept = tuple(
                    1 if a in batch[side] and small.shape[a] == 1 else d for a, d in enumerate(shape)
                )
                if kept != shape:
                    value, changed = repeated_to(small, kept), True
            operands.append(value)
        if not changed:
            return None
        precision = {key: eqn.params[key] for key in ("precision", "preferred_element_type")}
        found = unrepeated_dot(operands[0], operands[1], numbers, precision)
        return [repeated_to(found, eqn.outvars[0].aval.shape)]

    return retrace(closed, rule)
