"""The split by dataflow: what depends on request features only is the request tower, the rest is the
candidate tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend import core

from mlir_pipeline.jaxpr import drop_dead

# A request value made only by copying another one is made again in the candidate tower: the state stays
# small.
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


@dataclass(frozen=True)
class Towers:
    """The two halves of a dense program.

    `request`: `(request_block [1, R]) -> state`. `candidate`: `(*state, candidate_block [n, C]) -> outputs
    [n, ...]`. `state` are the avals of the values that cross, in order.
    """

    request: core.ClosedJaxpr
    candidate: core.ClosedJaxpr
    state: tuple[Any, ...]


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

    # Walk back from the outputs; stop where a value is the request tower's to compute.
    state: list[core.Var] = []
    in_candidate_tower: set[int] = set()
    pending = [v for v in jaxpr.outvars if isinstance(v, core.Var)]
    seen: set[core.Var] = set()
    while pending:
        var = pending.pop()
        if var in seen:
            continue
        seen.add(var)
        eqn = producer.get(var)
        if var in from_request and (eqn is None or eqn.primitive.name not in _COPIES):
            state.append(var)
        elif eqn is not None:
            in_candidate_tower.add(id(eqn))
            pending.extend(v for v in eqn.invars if isinstance(v, core.Var))
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
    )
