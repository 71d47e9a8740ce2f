# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Adds up weighted parts where they are, instead of stacking them for a product: the gates of a mixture of
experts.

Rules, for parts `x_0 .. x_{E-1}` of size 1 along the stacked axis:

    einsum("ne,ned->nd", g, stack(x_0, ..))  =  g[:, 0] * x_0 + g[:, 1] * x_1 + ..

    reduce_sum(g * stack(x_0, ..), axis=e)   =  g[0] * x_0 + g[1] * x_1 + ..

Condition: every candidate has its own product of one row (a product of many rows reads the stack often
enough to be worth it), and the stack has at most `MAX_PARTS` parts. Effect on FLOPs: none; the stack is not
made, nor packed for a product of one row, and the sum fuses with what reads it. Sums are added in another
order, so scores move by float32 rounding.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core

from mlir_pipeline.dataflow import producers, readers
from mlir_pipeline.jaxpr import Read, retrace

MAX_PARTS = 32
"""A sum of more parts would be an op with more operands than a dispatch takes."""

_Parts = list[Callable[[Read], Any]]
"""What gives each part of a stack, in the stack's layout with size 1 along the axis."""


def unstack_dots(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to every `dot_general` and `reduce_sum` of a flat jaxpr."""
    producer = producers(closed.jaxpr)
    read_by = readers(closed.jaxpr)

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        if eqn.primitive.name == "dot_general":
            return _unstacked_dot(eqn, read, producer)
        if eqn.primitive.name == "reduce_sum" and len(eqn.params["axes"]) == 1:
            summed: Any = eqn.invars[0]
            product = producer.get(summed)
            if product is not None and product.primitive.name == "mul" and len(read_by[summed]) == 1:
                return _unstacked_sum(eqn, product, read, producer)
        return None

    return retrace(closed, rule)


def _unstacked_dot(eqn: core.JaxprEqn, read: Read, producer: Mapping[Any, core.JaxprEqn]) -> list[Any] | None:
    contract, batch = eqn.params["dimension_numbers"]
    shapes = [v.aval.shape for v in eqn.invars]
    dtype = eqn.outvars[0].aval.dtype
    if len(contract[0]) != 1 or any(v.aval.dtype != dtype for v in eqn.invars):
        return None
    free = [
        [a for a in range(len(shape)) if a not in contract[side] and a not in batch[side]]
        for side, shape in enumerate(shapes)
    ]
    for side in (0, 1):
        other = 1 - side
        each_its_own = any(not isinstance(shapes[side][a], int) for a in batch[side])
        if not each_its_own or any(shapes[other][a] != 1 for a in free[other]):
            continue
        parts = _parts(eqn.invars[side], contract[side][0], producer)
        if parts is None:
            continue
        axis = contract[other][0]
        terms = []
        for i, part in enumerate(parts):
            sides = [part(read), lax.slice_in_dim(read(eqn.invars[other]), i, i + 1, axis=axis)]
            left, right = sides if side == 0 else reversed(sides)
            terms.append(
                _laid_out(left, [*batch[0], *free[0]], contract[0][0], 0, len(free[1]))
                * _laid_out(right, [*batch[1], *free[1]], contract[1][0], len(batch[1]), len(free[0]))
            )
        return [functools.reduce(jnp.add, terms)]
    return None


def _laid_out(value: Any, order: list[int], contracted: int, at: int, ones: int) -> Any:
    """A side of a product with its axes in `order`, without the contracted one, and with so many axes of size
    1 at a position (0: the end)."""
    squeezed = lax.squeeze(value, [contracted])
    order = [a - (a > contracted) for a in order]
    if order != sorted(order):
        squeezed = lax.transpose(squeezed, order)
    at = at or squeezed.ndim
    return lax.expand_dims(squeezed, range(at, at + ones)) if ones else squeezed


def _unstacked_sum(
    eqn: core.JaxprEqn, product: core.JaxprEqn, read: Read, producer: Mapping[Any, core.JaxprEqn]
) -> list[Any] | None:
    (axis,) = eqn.params["axes"]
    if any(isinstance(v, core.Literal) or v.aval.ndim != eqn.invars[0].aval.ndim for v in product.invars):
        return None
    for stacked, weights in (product.invars, product.invars[::-1]):
        parts = _parts(stacked, axis, producer)
        if parts is None:
            continue
        terms = []
        for i, part in enumerate(parts):
            weight = read(weights)
            if weights.aval.shape[axis] != 1:
                weight = lax.slice_in_dim(weight, i, i + 1, axis=axis)
            terms.append(lax.mul_p.bind(part(read), weight))
        return [lax.squeeze(functools.reduce(jnp.add, terms), [axis])]
    return None


def _parts(var: Any, axis: int, producer: Mapping[Any, core.JaxprEqn]) -> _Parts | None:
    """The parts along an axis of what is stacked along it, looking through changes of the other axes."""
    eqn = None if isinstance(var, core.Literal) else producer.get(var)
    if eqn is None:
        return None
    name = eqn.primitive.name
    if name == "concatenate":
        if eqn.params["dimension"] != axis or not 1 < len(eqn.invars) <= MAX_PARTS:
            return None
        if any(v.aval.shape[axis] != 1 for v in eqn.invars):
            return None
        return [functools.partial(_read_part, v) for v in eqn.invars]
    if name == "squeeze":
        dropped = sorted(d % eqn.invars[0].aval.ndim for d in eqn.params["dimensions"])
        inner = axis
        for d in dropped:
            inner += d <= inner

        def apply(value: Any) -> Any:
            return lax.squeeze(value, dropped)

    elif name == "transpose":
        permutation = eqn.params["permutation"]
        inner = permutation[axis]

        def apply(value: Any) -> Any:
            return lax.transpose(value, permutation)

    elif name == "broadcast_in_dim" and axis in eqn.params["broadcast_dimensions"]:
        places = eqn.params["broadcast_dimensions"]
        inner = places.index(axis)
        result = eqn.outvars[0].aval.shape
        if eqn.invars[0].aval.shape[inner] != result[axis]:
            return None

        def apply(value: Any) -> Any:
            shape = tuple(1 if a == axis else d for a, d in enumerate(result))
            return lax.broadcast_in_dim(value, shape, places)

    else:
        return None
    parts = _parts(eqn.invars[0], inner, producer)
    return None if parts is None else [functools.partial(_moved, part, apply) for part in parts]


def _read_part(var: Any, read: Read) -> Any:
    return read(var)


def _moved(part: Callable[[Read], Any], apply: Callable[[Any], Any], read: Read) -> Any:
    return apply(part(read))
