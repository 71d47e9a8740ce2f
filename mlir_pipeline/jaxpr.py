# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Flat jaxprs: function calls inlined and short loops unrolled, so that every later step sees one list of
primitive equations."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

UNROLL_LIMIT = 3000
"""Equations that a scan may become. Unrolled, the request's share of a loop moves to the request tower,
indices are known, and nothing waits for a condition; beyond the limit it stays a loop, because IREE's
compile time grows with the number of operations."""
_FOLDED_ELEMENTS = 4096
_FOLDED_GROWTH = 4
"""How many times its weights a value made from them may be and still be computed by the compiler. What is
larger, such as an outer sum of two vectors, costs more to load than to make."""

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

# What jaxrank/flax_module.py puts into the name stack for a submodule's call.
_MODULE_SCOPE = re.compile(r"@([\w.]+)")

Read = Callable[[Any], Any]
EquationRule = Callable[[core.JaxprEqn, Read], list[Any] | None]
"""Given an equation and a function from its variables (or any earlier one's) to their values, the values of
its outputs, or None to bind it unchanged."""


def flat_jaxpr(function: Callable[..., Any], *avals: jax.ShapeDtypeStruct) -> core.ClosedJaxpr:
    """Traces `function` on abstract arrays, inlines every call in it and unrolls scans within
    `UNROLL_LIMIT`."""
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
        with _scope(eqn):
            outputs = _evaluate_equation(eqn, read, rule)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def module_path(eqn: core.JaxprEqn) -> str:
    """The Flax module whose call made an equation, or the one that a rewrite replaced ("experts.0.hidden");
    empty for the model's own body."""
    return module_of(str(eqn.source_info.name_stack))


def module_of(name_stack: str) -> str:
    """The innermost Flax module of a name stack ("jit(f)/vmap(@experts.0)/@experts.0.hidden"); empty without
    one."""
    scopes = _MODULE_SCOPE.findall(name_stack)
    return scopes[-1] if scopes else ""


def _scope(eqn: core.JaxprEqn) -> AbstractContextManager[Any]:
    """Under this context, what replaces an equation belongs to the same Flax module."""
    path = str(eqn.source_info.name_stack)
    return jax.named_scope(path) if path else nullcontext()


def _evaluate_equation(eqn: core.JaxprEqn, read: Read, rule: EquationRule) -> list[Any]:
    body = _CALLS.get(eqn.primitive.name)
    if body is not None:
        inner = eqn.params[body]
        consts = inner.consts if isinstance(inner, core.ClosedJaxpr) else ()
        inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
        return evaluate(inner, consts, [read(v) for v in eqn.invars], rule)
    if eqn.primitive.name == "scan" and _equations(eqn) <= UNROLL_LIMIT:
        return _unrolled(eqn, [read(v) for v in eqn.invars], rule)
    if eqn.primitive.name == "cond" and not isinstance(read(eqn.invars[0]), jax.core.Tracer):
        branch = eqn.params["branches"][int(read(eqn.invars[0]))]
        return evaluate(branch.jaxpr, branch.consts, [read(v) for v in eqn.invars[1:]], rule)
    return rule(eqn, read) or bind(eqn, [read(v) for v in eqn.invars])


def _equations(eqn: core.JaxprEqn) -> int:
    """Equations that an equation becomes when every call in it is inlined and every scan unrolled."""
    bodies = [v for p in eqn.params.values() for v in (p if isinstance(p, (tuple, list)) else (p,))]
    inner = [b.jaxpr if isinstance(b, core.ClosedJaxpr) else b for b in bodies]
    sizes = [sum(map(_equations, b.eqns)) for b in inner if isinstance(b, core.Jaxpr)]
    return (sum(sizes) if sizes else 1) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)


def _unrolled(eqn: core.JaxprEqn, inputs: list[Any], rule: EquationRule) -> list[Any]:
    """A scan as `length` copies of its body."""
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    first, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, sequences = (
        inputs[:first],
        inputs[first : first + carried],
        inputs[first + carried :],
    )
    steps = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
    stacked: list[list[Any]] = [[] for _ in eqn.outvars[carried:]]
    for i in steps:
        step = [_step(sequence, i) for sequence in sequences]
        values = evaluate(body.jaxpr, body.consts, [*consts, *carry, *step], rule)
        carry = values[:carried]
        for pieces, value in zip(stacked, values[carried:], strict=True):
            pieces.append(lax.expand_dims(value, (0,)))
    order = slice(None, None, -1) if eqn.params["reverse"] else slice(None)
    return [*carry, *(lax.concatenate(pieces[order], 0) for pieces in stacked)]


def _step(sequence: Any, i: int) -> Any:
    if not isinstance(sequence, jax.core.Tracer):
        return np.asarray(sequence)[i]
    return lax.index_in_dim(sequence, i, keepdims=False)


def _is_known(eqn: core.JaxprEqn, inputs: list[Any]) -> bool:
    """Whether an equation depends on weights alone and is worth computing now: not one that only repeats
    them, except for the indices and counters of a loop and the zeros that it starts from."""
    if any(isinstance(value, jax.core.Tracer) for value in inputs) or not eqn.outvars:
        return False
    avals = [v.aval for v in eqn.outvars]
    if not all(isinstance(d, int) for a in avals for d in a.shape):
        return False
    size = sum(math.prod(a.shape) for a in avals)
    given = sum(np.size(value) for value in inputs)
    integers = all(a.dtype.kind in "iub" for a in avals)
    if eqn.primitive.name == "broadcast_in_dim":
        # One with only new axes of size 1 costs nothing, and as a constant it is seen as the weights it is.
        return size <= given or (size <= _FOLDED_ELEMENTS and (integers or given == 1))
    if not inputs:
        return eqn.primitive.name == "iota" and size <= _FOLDED_ELEMENTS
    return integers or size <= max(_FOLDED_ELEMENTS, _FOLDED_GROWTH * given)


def bind(eqn: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The equation as it is, or its value where that is known."""
    if _is_known(eqn, inputs):
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
