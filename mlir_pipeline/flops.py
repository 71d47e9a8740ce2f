"""FLOPs of matrix products in a jaxpr."""

import math

from jax.extend import core


def dot_flops(closed: core.ClosedJaxpr) -> int:
    """FLOPs of every `dot_general`, with dimensions that depend on the number of candidates taken as 1. A
    multiply-add counts as two."""
    total = 0
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            lhs, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            size = math.prod(d if isinstance(d, int) else 1 for d in result)
            total += 2 * size * math.prod(lhs[d] if isinstance(lhs[d], int) else 1 for d in contract)
    return total
