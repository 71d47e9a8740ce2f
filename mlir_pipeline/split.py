# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""The split by dataflow: what depends on request features only is the request tower, the rest is the
candidate tower. The values that cross are the *state*.

State is what a prepared request costs in memory, so a value crosses only where it is worth its bytes. Made
again in the candidate tower, from other state:

- what copies a request value (broadcast, reshape, transpose, ..);
- what at most `_MAX_STEPS` slices or equations of simple arithmetic make from values that cross anyway and
  others of at most a quarter of its bytes (a mask of all pairs of steps from a mask of steps, an outer sum
  from its two operands, a step of a sequence).

The arithmetic may be fused into a candidate's own and so be done for each candidate. It is therefore one
operation per element, never an exponential, a division or a sum over elements.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend import core

from mlir_pipeline.jaxpr import drop_dead, module_path

_COPIES = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "copy",
    "stop_gradient",
    "convert_element_type",
}
_SIMPLE = _COPIES | {
    *("slice", "add", "sub", "mul", "max", "min", "neg", "and", "or", "xor", "not", "select_n"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
}
_MAX_STEPS = 4
_SMALLER = 4
"""A value is made again from values that have this many times fewer bytes."""


@dataclass(frozen=True)
class Towers:
    """The two halves of a dense program.

    `request`: `(request_block [1, R]) -> state`. `candidate`: `(*state, candidate_block [n, C]) -> outputs
    [n, ...]`. `state` are the avals of the values that cross, in order, and `names` what they are called: the
    module and the primitive that make each ("attention.hidden/dot_general"), with a number where that is not
    unique ("attention.hidden/dot_general.1").
    """

    request: core.ClosedJaxpr
    candidate: core.ClosedJaxpr
    state: tuple[Any, ...]
    names: tuple[str, ...]


def split(closed: core.ClosedJaxpr) -> Towers:
    """Splits a flat jaxpr of `(request_block, candidate_block) -> outputs`.

    Every output belongs to the candidate tower, also one that no candidate feature reaches. Equations that
    depend on weights alone are copied to whichever tower uses them.
    """
    jaxpr = closed.jaxpr
    request_in, candidate_in = jaxpr.invars
    from_request, from_candidate = {request_in}, {candidate_in}
    for eqn in jaxpr.eqns:
        inputs = {v for v in eqn.invars if isinstance(v, core.Var)}
        repeats_rows = any(not isinstance(d, int) for v in eqn.outvars for d in getattr(v.aval, "shape", ()))
        if inputs & from_candidate or repeats_rows:
            from_candidate.update(eqn.outvars)
        elif inputs & from_request:
            from_request.update(eqn.outvars)
    producer = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    only_small = _only_small(jaxpr)

    # Walk back from the outputs; stop where a value is the request tower's to compute.
    def walk(again: frozenset[core.Var]) -> tuple[set[core.Var], set[int]]:
        """The state, and the equations of the candidate tower, if it makes the values `again`."""
        state: set[core.Var] = set()
        equations: set[int] = set()
        pending = [v for v in jaxpr.outvars if isinstance(v, core.Var)]
        seen: set[core.Var] = set()
        while pending:
            var = pending.pop()
            if var in seen:
                continue
            seen.add(var)
            eqn = producer.get(var)
            copied = eqn is not None and eqn.primitive.name in _COPIES and var not in only_small
            if var in from_request and not copied and var not in again:
                state.add(var)
            elif eqn is not None:
                equations.add(id(eqn))
                pending.extend(v for v in eqn.invars if isinstance(v, core.Var))
        return state, equations

    stored, in_candidate_tower = walk(frozenset())
    fewer, with_arithmetic = walk(_made_again(stored, producer, from_request))
    if _bytes(fewer) < _bytes(stored) or len(fewer) < len(stored):
        stored, in_candidate_tower = fewer, with_arithmetic
    state = list(stored)
    order = {v: i for i, v in enumerate([*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)])}
    state.sort(key=lambda v: order[v])

    def tower(
        invars: Sequence[core.Var], outvars: Sequence[Any], eqns: list[core.JaxprEqn]
    ) -> core.ClosedJaxpr:
        flat = core.Jaxpr(
            constvars=jaxpr.constvars,
            invars=list(invars),
            outvars=list(outvars),
            eqns=eqns,
            effects=jaxpr.effects,
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        return drop_dead(core.ClosedJaxpr(flat, closed.consts))

    return Towers(
        request=tower([request_in], state, [e for e in jaxpr.eqns if not set(e.outvars) & from_candidate]),
        candidate=tower(
            [*state, candidate_in], jaxpr.outvars, [e for e in jaxpr.eqns if id(e) in in_candidate_tower]
        ),
        state=tuple(v.aval for v in state),
        names=_names(state, producer),
    )


def _made_again(
    stored: set[core.Var], producer: Mapping[core.Var, core.JaxprEqn], from_request: set[core.Var]
) -> frozenset[core.Var]:
    """The request values to make in the candidate tower, beside those that are only copied."""
    kept, again = set(stored), set[core.Var]()
    for var in sorted(stored, key=lambda v: _bytes([v]), reverse=True):
        leaves, made = _sources(var, kept - {var}, producer, from_request, _MAX_STEPS)
        if var not in leaves and _SMALLER * _bytes(leaves - kept) <= _bytes([var]):
            kept = kept - {var} | leaves
            again |= made
    return frozenset(again)


def _sources(
    var: core.Var,
    kept: set[core.Var],
    producer: Mapping[core.Var, core.JaxprEqn],
    from_request: set[core.Var],
    steps: int,
) -> tuple[set[core.Var], set[core.Var]]:
    """The request values that `var` is best made from, and those made on the way, `var` included."""
    eqn = producer.get(var)
    if var not in from_request:
        # Weights, and what is made of them alone, are in both towers.
        return set(), set()
    if var in kept or eqn is None or eqn.primitive.name not in _SIMPLE or steps == 0:
        return {var}, set()
    leaves, made = set[core.Var](), {var}
    left = steps if eqn.primitive.name in _COPIES else steps - 1
    for operand in eqn.invars:
        if isinstance(operand, core.Var):
            more, on_the_way = _sources(operand, kept, producer, from_request, left)
            if _bytes(more - kept) > _bytes([operand]):
                more, on_the_way = {operand}, set()
            leaves |= more
            made |= on_the_way
    return leaves, made


def _bytes(values: Iterable[core.Var]) -> int:
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in values)


def _names(state: Sequence[core.Var], producer: Mapping[core.Var, core.JaxprEqn]) -> tuple[str, ...]:
    names, met = [], Counter[str]()
    for var in state:
        eqn = producer.get(var)
        name = "request_block" if eqn is None else eqn.primitive.name
        path = "" if eqn is None else module_path(eqn)
        name = f"{path}/{name}" if path else name
        names.append(f"{name}.{met[name]}" if met[name] else name)
        met[name] += 1
    return tuple(names)


def _only_small(jaxpr: core.Jaxpr) -> set[core.Var]:
    """Values of a smaller type that are all that anyone uses of a larger one: state is stored in their
    type."""
    uses: dict[Any, list[core.JaxprEqn | None]] = {}
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if isinstance(v, core.Var):
                uses.setdefault(v, []).append(eqn)
    for v in jaxpr.outvars:
        uses.setdefault(v, []).append(None)
    return {
        eqn.outvars[0]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "convert_element_type"
        and uses[eqn.invars[0]] == [eqn]
        and eqn.outvars[0].aval.dtype.itemsize < eqn.invars[0].aval.dtype.itemsize
    }
