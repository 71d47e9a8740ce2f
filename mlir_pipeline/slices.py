# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""How many candidates a CPU takes in one call, where no costs were measured."""

import math

from jax.extend import core

LARGE, SMALL = 64, 32
"""A larger slice reads the weights fewer times for each candidate, a smaller one leaves more of the cache to
its activations and divides a small request more evenly."""

_CACHE_BYTES = 256 * 1024
"""Of one value of a slice. An L2 cache of 1 MiB holds a product's operand, its result, what is packed for it
and a part of the weights; docs/architecture.md has the measurement."""


def slice_rows(candidate: core.ClosedJaxpr) -> int:
    """`LARGE` where the widest value that a product of the candidate tower reads or makes fits into the cache
    for so many candidates, or else `SMALL`."""
    widest = max(
        (
            math.prod(d if isinstance(d, int) else 1 for d in v.aval.shape) * v.aval.dtype.itemsize
            for eqn in candidate.jaxpr.eqns
            if eqn.primitive.name == "dot_general"
            for v in (*eqn.invars, *eqn.outvars)
            if any(not isinstance(d, int) for d in v.aval.shape)
        ),
        default=0,
    )
    return LARGE if widest * LARGE <= _CACHE_BYTES else SMALL
