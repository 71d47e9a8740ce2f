# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Primitives that IREE 3.13 does not take with a dynamic dimension, written with ones that it does.

| primitive | becomes |
|---|---|
| `top_k` | a sort by value and position, and its first k |
| `cumsum`, `cumprod`, `cummax`, `cummin` | log2(T) shifted steps; over candidates, a masked reduction of
`[n, n]` | | `sort` over candidates | the rank of each, counted, and a masked sum of `[n, n]` that puts it
there | | `reduce_window_*` | one strided slice for each position in the window |

What is done over candidates costs n^2 instead of n log n: 25 million simple steps for 5,000 candidates.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import Read, flat_jaxpr, retrace

MAX_WINDOW = 256
"""Positions of a pooling window; each is a slice of its own."""


def expand_primitives(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rules to a flat jaxpr. Raises `CompileError` for a window beyond `MAX_WINDOW`."""

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        expand = _RULES.get(eqn.primitive.name)
        if expand is None or all(isinstance(d, int) for v in eqn.invars for d in v.aval.shape):
            return None
        operands = [read(v) for v in eqn.invars]
        function = functools.partial(expand, eqn.params)
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        body = flat_jaxpr(function, *avals)
        return core.jaxpr_as_fun(body)(*operands)

    return retrace(closed, rule)


def _top_k(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, ...]:
    axis, k = params["axis"], params["k"]
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    # Descending: floats by their negative, integers by their complement, which has no overflow.
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    key, position = _sorted([-x if floats else ~x, position], axis, 2)
    first = [lax.slice_in_dim(v, 0, k, axis=axis) for v in (key, position)]
    return (-first[0] if floats else ~first[0], first[1])


def _sort(params: dict[str, Any], *operands: jax.Array) -> tuple[jax.Array, ...] | None:
    return tuple(_sorted(list(operands), params["dimension"], params["num_keys"]))


def _sorted(operands: list[jax.Array], axis: int, keys: int) -> list[jax.Array]:
    """Operands in the order of the first `keys` of them; equal candidates stay in their order."""
    size = operands[0].shape[axis]
    if isinstance(size, int):
        return list(lax.sort(operands, dimension=axis, is_stable=False, num_keys=keys))
    pairs = (*operands[0].shape[:axis], size, *operands[0].shape[axis:])
    other_position, own_position = (lax.broadcasted_iota(jnp.int32, pairs, a) for a in (axis, axis + 1))
    before = other_position < own_position
    for key in reversed([_as_integers(k) for k in operands[:keys]]):
        other, own = jnp.expand_dims(key, axis + 1), jnp.expand_dims(key, axis)
        before = (other < own) | ((other == own) & before)
    rank = lax.optimization_barrier(jnp.sum(before, axis=axis, dtype=jnp.int32))
    # `out[rank[i]] = x[i]`, by a sum in which one term is not zero.
    here = jnp.expand_dims(rank, axis + 1) == own_position
    return [_selected(here, jnp.expand_dims(v, axis + 1), axis) for v in operands]


def _selected(here: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    if x.dtype == bool:
        return jnp.any(here & x, axis=axis)
    return jnp.sum(jnp.where(here, x, jnp.zeros((), x.dtype)), axis=axis, dtype=x.dtype)


def _as_integers(key: jax.Array) -> jax.Array:
    """Integers in JAX's order of the keys: zeros are equal, NaNs equal and last."""
    if not jnp.issubdtype(key.dtype, jnp.floating):
        return key.astype(jnp.int32) if key.dtype == bool else key
    key = key.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(key == 0, jnp.float32(0), key), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    return jnp.where(jnp.isnan(key), jnp.int32(0x7FFFFFFF), ordered)


def _cumulative(
    combine: Callable[..., jax.Array], reduce: Callable[..., jax.Array], start: Callable[[Any], Any]
) -> Callable[..., tuple[jax.Array]]:
    def expand(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array]:
        axis, backward = params["axis"], params["reverse"]
        size, fill = x.shape[axis], jnp.asarray(start(x.dtype), x.dtype)
        if not isinstance(size, int):
            position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
            own, other = jnp.expand_dims(position, axis + 1), jnp.expand_dims(position, axis)
            counts = (other >= own) if backward else (other <= own)
            return (reduce(jnp.where(counts, jnp.expand_dims(x, axis), fill), axis=axis + 1),)
        shift = 1
        while shift < size:
            start_at, end_at = (shift, size) if backward else (0, size - shift)
            kept = lax.slice_in_dim(x, start_at, end_at, axis=axis)
            filling = lax.broadcast(fill, [shift if a == axis else d for a, d in enumerate(x.shape)])
            x = combine(x, lax.concatenate([kept, filling] if backward else [filling, kept], axis))
            shift *= 2
        return (x,)

    return expand


def _window(
    combine: Callable[..., jax.Array], start: Callable[[Any], Any]
) -> Callable[..., tuple[jax.Array]]:
    def expand(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array]:
        window, strides = params["window_dimensions"], params["window_strides"]
        inner = params["base_dilation"]
        dilation = params["window_dilation"]
        if np.prod(window) > MAX_WINDOW:
            raise CompileError(
                f"a pooling window of {list(window)} has more than {MAX_WINDOW} positions; pool in two steps"
            )
        fill = jnp.asarray(start(x.dtype), x.dtype)
        padded = lax.pad(x, fill, [(a, b, d - 1) for (a, b), d in zip(params["padding"], inner, strict=True)])
        lengths = [
            (size - (w - 1) * d - 1) // s + 1 if w > 1 or s > 1 else size
            for size, w, s, d in zip(padded.shape, window, strides, dilation, strict=True)
        ]
        pieces = []
        for place in itertools.product(*map(range, window)):
            low = [p * d for p, d in zip(place, dilation, strict=True)]
            high = [
                a + (n - 1) * s + 1 if s > 1 else a + n for a, n, s in zip(low, lengths, strides, strict=True)
            ]
            pieces.append(lax.slice(padded, low, high, strides))
        return (functools.reduce(combine, pieces),)

    return expand


def _lowest(dtype: Any) -> Any:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).max


def _zero(dtype: Any) -> int:
    return 0


_RULES: dict[str, Callable[..., tuple[jax.Array, ...] | None]] = {
    "top_k": _top_k,
    "sort": _sort,
    "cumsum": _cumulative(lax.add, jnp.sum, _zero),
    "cumprod": _cumulative(lax.mul, jnp.prod, lambda dtype: 1),
    "cummax": _cumulative(lax.max, jnp.max, _lowest),
    "cummin": _cumulative(lax.min, jnp.min, _highest),
    "reduce_window_sum": _window(lax.add, _zero),
    "reduce_window_max": _window(lax.max, _lowest),
    "reduce_window_min": _window(lax.min, _highest),
}
