"""FLOPs and bytes of a jaxpr, as expressions of the number of candidates `n`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jax.extend import core

from mlir_pipeline.flops import (
    COPIES,
    ELEMENTWISE,
    PRODUCTS,
    REDUCTIONS,
    TRANSCENDENTAL,
    VIEWS,
    WINDOW_REDUCTIONS,
    bodies,
    open_jaxpr,
    product_flops,
)
from mlir_pipeline.jaxpr import module_path

_DIMENSION = "n"
# Where the branches of a condition cost different polynomials, the dearer one at this many candidates counts.
_TYPICAL_CANDIDATES = 1000


@dataclass(frozen=True)
class Cost:
    """What some equations cost. Every number is an int or an expression of `n`; `at` makes ints of them."""

    products: Any = 0
    """FLOPs of matrix products and convolutions; a multiply-add counts as two."""
    elementwise: Any = 0
    reductions: Any = 0
    transcendentals: Any = 0
    """Elements of exp, tanh, sqrt and the like; not among `flops`."""
    bytes_moved: Any = 0
    """Read and written if every equation read its operands from memory and wrote its results there; a
    compiler that fuses equations moves less."""
    uncounted: frozenset[str] = frozenset()
    """Primitives that the model has no rule for; they count as copies."""

    @property
    def flops(self) -> Any:
        """All but the transcendentals."""
        return self.products + self.elementwise + self.reductions

    def __add__(self, other: "Cost") -> "Cost":
        return _combined(self, other, lambda a, b: a + b)

    def times(self, count: Any) -> "Cost":
        """This work `count` times."""
        return _combined(self, self, lambda a, b: a * count)

    def at(self, candidates: int) -> "Cost":
        """The cost for that many candidates, in ints."""
        return _combined(self, self, lambda a, b: evaluated(a, candidates))


def cost(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Cost:
    """The cost of every equation of a jaxpr, those in calls, loops and branches included.

    A scan counts `length` times, a condition as its dearer branch. How often a `while` runs is not known
    here: its body counts once, and the cost says so in `uncounted`.
    """
    return _total(equation_cost(eqn) for eqn in open_jaxpr(jaxpr).eqns)


def cost_of_modules(jaxpr: core.ClosedJaxpr) -> dict[str, Cost]:
    """The cost by the path of the Flax module that an equation belongs to ("experts.0.hidden"); the model's
    own body is ""."""
    found: dict[str, Cost] = {}
    for eqn in jaxpr.jaxpr.eqns:
        path = module_path(eqn)
        found[path] = found.get(path, Cost()) + equation_cost(eqn)
    return found


def equation_cost(eqn: core.JaxprEqn) -> Cost:
    """The cost of one equation."""
    name, inner = eqn.primitive.name, bodies(eqn)
    if inner:
        return _control_flow(eqn, inner)
    if name in VIEWS:
        return Cost()
    moved = sum(map(_bytes, [*eqn.invars, *eqn.outvars]))
    result = sum(_size(v) for v in eqn.outvars)
    if name in PRODUCTS:
        return Cost(products=product_flops(eqn), bytes_moved=moved)
    if name in ELEMENTWISE:
        return Cost(elementwise=result, bytes_moved=moved)
    if name in TRANSCENDENTAL:
        return Cost(transcendentals=result, bytes_moved=moved)
    if name in REDUCTIONS:
        return Cost(reductions=_size(eqn.invars[0]), bytes_moved=moved)
    if name in WINDOW_REDUCTIONS:
        window = math.prod(eqn.params["window_dimensions"])
        return Cost(reductions=result * window, bytes_moved=moved)
    return Cost(bytes_moved=moved, uncounted=frozenset() if name in COPIES else frozenset({name}))


def least_bytes(closed: core.ClosedJaxpr) -> Any:
    """Bytes that any program for this jaxpr moves: inputs, weights and outputs, each once."""
    jaxpr = closed.jaxpr
    return sum(map(_bytes, [*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars]))


def weight_bytes(closed: core.ClosedJaxpr) -> int:
    """Bytes of the weights that a jaxpr holds."""
    return sum(map(_bytes, closed.jaxpr.constvars))


def evaluated(number: Any, candidates: int) -> int:
    """An int or an expression of `n`, for that many candidates."""
    # JAX has no public way to put a number into a dimension expression.
    return number if isinstance(number, int) else int(number._evaluate({_DIMENSION: candidates}))


def _control_flow(eqn: core.JaxprEqn, inner: Sequence[core.Jaxpr]) -> Cost:
    name = eqn.primitive.name
    costs = [cost(body) for body in inner]
    if name == "scan":
        return costs[0].times(eqn.params["length"])
    if name == "cond":
        return max(costs, key=lambda c: _weight(c.at(_TYPICAL_CANDIDATES)))
    if name == "while":
        return _total(costs) + Cost(uncounted=frozenset({"while (trips unknown, counted once)"}))
    if name.startswith("scatter"):
        # Its body is how two elements are combined.
        moved = sum(map(_bytes, [*eqn.invars, *eqn.outvars]))
        return Cost(elementwise=_size(eqn.invars[2]), bytes_moved=moved)
    if name.startswith("reduce"):
        moved = sum(map(_bytes, [*eqn.invars, *eqn.outvars]))
        return Cost(reductions=_size(eqn.invars[0]), bytes_moved=moved)
    return costs[0]


def _weight(found: Cost) -> int:
    return found.flops + found.transcendentals + found.bytes_moved


def _total(costs: Any) -> Cost:
    return sum(costs, start=Cost())


def _size(var: Any) -> Any:
    return math.prod(getattr(var.aval, "shape", ()))


def _bytes(var: Any) -> Any:
    return _size(var) * var.aval.dtype.itemsize


def _combined(a: Cost, b: Cost, rule: Callable[[Any, Any], Any]) -> Cost:
    numbers = [f.name for f in fields(Cost) if f.name != "uncounted"]
    found = {name: rule(getattr(a, name), getattr(b, name)) for name in numbers}
    return Cost(**found, uncounted=a.uncounted | b.uncounted)
