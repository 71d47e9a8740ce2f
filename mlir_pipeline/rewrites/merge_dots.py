# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Makes one product of narrow products of one operand: the gates of a mixture of experts, the queries, keys
and values of a small attention.

Rule: `x @ V, x @ W, ..` for weights is `x @ [V W ..]` and its slices.
Condition: the same operand and precision, and at most `MAX_WIDTH` columns each. Effect on FLOPs: none; `x` is
read once, and the columns fill the vector registers that a narrow product leaves idle. The numbers do not
change, except in the order of a sum that another tiling takes.

What comes after stays with each slice. IREE fuses bias and activation into a product; made once for all of
the columns, they leave slices of a wide array to read, and that is slower at every width.
"""

from collections import defaultdict
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.dataflow import dot_precision, is_plain_dot
from mlir_pipeline.jaxpr import Read, retrace

MAX_WIDTH = 32
"""Columns of a product that is merged. On a CPU (IREE 3.13, 512 inputs, two to eight siblings, 200 and 1,000
rows) merging is 1.5 to 1.8 times as fast with 8 columns, 1.0 to 1.1 with 16 and 32, neither faster nor slower
with 64, and slower from 128; experts of 512 columns lose a quarter."""


def merge_dots(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to a flat jaxpr."""
    weights_of = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    siblings: dict[Any, list[core.JaxprEqn]] = defaultdict(list)
    for eqn in closed.jaxpr.eqns:
        if is_plain_dot(eqn) and eqn.invars[1] in weights_of and eqn.invars[1].aval.shape[1] <= MAX_WIDTH:
            siblings[eqn.invars[0], str(dot_precision(eqn))].append(eqn)
    groups = {id(group[0]): group for group in siblings.values() if len(group) > 1}
    slices: dict[int, Any] = {}

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        group = groups.get(id(eqn))
        if group is not None:
            weights = np.concatenate([np.asarray(weights_of[e.invars[1]]) for e in group], 1)
            numbers = eqn.params["dimension_numbers"]
            merged = lax.dot_general(read(eqn.invars[0]), jnp.asarray(weights), numbers, **dot_precision(eqn))
            start = 0
            for sibling in group:
                width = sibling.invars[1].aval.shape[1]
                slices[id(sibling)] = lax.slice_in_dim(merged, start, start + width, axis=merged.ndim - 1)
                start += width
        return [slices[id(eqn)]] if id(eqn) in slices else None

    return retrace(closed, rule)
