# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Folds multiplications and additions by weights, as inference batch normalization has them, into each other
and into the matrix products beside them.

Rules, for `a`, `b`, `c` that hold one weight for each feature (the last axis) or one for all of them:

    ((x - m) * r) * g + c  =  x * (r * g) + (c - m * r * g)     any chain of mul, add, sub, div and neg

    dot(x * a + b, W)      =  dot(x, a[:, None] * W) + b @ W

    (dot(x, W) + c) * a    =  dot(x, W * a) + c * a

Conditions: float32; a chain becomes shorter; a product takes in what stands before it only if all readers of
it are such products, and what stands after it only if nobody else reads it. Effect on FLOPs: of the products
none; of elementwise operations, all of a batch normalization beside a product, but for one addition.

Rounding: `x * a + b` has an error of float32's precision times `|b|`, where `(x - m) * r` has none of it when
x is close to m. So the rules are applied only where the offset is at most `MAX_OFFSET` (for a product, the
root of the sum of squares of what it adds up): a mean of more than 16 standard deviations stays a
subtraction. Where the value is compared, rounded or counted, nothing is folded: a step would see the error.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.dataflow import ELEMENTWISE, dot_precision, is_plain_dot, producers, readers
from mlir_pipeline.flops import elementwise_operations
from mlir_pipeline.jaxpr import Read, retrace

MAX_OFFSET = 16.0
"""Largest folded offset. float32 rounds 16 to within 1e-6."""

_CHAIN = {"mul", "add", "sub", "div", "neg", "add_any"}
_STEPS = {
    "floor", "ceil", "round", "rem", "sign", "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "nextafter",
    "argmax", "argmin", "bitcast_convert_type",
}  # fmt: skip
_MOVES = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "transpose",
    "concatenate",
    "slice",
    "split",
    "gather",
    "rev",
}


@dataclass(frozen=True)
class _Affine:
    """A value that is `root * scale + offset`."""

    root: core.Var
    scale: np.ndarray
    offset: np.ndarray
    """Both float64, `[]` or `[F]`."""
    equations: int
    """Elementwise equations from the root to the value."""
    private: bool
    """Whether the root is read by the chain alone; what lies between always is."""

    @property
    def cost(self) -> int:
        """Elementwise equations that it takes."""
        return int((self.scale != 1).any()) + int((self.offset != 0).any())

    @property
    def is_safe(self) -> bool:
        return bool(np.isfinite(self.scale).all() and (np.abs(self.offset) <= MAX_OFFSET).all())


def fold_affine(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules as long as they leave fewer elementwise operations."""
    while True:
        folded = _once(closed)
        if elementwise_operations(folded) >= elementwise_operations(closed):
            return closed
        closed = folded


def _once(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    jaxpr = closed.jaxpr
    weights_of = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    producer, read_by = producers(jaxpr), readers(jaxpr)
    stepped = _stepped(jaxpr)
    chains = _chains(closed, stepped)

    def before(eqn: core.JaxprEqn) -> tuple[_Affine, np.ndarray, np.ndarray] | None:
        """For a product of a chain: the chain, the scaled weights `[K, N]`, what it adds `[N]`."""
        if not is_plain_dot(eqn) or eqn.invars[1] not in weights_of:
            return None
        chain = chains.get(eqn.invars[0])
        if chain is None:
            return None
        weights = np.asarray(weights_of[eqn.invars[1]], np.float64)
        scale, offset = (np.broadcast_to(v, weights.shape[:1])[:, None] for v in (chain.scale, chain.offset))
        added = offset * weights
        if not np.isfinite(scale).all() or np.sqrt((added**2).sum(0)).max(initial=0) > MAX_OFFSET:
            return None
        return chain, weights * scale, added.sum(0)

    def folds_before(var: Any) -> bool:
        return all(r is not None and r.invars[0] is var and before(r) is not None for r in read_by[var])

    def takes_bias(eqn: core.JaxprEqn) -> bool:
        """Whether a product goes into a chain, which an addition joins for nothing."""
        (product,) = eqn.outvars
        return all(r is not None and r.outvars[0] in chains for r in read_by[product])

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name == "dot_general":
            found = before(eqn)
            if found is None or not folds_before(eqn.invars[0]):
                return None
            chain, weights, added = found
            if added.any() and not takes_bias(eqn) and weights.shape[1] > weights.shape[0]:
                return None
            return [_plus(_dot(eqn, read(chain.root), weights), added)]
        chain = chains.get(eqn.outvars[0]) if len(eqn.outvars) == 1 else None
        if chain is None or chain.equations < 2 and chain.cost == 1 and (chain.scale == 1).all():
            return None
        product = producer.get(chain.root)
        if product is not None and chain.private and is_plain_dot(product) and chain.is_safe:
            weights = weights_of.get(product.invars[1])
            if weights is not None and int((chain.offset != 0).any()) < chain.equations:
                value = _dot(product, read(product.invars[0]), np.asarray(weights, np.float64) * chain.scale)
                return [_plus(value, chain.offset)]
        if chain.cost < chain.equations:
            return [_plus(_times(read(chain.root), chain.scale), chain.offset)]
        return None

    return retrace(closed, rule)


def _chains(closed: core.ClosedJaxpr, stepped: set[core.Var]) -> dict[Any, _Affine]:
    """The longest safe chain behind each value that has one."""
    weights_of = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    producer, read_by = producers(closed.jaxpr), readers(closed.jaxpr)

    def per_feature(atom: Any) -> np.ndarray | None:
        """An operand's weights as `[]` or `[F]`; None if it has other axes or is not known."""
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, np.float64) if np.ndim(atom.val) == 0 else None
        if atom in weights_of:
            value = np.asarray(weights_of[atom], np.float64)
            if value.size == 1:
                return value.reshape(())
            return value.reshape(-1) if value.shape[-1] == value.size else None
        eqn = producer.get(atom)
        if eqn is None or eqn.primitive.name != "broadcast_in_dim":
            return None
        value = per_feature(eqn.invars[0])
        if value is None or value.ndim == 0:
            return value
        last = eqn.params["broadcast_dimensions"][-1] == atom.aval.ndim - 1
        return value if last and atom.aval.shape[-1] == len(value) else None

    chains: dict[Any, _Affine] = {}
    for eqn in closed.jaxpr.eqns:
        name = eqn.primitive.name
        if name not in _CHAIN or eqn.outvars[0].aval.dtype != np.float32:
            continue
        (result,) = eqn.outvars
        known = [per_feature(v) for v in eqn.invars]
        unknown = [i for i, k in enumerate(known) if k is None]
        if len(unknown) != 1 or result in stepped:
            continue
        (at,) = unknown
        x = eqn.invars[at]
        if x.aval.shape != result.aval.shape or name == "div" and at == 1:
            continue
        weights = known[1 - at] if len(known) == 2 else None
        scale, offset = _step(name, at, weights)
        alone = len(read_by[x]) == 1
        own = _Affine(x, scale, offset, 1, alone)
        # What others read too is there anyway, and a chain of its own would keep more than it alive.
        inner = chains.get(x) if alone else None
        if inner is not None:
            scale, offset = inner.scale * scale, inner.offset * scale + offset
            whole = _Affine(inner.root, scale, offset, inner.equations + 1, inner.private)
            own = whole if whole.is_safe else own
        if np.isfinite(own.scale).all() and np.isfinite(own.offset).all():
            chains[result] = own
    return chains


def _step(name: str, at: int, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`(scale, offset)` of one equation whose operand `at` is the value and whose other one is weights."""
    one, zero = np.ones(()), np.zeros(())
    if weights is None:
        return -one, zero
    if name == "mul":
        return weights, zero
    if name == "div":
        with np.errstate(divide="ignore"):
            return 1 / weights, zero
    if name == "sub":
        return (one, -weights) if at == 0 else (-one, weights)
    return one, weights


def _stepped(jaxpr: core.Jaxpr) -> set[core.Var]:
    """Values of which something takes a step: a comparison, a rounding, an integer. Not those of `x > 0 ? x :
    f(x)`, which is the same on both sides of the step."""
    producer_readers = readers(jaxpr)
    found: set[core.Var] = set()
    for eqn in reversed(jaxpr.eqns):
        name = eqn.primitive.name
        steps = name in _STEPS or name == "convert_element_type" and eqn.params["new_dtype"] != np.float32
        passes = name in ELEMENTWISE or name in _MOVES
        if not steps and passes and not any(v in found for v in eqn.outvars):
            continue
        if not steps and not passes:
            continue
        for v in eqn.invars:
            if isinstance(v, core.Var) and not (
                name in ("ge", "gt", "le", "lt") and _bends(eqn, v, producer_readers)
            ):
                found.add(v)
    return found


def _bends(eqn: core.JaxprEqn, value: core.Var, read_by: Any) -> bool:
    """Whether a comparison of `value` with zero only chooses between `value` and a function of it."""
    others = [v for v in eqn.invars if v is not value]
    zero = len(others) == 1 and isinstance(others[0], core.Literal) and others[0].val == 0
    return zero and all(
        r is not None and r.primitive.name == "select_n" and value in r.invars[1:]
        for r in read_by[eqn.outvars[0]]
    )


def _dot(eqn: core.JaxprEqn, x: Any, weights: np.ndarray) -> Any:
    numbers = eqn.params["dimension_numbers"]
    return lax.dot_general(x, jnp.asarray(weights, np.float32), numbers, **dot_precision(eqn))


def _times(x: Any, scale: np.ndarray) -> Any:
    return lax.mul_p.bind(x, _spread(scale, x.ndim)) if (scale != 1).any() else x


def _plus(x: Any, offset: np.ndarray) -> Any:
    return lax.add_p.bind(x, _spread(offset, x.ndim)) if (offset != 0).any() else x


def _spread(weights: np.ndarray, rank: int) -> np.ndarray:
    """Weights of `[]` or `[F]` as an operand of an elementwise op of this rank."""
    return np.asarray(weights, np.float32).reshape((1,) * (rank - 1) + (-1,) if weights.ndim else ())
