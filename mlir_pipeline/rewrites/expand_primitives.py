# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Primitives that IREE 3.13 does not take with a dynamic dimension, written with ones that it does.

| primitive | becomes |
|---|---|
| `top_k` | a sort by value and position, and its first k |
| `cumsum`, `cumprod`, `cummax`, `cummin` | log2(T) shifted steps; over candidates, a loop of log2(n) steps |
| `sort` over candidates | the rank of each, counted in `[n, n]`; the order, by a masked sum; a gather |
| `scatter*` | one index vector for each written row, with a row more for what is written outside |
| `reduce_window_*` | one strided slice for each position in the window |
| `stack` | a concatenation, which the other rewrites know |

A sort over candidates costs n^2 instead of n log n: 25 million simple steps for 5,000 candidates. What is
sorted and scattered is kept apart by barriers: fused with what made it, IREE allocates it on the stack,
without a bound (https://github.com/iree-org/iree/issues/13205).
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
        static = all(isinstance(d, int) for v in eqn.invars for d in v.aval.shape)
        if expand is None or (static and not _writes_outside(eqn)):
            return None
        operands = [read(v) for v in eqn.invars]
        function = functools.partial(expand, eqn.params)
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        body = flat_jaxpr(function, *avals)
        return core.jaxpr_as_fun(body)(*operands)

    return retrace(closed, rule)


def _writes_outside(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a scatter of elements, which IREE does not keep inside of the operand whatever
    the shapes are."""
    numbers = eqn.params.get("dimension_numbers")
    return isinstance(numbers, lax.ScatterDimensionNumbers) and set(
        numbers.scatter_dims_to_operand_dims
    ) <= set(numbers.inserted_window_dims)


def _top_k(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, ...]:
    axis, k = params["axis"], params["k"]
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    # Descending: floats by their negative, integers by their complement, which has no overflow.
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    # Among candidates equal keys stay in their order anyway.
    keys = 2 if isinstance(x.shape[axis], int) else 1
    key, position = _sorted([-x if floats else ~x, position], axis, keys)
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
        key = lax.optimization_barrier(key)
        other, own = jnp.expand_dims(key, axis + 1), jnp.expand_dims(key, axis)
        before = (other < own) | ((other == own) & before)
    rank = lax.optimization_barrier(jnp.sum(before, axis=axis, dtype=jnp.int32))
    # `order[rank[i]] = i`, by a sum in which one term is not zero.
    here = jnp.expand_dims(rank, axis + 1) == own_position
    order = lax.optimization_barrier(
        jnp.sum(jnp.where(here, other_position, jnp.int32(0)), axis=axis, dtype=jnp.int32)
    )
    return [jnp.take_along_axis(v, order, axis, mode="clip") for v in operands]


def _as_integers(key: jax.Array) -> jax.Array:
    """Integers in JAX's order of the keys: zeros are equal, NaNs equal and last."""
    if not jnp.issubdtype(key.dtype, jnp.floating):
        return key.astype(jnp.int32) if key.dtype == bool else key
    key = key.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(key == 0, jnp.float32(0), key), jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    return jnp.where(jnp.isnan(key), jnp.int32(0x7FFFFFFF), ordered)


def _cumulative(
    combine: Callable[..., jax.Array], start: Callable[[Any], Any]
) -> Callable[..., tuple[jax.Array]]:
    def expand(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array]:
        axis, backward = params["axis"], params["reverse"]
        size, fill = x.shape[axis], jnp.asarray(start(x.dtype), x.dtype)
        if not isinstance(size, int):
            return (_doubling(combine, x, fill, axis, backward),)
        shift = 1
        while shift < size:
            start_at, end_at = (shift, size) if backward else (0, size - shift)
            kept = lax.slice_in_dim(x, start_at, end_at, axis=axis)
            filling = lax.broadcast(fill, [shift if a == axis else d for a, d in enumerate(x.shape)])
            x = combine(x, lax.concatenate([kept, filling] if backward else [filling, kept], axis))
            shift *= 2
        return (x,)

    return expand


def _doubling(
    combine: Callable[..., jax.Array], x: jax.Array, fill: jax.Array, axis: int, backward: bool
) -> jax.Array:
    """Each element combined with those 1, 2, 4, .. places before it: a loop of log2(n) steps."""
    size = x.shape[axis]
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        shift, x = state
        other = position + shift if backward else position - shift
        inside = other < size if backward else other >= 0
        moved = jnp.take_along_axis(x, other, axis, mode="clip")
        return shift * 2, combine(x, jnp.where(inside, moved, fill))

    return lax.while_loop(lambda state: state[0] < size, step, (jnp.int32(1), x))[1]


def _scatter(
    params: dict[str, Any], operand: jax.Array, indices: jax.Array, updates: jax.Array
) -> tuple[jax.Array, ...]:
    """Writes at computed positions, each written row by one index vector.

    IREE takes no batching dimensions, which become a part of the index, and writes outside of the operand
    where StableHLO skips (https://github.com/iree-org/iree/issues/13580): such writes go to an extra row,
    which is dropped.
    """
    numbers, combine = params["dimension_numbers"], params["combine"]
    places = indices.shape[:-1]
    columns = [
        lax.squeeze(lax.slice_in_dim(indices, i, i + 1, axis=-1), (-1,)) for i in range(indices.shape[-1])
    ]
    at = dict(zip(numbers.scatter_dims_to_operand_dims, columns, strict=True))
    if set(at) - set(numbers.inserted_window_dims):
        raise CompileError(
            "a scatter of slices at computed positions, with a dynamic number of candidates; scatter "
            "single elements"
        )
    if params["mode"] == lax.GatherScatterMode.CLIP:
        at = {d: jnp.clip(i, 0, operand.shape[d] - 1) for d, i in at.items()}
    outside = functools.reduce(
        jnp.logical_or, [(i < 0) | (i >= operand.shape[d]) for d, i in at.items()], jnp.zeros(places, bool)
    )
    batch = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    extra = min(at)
    at = {d: jnp.where(outside, operand.shape[d] if d == extra else 0, i) for d, i in at.items()}
    at.update({d: lax.broadcasted_iota(jnp.int32, places, i) for d, i in batch})
    whole = lax.pad(
        operand, jnp.zeros((), operand.dtype), [(0, int(d == extra), 0) for d in range(operand.ndim)]
    )
    dims = sorted(at)
    vectors = jnp.stack([at[d].astype(jnp.int32) for d in dims], -1)
    plain = lax.ScatterDimensionNumbers(
        update_window_dims=numbers.update_window_dims,
        inserted_window_dims=tuple(dims),
        scatter_dims_to_operand_dims=tuple(dims),
    )
    written = combine(
        whole,  # no barrier: IREE 3.13 writes into a constant that comes out of one
        lax.optimization_barrier(vectors),
        lax.optimization_barrier(updates),
        plain,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return (lax.slice_in_dim(lax.optimization_barrier(written), 0, operand.shape[extra], axis=extra),)


def _scattered(combine: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    return lambda params, *operands: _scatter({**params, "combine": combine}, *operands)


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


def _stack(params: dict[str, Any], *operands: jax.Array) -> tuple[jax.Array, ...]:
    axis = params["axis"]
    return (lax.concatenate([lax.expand_dims(x, [axis]) for x in operands], axis),)


_RULES: dict[str, Callable[..., tuple[jax.Array, ...] | None]] = {
    "stack": _stack,
    "top_k": _top_k,
    "sort": _sort,
    "cumsum": _cumulative(lax.add, _zero),
    "cumprod": _cumulative(lax.mul, lambda dtype: 1),
    "cummax": _cumulative(lax.max, _lowest),
    "cummin": _cumulative(lax.min, _highest),
    "scatter": _scattered(lax.scatter),
    "scatter-add": _scattered(lax.scatter_add),
    "scatter_mul": _scattered(lax.scatter_mul),
    "scatter_min": _scattered(lax.scatter_min),
    "scatter_max": _scattered(lax.scatter_max),
    "reduce_window_sum": _window(lax.add, _zero),
    "reduce_window_max": _window(lax.max, _lowest),
    "reduce_window_min": _window(lax.min, _highest),
}
