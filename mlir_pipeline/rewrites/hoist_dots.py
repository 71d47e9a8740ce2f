# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Moves the part of a matrix product that does not depend on the candidate out of the candidate's work.

Rules, for `W` that depends on weights only and a contraction over the last axis of the left side:

    dot(concat(a, b, ..), W)  =  dot(a, W_a) + dot(b, W_b) + ..

    dot(broadcast(a), W)  =  broadcast(dot(a, W))

    dot(a ± b, W)  =  dot(a, W) ± dot(b, W)     where a and b are themselves parts of the same concat

Condition: a product is distributed only where some part repeats rows, so that its share is computed once for
all of them; the parts that do not repeat stay one product, `dot(concat(c, d, ..), W_cd..)`. Effect on target
attention's `concat(q, k, q - k, q * k) @ W` over C candidates and T steps of width D: from `4 C T D`
rows-times-columns to `C T D` for `q * k`, plus `2 C D` for q and `2 T D` for k. Sums are added in another
order, so scores move by float32 rounding.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace


def hoist_dots(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to every `dot_general` of a flat jaxpr whose right side is a matrix of weights."""
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}
    weights_of = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))

    def source(var: Any) -> core.JaxprEqn | None:
        return None if isinstance(var, core.Literal) else producer.get(var)

    def rows(var: Any) -> int:
        """Rows of `var` that are really different: its size without the last axis, looking through
        broadcasts. The number of candidates counts as many."""
        eqn = source(var)
        if eqn is not None and _keeps_last_axis(eqn):
            return rows(eqn.invars[0])
        return math.prod(d if isinstance(d, int) else 1 << 20 for d in var.aval.shape[:-1])

    def root(var: Any) -> Any:
        """The variable whose rows `var` repeats."""
        eqn = source(var)
        return root(eqn.invars[0]) if eqn is not None and _keeps_last_axis(eqn) else var

    def pays(var: Any, siblings: frozenset[int] = frozenset()) -> bool:
        eqn = source(var)
        if eqn is None or var.aval.ndim < 2:
            return False
        if eqn.primitive.name == "concatenate":
            if eqn.params["dimension"] != var.aval.ndim - 1:
                return False
            beside = frozenset(id(root(v)) for v in eqn.invars)
            return any(rows(v) < _size(var) or pays(v, beside) for v in eqn.invars)
        if eqn.primitive.name in ("add", "sub"):
            # Distributing a difference of large numbers would lose what they share. Where both stand beside
            # it, the source model already adds their products, and the rounding is no other than its own.
            width = var.aval.shape[-1]
            plain = all(
                not isinstance(v, core.Literal) and v.aval.ndim == var.aval.ndim and v.aval.shape[-1] == width
                for v in eqn.invars
            )
            known = plain and all(id(root(v)) in siblings for v in eqn.invars)
            return known and any(rows(v) < _size(var) for v in eqn.invars)
        return _keeps_last_axis(eqn)

    def dot(
        var: Any, weights: Any, read: Read, precision: dict[str, Any], siblings: frozenset[int] = frozenset()
    ) -> Any:
        """`var @ weights`, with the rules applied; `weights` is `[K, N]`."""
        if not pays(var, siblings):
            numbers = (((var.aval.ndim - 1,), (0,)), ((), ()))
            return lax.dot_general(read(var), jnp.asarray(weights), numbers, **precision)
        eqn = producer[var]
        shape = (*var.aval.shape[:-1], weights.shape[1])
        if eqn.primitive.name == "broadcast_in_dim":
            inner = dot(eqn.invars[0], weights, read, precision)
            return lax.broadcast_in_dim(inner, shape, eqn.params["broadcast_dimensions"])
        if eqn.primitive.name in ("add", "sub"):
            left, right = (dot(v, weights, read, precision) for v in eqn.invars)
            return eqn.primitive.bind(left, right)
        # Parts that repeat rows in the same way are added up before they are repeated; parts that are all the
        # candidate's stay one product.
        beside = frozenset(id(root(v)) for v in eqn.invars)
        repeated: dict[Any, Any] = {}
        together: list[tuple[Any, Any]] = []
        terms, start = [], 0
        for part in eqn.invars:
            width = part.aval.shape[-1]
            piece = weights[start : start + width]
            start += width
            producing = source(part)
            if producing is not None and _keeps_last_axis(producing):
                inner = dot(producing.invars[0], piece, read, precision)
                way = (producing.params["broadcast_dimensions"], inner.shape)
                repeated[way] = lax.add_p.bind(repeated[way], inner) if way in repeated else inner
            elif pays(part, beside):
                terms.append(dot(part, piece, read, precision, beside))
            else:
                together.append((read(part), piece))
        if together:
            parts, pieces = [part for part, _ in together], [piece for _, piece in together]
            whole = lax.concatenate(parts, parts[0].ndim - 1) if len(parts) > 1 else parts[0]
            numbers = (((whole.ndim - 1,), (0,)), ((), ()))
            terms.append(lax.dot_general(whole, jnp.asarray(np.concatenate(pieces)), numbers, **precision))
        terms.extend(lax.broadcast_in_dim(total, shape, dims) for (dims, _), total in repeated.items())
        return functools.reduce(lax.add_p.bind, terms)

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name != "dot_general":
            return None
        lhs, rhs = eqn.invars
        (contract, batch) = eqn.params["dimension_numbers"]
        plain = tuple(map(tuple, contract)) == ((lhs.aval.ndim - 1,), (0,)) and not batch[0]
        if not plain or rhs.aval.ndim != 2 or rhs not in weights_of or not pays(lhs):
            return None
        precision = {key: eqn.params[key] for key in ("precision", "preferred_element_type")}
        return [dot(lhs, np.asarray(weights_of[rhs]), read, precision)]

    return retrace(closed, rule)


def _keeps_last_axis(eqn: core.JaxprEqn) -> bool:
    """Whether the equation repeats rows but leaves each row's last axis as it is."""
    if eqn.primitive.name != "broadcast_in_dim":
        return False
    (operand, *_), (result,) = eqn.invars, eqn.outvars
    positions = eqn.params["broadcast_dimensions"]
    return (
        operand.aval.ndim >= 1
        and positions[-1] == result.aval.ndim - 1
        and operand.aval.shape[-1] == result.aval.shape[-1]
    )


def _size(var: Any) -> int:
    return math.prod(d if isinstance(d, int) else 1 << 20 for d in var.aval.shape[:-1])
