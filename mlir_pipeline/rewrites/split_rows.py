# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Keeps apart the rows of a concatenation of the request's steps with a candidate's.

A transformer over `concat(history, candidate)` along the step axis sees the same history rows for every
candidate. Rules, with `H` the repeated rows and `c` a candidate's own:

    f(concat(H, c))  =  concat(f(H), f(c))            elementwise, over features, transposed, head split

    dot(concat(H, c), W)  =  concat(dot(H, W), dot(c, W))

    concat(q, r) @ concat(k, l)^T  =  [[q k^T, q l^T], [r k^T, r l^T]]

    concat(a, b) @ concat(v, w)  =  a v + b w         contraction over the steps

    exp(s - m)  =  exp(s - n) exp(n - m)              for repeated s, m the row maximum over all
                                                      steps, n the maximum over those of s

The last one merges the two blocks of a softmax: sums and products over the steps see `exp(s - n)`, which is
the same for every candidate, and the factor `exp(n - m)`, of which there is one for each row, multiplies
their results. Both factors are at most 1.

Condition: what is concatenated repeats some of its parts over the candidates, and FLOPs of the candidate
tower fall. Where an operation mixes repeated rows with a candidate's own, the concatenation is made there.
Effect on FLOPs of the first attention over `T` steps of width `D`: from `2 C T D (3 D + 2 T)` to
`2 C D (3 D + 3 T)`, for C candidates. Sums are added in another order, so scores move by float32 rounding.
"""

from typing import Any

from jax.extend import core

from mlir_pipeline.flops import dot_flops
from mlir_pipeline.jaxpr import Read, retrace
from mlir_pipeline.pieces.grid import Grid, elements, repeating, unrepeated
from mlir_pipeline.pieces.operations import concatenated, on_pieces
from mlir_pipeline.split import split

_THROUGH_MAXIMUM = {"broadcast_in_dim", "stop_gradient", "reshape", "squeeze", "expand_dims", "copy", "max"}


def split_rows(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to every concatenation of a flat jaxpr for which they pay."""
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}
    seeds = {eqn.outvars[0] for eqn in closed.jaxpr.eqns if _repeats_rows(eqn, producer)}
    if not seeds:
        return closed
    order = {v: i for i, v in enumerate(producer)}
    cost = _cost(closed)
    best = _rewritten(closed, producer, seeds)
    if _cost(best) >= cost:
        return closed
    for seed in sorted(seeds, key=order.__getitem__):
        without = _rewritten(closed, producer, seeds - {seed})
        if _cost(without) <= _cost(best):
            best, seeds = without, seeds - {seed}
    return best


def _cost(closed: core.ClosedJaxpr) -> int:
    return dot_flops(split(closed).candidate)


def _repeats_rows(eqn: core.JaxprEqn, producer: dict[core.Var, core.JaxprEqn]) -> bool:
    """Whether an equation concatenates parts that repeat rows with others that do not, along an axis that is
    not that of the features: those are `hoist_dots`'s."""
    if eqn.primitive.name != "concatenate" or eqn.params["dimension"] == eqn.outvars[0].aval.ndim - 1:
        return False
    repeated = [repeating(v, producer) is not None for v in eqn.invars]
    return any(repeated) and not all(repeated)


def _rewritten(
    closed: core.ClosedJaxpr, producer: dict[core.Var, core.JaxprEqn], seeds: set[core.Var]
) -> core.ClosedJaxpr:
    grids: dict[core.Var, Grid] = {}

    def operand(var: Any, read: Read) -> Any:
        """A grid, or an array that has size 1 where it only repeats."""
        if isinstance(var, core.Literal) or var not in grids:
            broadcast = repeating(var, producer)
            value = read(var)
            return value if broadcast is None else unrepeated(broadcast, read(broadcast.invars[0]))
        return grids[var]

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if len(eqn.outvars) != 1:
            return None
        (result,) = eqn.outvars
        if result in seeds:
            grids[result] = concatenated([operand(v, read) for v in eqn.invars], eqn)
            return None
        own = [grids[v] for v in eqn.invars if not isinstance(v, core.Literal) and v in grids]
        if not own:
            return None
        repeats = any(g.repeats() for g in own)
        if eqn.primitive.name == "dot_general" and not repeats:
            return None
        operands = [operand(v, read) for v in eqn.invars]
        grid = on_pieces(eqn, operands, _subtracts_maximum(eqn, producer))
        if grid is None:
            return None
        if not grid.repeats() and any(
            not isinstance(o, Grid) and elements(o.shape) == elements(grid.shape) for o in operands
        ):
            return None
        grids[result] = grid
        return [grid.whole()] if repeats and grid.saved else None

    return retrace(closed, rule)


def _subtracts_maximum(eqn: core.JaxprEqn, producer: dict[core.Var, core.JaxprEqn]) -> bool:
    """Whether an equation is `s - max(s)`, as in a softmax."""
    if eqn.primitive.name != "sub":
        return False
    whole, var = eqn.invars
    while not isinstance(var, core.Literal) and (above := producer.get(var)) is not None:
        variables = [v for v in above.invars if not isinstance(v, core.Literal)]
        if above.primitive.name == "reduce_max":
            return variables[0] is whole
        # The `initial` of a maximum over axes is a literal.
        if above.primitive.name not in _THROUGH_MAXIMUM or len(variables) != 1:
            return False
        (var,) = variables
    return False
