# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Keeps a reduction apart from an op that reads it along two axes, as `s[:, None] * s[None]` with `s =
x.sum(0)`.

Rule: such a reduction goes through an optimization barrier. Effect on FLOPs: none. IREE 3.13 fuses the
reduction into its reader and computes one of the two operands wrongly, on every optimization level
(`tests/mlir_pipeline/test_workarounds.py` notices when it no longer does).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jax import lax
from jax.extend import core

from mlir_pipeline.jaxpr import Read, retrace

Axes = tuple[Any, ...]
"""Where each axis of a reduction lies in a value made from it; None for an axis of size 1."""
_Readings = Mapping[core.Var, frozenset[Axes]]

_REDUCTIONS = {
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "argmax",
    "argmin",
    "dot_general",
}


def separate_reductions(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to every such reduction of a flat jaxpr."""
    crossed = _crossed(closed.jaxpr)
    if not crossed:
        return closed

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if not crossed.intersection(eqn.outvars):
            return None
        (value,) = eqn.outvars
        found = eqn.primitive.bind(*map(read, eqn.invars), **eqn.params)
        return [lax.optimization_barrier(found) if value.aval.ndim else found]

    return retrace(closed, rule)


def _crossed(jaxpr: core.Jaxpr) -> set[core.Var]:
    """Reductions that some op reads along different axes."""
    readings: dict[core.Var, _Readings] = {}
    crossed: set[core.Var] = set()
    for eqn in jaxpr.eqns:
        operands = [readings.get(v, {}) for v in eqn.invars if isinstance(v, core.Var)]
        merged = _merged(operands)
        crossed.update(root for root, axes in merged.items() if len(axes) > 1)
        if len(eqn.outvars) != 1:
            continue
        (result,) = eqn.outvars
        if eqn.primitive.name in _REDUCTIONS:
            own = tuple(axis if size != 1 else None for axis, size in enumerate(result.aval.shape))
            readings[result] = {result: frozenset([own])}
        elif (moves := _moves(eqn)) is not None:
            readings[result] = {
                root: frozenset(
                    tuple(None if a is None else moves.get(a, ("lost", a)) for a in axes) for axes in ways
                )
                for root, ways in merged.items()
            }
    return crossed


def _merged(operands: Iterable[_Readings]) -> dict[core.Var, frozenset[Axes]]:
    merged: dict[core.Var, frozenset[Axes]] = {}
    for reading in operands:
        for root, axes in reading.items():
            merged[root] = merged.get(root, frozenset()) | axes
    return merged


def _moves(eqn: core.JaxprEqn) -> dict[Any, Any] | None:
    """Where an op puts each axis of its operand; None for one that IREE does not fuse with what it reads."""
    (result,) = eqn.outvars
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    name = eqn.primitive.name
    if name == "broadcast_in_dim":
        return dict(enumerate(eqn.params["broadcast_dimensions"]))
    if name == "transpose":
        return {int(source): axis for axis, source in enumerate(eqn.params["permutation"])}
    if name in ("reshape", "squeeze"):
        left, right = ([a for a, d in enumerate(s) if d != 1] for s in (shape, result.aval.shape))
        if [shape[a] for a in left] != [result.aval.shape[a] for a in right]:
            return {a: (id(eqn), a) for a in range(len(shape))}
        return dict(zip(left, right, strict=True))
    each = all(_repeats_to(v.aval.shape, result.aval.shape) for v in eqn.invars)
    return {a: a for a in range(result.aval.ndim)} if each else None


def _repeats_to(shape: tuple[Any, ...], result: tuple[Any, ...]) -> bool:
    """Whether an operand has the result's shape, but for axes of size 1; a scalar is repeated too."""
    return not shape or (
        len(shape) == len(result) and all(a in (1, b) for a, b in zip(shape, result, strict=True))
    )
