# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What primitives cost: FLOPs, and whether they move bytes.

A multiply-add counts as two. Elementwise primitives and reductions count one for each element, functions that
a processor approximates (exp, tanh, sqrt, ..) are counted apart, as XLA's cost analysis does.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core

PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "and", "ceil", "clamp", "clz", "div", "eq", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or",
    "population_count", "rem", "round", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "square", "sub", "xor",
})  # fmt: skip
TRANSCENDENTAL = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log1p", "logistic", "pow", "rsqrt",
    "sin", "sinh", "sqrt", "tan", "tanh",
})  # fmt: skip
REDUCTIONS = frozenset({
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_and",
    "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor",
})  # fmt: skip
WINDOW_REDUCTIONS = frozenset({
    "reduce_window_max", "reduce_window_min", "reduce_window_sum",
})  # fmt: skip
COPIES = frozenset({
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "dynamic_slice",
    "dynamic_update_slice", "gather", "iota", "pad", "reduce_precision", "rev", "scatter", "slice",
    "sort", "split", "top_k", "transpose",
})  # fmt: skip
"""Bytes, no FLOPs. The comparisons of a sort are not counted."""
VIEWS = frozenset({
    "bitcast_convert_type", "expand_dims", "optimization_barrier", "reshape", "squeeze",
    "stop_gradient",
})  # fmt: skip
"""The same bytes under another shape."""


def dot_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """FLOPs of every matrix product and convolution, with dimensions that depend on the number of candidates
    taken as 1. A multiply-add counts as two.

    The body of a scan counts `length` times, a condition as its dearer branch. How often a `while` runs is
    not known: what it repeats counts once, and `unknown_loops` says how many such loops there are.
    """
    total = 0
    for eqn in open_jaxpr(jaxpr).eqns:
        inner = [dot_flops(body) for body in bodies(eqn)]
        if eqn.primitive.name == "scan":
            total += inner[0] * _number(eqn.params["length"])
        elif eqn.primitive.name == "cond":
            total += max(inner)
        elif inner:
            total += sum(inner) if eqn.primitive.name == "while" else inner[0]
        elif eqn.primitive.name in PRODUCTS:
            total += product_flops(eqn, _number)
    return total


def unknown_loops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Loops with matrix products whose number of trips the data decide."""
    total = 0
    for eqn in open_jaxpr(jaxpr).eqns:
        inner = bodies(eqn)
        if eqn.primitive.name == "while" and any(map(dot_flops, inner)):
            total += 1
        total += sum(map(unknown_loops, inner))
    return total


def bodies(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The jaxprs that an equation runs: of a call, a loop, or branches."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, (tuple, list)) else (p,))]
    return [open_jaxpr(v) for v in values if isinstance(v, (core.ClosedJaxpr, core.Jaxpr))]


def open_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    """A jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _number(dimension: Any) -> int:
    return dimension if isinstance(dimension, int) else 1


def product_flops(eqn: core.JaxprEqn, number: Callable[[Any], Any] = lambda dimension: dimension) -> Any:
    """FLOPs of a `dot_general` or `conv_general_dilated`: an int, or an expression of the number of
    candidates. `number` is what a dimension counts as."""
    result = math.prod(map(number, eqn.outvars[0].aval.shape))
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return 2 * result * math.prod(number(eqn.invars[0].aval.shape[d]) for d in contract)
    # Each output element reads its window of the input channels of its group. Padding counts as data.
    kernel = eqn.invars[1].aval.shape
    spec = eqn.params["dimension_numbers"].rhs_spec
    return 2 * result * math.prod(number(kernel[d]) for d in spec[1:])


def elementwise_operations(closed: core.ClosedJaxpr, candidates: int = 1000) -> int:
    """Elements that elementwise equations compute, with dimensions that depend on the number of candidates
    taken as `candidates`."""
    counted = ELEMENTWISE | TRANSCENDENTAL
    results = [v.aval.shape for e in closed.jaxpr.eqns if e.primitive.name in counted for v in e.outvars]
    return sum(math.prod(d if isinstance(d, int) else candidates for d in shape) for shape in results)
