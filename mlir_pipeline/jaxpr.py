# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Flat jaxprs: function calls inlined, so that every later step sees one list of primitive equations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Call-like primitives and the parameter that holds their body. Their only effect is a name or a derivative
# rule, neither of which an inference program needs.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}

Read = Callable[[Any], Any]
EquationRule = Callable[[core.JaxprEqn, Read], list[Any] | None]
"""Given an equation and a function from its variables (or any earlier one's) to their values, the values of
its outputs, or None to bind it unchanged."""


def flat_jaxpr(function: Callable[..., Any], *avals: jax.ShapeDtypeStruct) -> core.ClosedJaxpr:
    """Traces `function` on abstract arrays and inlines every call in it."""
    return retrace(jax.make_jaxpr(function)(*avals), lambda eqn, read: None)


def retrace(closed: core.ClosedJaxpr, rule: EquationRule) -> core.ClosedJaxpr:
    """The jaxpr again, with `rule` applied to each equation and calls inlined. Dead equations are dropped."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    rewritten = jax.make_jaxpr(lambda *args: evaluate(closed.jaxpr, closed.consts, args, rule))(*avals)
    return drop_dead(rewritten)


def evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], rule: EquationRule) -> list[Any]:
    """Evaluates a jaxpr equation by equation under the current trace, replacing those that `rule` handles."""
    values: dict[core.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        body = _CALLS.get(eqn.primitive.name)
        if body is not None:
            inner = eqn.params[body]
            consts = inner.consts if isinstance(inner, core.ClosedJaxpr) else ()
            inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            outputs = evaluate(inner, consts, [read(v) for v in eqn.invars], rule)
        else:
            outputs = rule(eqn, read) or _bind(eqn, [read(v) for v in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _bind(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The equation as it is; one that depends on weights alone is computed now, unless it only repeats
    them."""
    known = all(
        isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer)
        for value in inputs
    )
    if inputs and known and eqn.primitive.name != "broadcast_in_dim":
        with jax.ensure_compile_time_eval():
            found = eqn.primitive.bind(*inputs, **eqn.params)
    else:
        found = eqn.primitive.bind(*inputs, **eqn.params)
    return list(found) if eqn.primitive.multiple_results else [found]


def drop_dead(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Removes equations and constants that no output depends on. Inputs stay."""
    jaxpr = closed.jaxpr
    live = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    kept: list[core.JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in live for v in eqn.outvars):
            kept.append(eqn)
            live.update(v for v in eqn.invars if isinstance(v, core.Var))
    constants = [(v, c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True) if v in live]
    return core.ClosedJaxpr(
        core.Jaxpr(
            constvars=[v for v, _ in constants],
            invars=jaxpr.invars,
            outvars=jaxpr.outvars,
            eqns=kept[::-1],
            effects=jaxpr.effects,
            debug_info=jaxpr.debug_info,
        ),
        [c for _, c in constants],
    )
