# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What several rewrites ask of a flat jaxpr: who makes a value, who reads it, which primitives work element
by element."""

from collections import defaultdict
from typing import Any

from jax.extend import core

ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})  # fmt: skip
"""Primitives whose result at one place depends on the operands at that place alone. An operand has the
result's rank with some axes of size 1, or rank 0."""

REDUCTIONS = frozenset(
    ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"]
)
"""Primitives that drop the axes of their parameter `axes`."""


def producers(jaxpr: core.Jaxpr) -> dict[core.Var, core.JaxprEqn]:
    """The equation that makes each value."""
    return {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}


def readers(jaxpr: core.Jaxpr) -> dict[core.Var, list[core.JaxprEqn | None]]:
    """The equations that read each value, one entry for each operand; None for an output of the jaxpr."""
    found: dict[core.Var, list[core.JaxprEqn | None]] = defaultdict(list)
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if isinstance(v, core.Var):
                found[v].append(eqn)
    for v in jaxpr.outvars:
        if isinstance(v, core.Var):
            found[v].append(None)
    return found


def is_plain_dot(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is `x @ w` for a matrix `w`: `[.., K]` and `[K, N]` to `[.., N]`."""
    if eqn.primitive.name != "dot_general":
        return False
    lhs, rhs = (v.aval for v in eqn.invars)
    contract, (batch, _) = eqn.params["dimension_numbers"]
    return not batch and rhs.ndim == 2 and tuple(map(tuple, contract)) == ((lhs.ndim - 1,), (0,))


def dot_precision(eqn: core.JaxprEqn) -> dict[str, Any]:
    """The parameters of a `dot_general` that say how it computes."""
    return {key: eqn.params[key] for key in ("precision", "preferred_element_type")}
