# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Computes what is the same along an axis once, and repeats it afterwards.

Rules, for values that are repeated along some axes:

    op(broadcast(a), broadcast(b))        =  broadcast(op(a, b))       elementwise, concatenate, transpose

    reshape(broadcast(a)), tile(a)        =  broadcast(a)              where only axes of size 1 come or go

    reduce(broadcast(a))                  =  broadcast(reduce(a))      over the axes that a has
                                          =  a, and T a for a sum      over T places that repeat it

    reduce_sum(broadcast(a) * b)          =  a * reduce_sum(b)         over axes along which a is repeated

Condition: every operand is repeated along an axis of the result; for the last rule, nothing else reads the
product. Effect on FLOPs: an elementwise op on a value repeated C times costs 1/C; what depends on the request
alone moves to the request's part. It also lets `hoist_dots` see that the rows of a tiled query are all the
same, however a model tiled it. Sums that change their order move by float32 rounding.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.dataflow import ELEMENTWISE, producers, readers
from mlir_pipeline.jaxpr import Read, bind, retrace

_RESHAPES = {"reshape", "squeeze", "expand_dims"}
_IDEMPOTENT = {"reduce_max", "reduce_min", "reduce_and", "reduce_or"}
_SAME_SHAPES = {"select_n", "clamp"}


def merge_broadcasts(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to a flat jaxpr."""
    return retrace(closed, _Merge(closed.jaxpr))


class _Merge:
    """The rule of `retrace`, which knows the values so far that are repeated."""

    def __init__(self, jaxpr: core.Jaxpr) -> None:
        self._producer, self._read_by = producers(jaxpr), readers(jaxpr)
        self._once: dict[Any, Any] = {}
        """Each repeated value as it is before: of the same rank, with size 1 where it is repeated."""

    def __call__(self, eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        for v in eqn.outvars:
            self._once.pop(v, None)
        if len(eqn.outvars) != 1:
            return None
        (result,) = eqn.outvars
        name = eqn.primitive.name
        if name == "broadcast_in_dim":
            return self._broadcast(eqn, read)
        if name == "tile":
            return self._tile(eqn, read)
        if name == "reduce_sum" and (found := self._sum_of_product(eqn, read)) is not None:
            return [found]
        if name in ELEMENTWISE:
            once = self._elementwise(eqn, read)
        elif not any(isinstance(v, core.Var) and v in self._once for v in eqn.invars):
            return None
        elif name in _RESHAPES:
            once = self._reshape(eqn)
        elif name == "transpose":
            once = lax.transpose(self._once[eqn.invars[0]], eqn.params["permutation"])
        elif name in _IDEMPOTENT or name == "reduce_sum":
            once = self._reduction(eqn)
        elif name == "concatenate":
            once = self._concatenate(eqn, read)
        else:
            return None
        return None if once is None else [self._repeat(result, once)]

    def _repeat(self, result: core.Var, once: Any) -> Any:
        """The value of `result`, made from what it repeats."""
        shape = result.aval.shape
        if any(_is_one(a) and not _is_one(b) for a, b in zip(once.shape, shape, strict=True)):
            self._once[result] = once
            return lax.broadcast_in_dim(once, shape, range(len(shape)))
        return once

    def _single(self, atom: Any, read: Read) -> Any:
        """An operand with size 1 along the axes that repeat it."""
        return self._once[atom] if isinstance(atom, core.Var) and atom in self._once else read(atom)

    def _broadcast(self, eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if len(eqn.invars) != 1:
            return None
        (operand,), (result,) = eqn.invars, eqn.outvars
        value = self._single(operand, read)
        at = [int(d) for d in eqn.params["broadcast_dimensions"]]
        once = _placed(value, at, len(result.aval.shape))
        repeated = self._repeat(result, once)
        return [repeated] if isinstance(operand, core.Var) and operand in self._once else None

    def _tile(self, eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        """Repeating dimensions of size 1 is a broadcast."""
        (operand,), (result,) = eqn.invars, eqn.outvars
        value = self._single(operand, read)
        if any(not _is_one(d) and r != 1 for d, r in zip(value.shape, eqn.params["reps"], strict=True)):
            return None
        return [self._repeat(result, value)]

    def _elementwise(self, eqn: core.JaxprEqn, read: Read) -> Any | None:
        shape = eqn.outvars[0].aval.shape
        operands = [self._single(v, read) for v in eqn.invars]
        own = [_size_along(operands, axis) for axis in range(len(shape))]
        if all(_is_one(a) == _is_one(b) for a, b in zip(own, shape, strict=True)):
            return None
        if eqn.primitive.name in _SAME_SHAPES:
            operands = [v if np.ndim(v) == 0 else _spread(v, own) for v in operands]
        return bind(eqn, operands)[0]

    def _reshape(self, eqn: core.JaxprEqn) -> Any | None:
        if eqn.params.get("dimensions") and eqn.primitive.name == "reshape":
            return None
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        at = _same_dimensions(before, after)
        if at is None:
            return None
        once = self._once[eqn.invars[0]]
        kept = [i for i in at if not _is_one(once.shape[i])]
        value = lax.squeeze(once, [i for i in range(len(before)) if i not in kept])
        return _placed(value, [at[i] for i in kept], len(after))

    def _reduction(self, eqn: core.JaxprEqn) -> Any | None:
        once, shape = self._once[eqn.invars[0]], eqn.invars[0].aval.shape
        lost = [shape[a] for a in eqn.params["axes"] if _is_one(once.shape[a])]
        found = eqn.primitive.bind(once, **eqn.params)
        if eqn.primitive.name != "reduce_sum":
            return found
        if not all(isinstance(d, int) for d in lost):
            return None
        count = math.prod(lost)
        return found if count == 1 else lax.mul(found, np.full((), count, found.dtype))

    def _concatenate(self, eqn: core.JaxprEqn, read: Read) -> Any | None:
        axis, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
        operands = [self._single(v, read) for v in eqn.invars]
        own = [_size_along(operands, a) for a in range(len(shape))]
        others = [a for a in range(len(shape)) if a != axis]
        if all(_is_one(own[a]) == _is_one(shape[a]) for a in others):
            return None
        sizes = [[v.aval.shape[a] if a == axis else own[a] for a in range(len(shape))] for v in eqn.invars]
        return lax.concatenate([_spread(v, s) for v, s in zip(operands, sizes, strict=True)], axis)

    def _sum_of_product(self, eqn: core.JaxprEqn, read: Read) -> Any | None:
        product: Any = eqn.invars[0]
        (result,) = eqn.outvars
        made = self._producer.get(product) if isinstance(product, core.Var) else None
        if made is None or made.primitive.name != "mul" or len(self._read_by[product]) != 1:
            return None
        axes, shape = eqn.params["axes"], product.aval.shape
        if product in self._once or any(v.aval.ndim != len(shape) for v in made.invars):
            return None
        for factor, other in (made.invars, made.invars[::-1]):
            once, varied = self._single(factor, read), self._single(other, read)
            if all(_is_one(once.shape[a]) and not _is_one(varied.shape[a]) for a in axes):
                total = eqn.primitive.bind(varied, **eqn.params)
                factor_once = lax.squeeze(once, axes)
                return lax.mul(*(_spread(v, result.aval.shape) for v in (factor_once, total)))
        return None


def _placed(value: Any, at: Sequence[int], rank: int) -> Any:
    """A value with its axes at the places `at` of `rank` and size 1 elsewhere."""
    sizes: list[Any] = [1] * rank
    for place, size in zip(at, np.shape(value), strict=True):
        sizes[place] = size
    if not isinstance(value, jax.core.Tracer):
        return np.asarray(value).reshape(sizes)
    return lax.broadcast_in_dim(value, sizes, at) if len(at) < rank else value


def _spread(value: Any, shape: Sequence[Any]) -> Any:
    """A value repeated along its axes of size 1 to a shape of the same rank."""
    same = all(_is_one(a) == _is_one(b) for a, b in zip(value.shape, shape, strict=True))
    return value if same else lax.broadcast_in_dim(value, shape, range(len(shape)))


def _size_along(operands: Sequence[Any], axis: int) -> Any:
    """The size of an elementwise result along an axis; operands of rank 0 have none."""
    sizes = [v.shape[axis] for v in operands if np.ndim(v)]
    return next((d for d in sizes if not _is_one(d)), 1)


def _is_one(dimension: Any) -> bool:
    return isinstance(dimension, int) and dimension == 1


def _same_dimensions(before: tuple[Any, ...], after: tuple[Any, ...]) -> dict[int, int] | None:
    """Where each dimension of `before` that is not 1 is in `after`; None if they are not the same ones in the
    same order."""
    left = [i for i, d in enumerate(before) if not _is_one(d)]
    right = [i for i, d in enumerate(after) if not _is_one(d)]
    if [before[i] for i in left] != [after[i] for i in right]:
        return None
    return dict(zip(left, right, strict=True))
