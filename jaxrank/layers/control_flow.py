"""Loops whose state is a tuple of arrays, on top of `jax.lax`.

A state that starts with one row and meets many is broadcast first, so a loop works on batches too; dtypes are
those that the step returns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

State = tuple[Any, ...]


def counted_loop(step: Callable[..., Any], trips: Any, initial: State) -> tuple[Any, ...]:
    """`step(i, *state) -> (*state, *outputs)`, run `trips` times.

    Returns the last state and, for each output, its values of all trips stacked. Where `trips` is an array,
    there can be no outputs.
    """
    n = len(initial)

    def advance(state: State, i: Any) -> tuple[State, State]:
        values = _tuple(step(i, *state))
        return values[:n], values[n:]

    initial = _steady(lambda *state: advance(state, _index(0))[0], initial)
    if not isinstance(trips, int):
        trips = jnp.reshape(trips, ())
        return jax.lax.fori_loop(0, trips, lambda i, state: advance(state, i)[0], initial)
    state, outputs = jax.lax.scan(advance, initial, jnp.arange(trips, dtype=_index(0).dtype))
    return (*state, *outputs)


def while_loop(
    step: Callable[..., Any], initial: State, *, condition: Any = None, max_trips: Any = None
) -> tuple[Any, ...]:
    """`step(i, *state) -> (going, *state)`, run while `going` (at the start `condition`, true by default) and
    at most `max_trips` times. Returns the last state."""

    def advance(carry: State) -> State:
        i, _, state = carry
        going, *new = _tuple(step(i, *state))
        return i + 1, jnp.reshape(going, ()), tuple(new)

    def check(carry: State) -> Any:
        i, going, _ = carry
        return going if max_trips is None else going & (i < jnp.reshape(max_trips, ()))

    initial = _steady(lambda *state: tuple(_tuple(step(_index(0), *state))[1:]), initial)
    return jax.lax.while_loop(check, advance, (_index(0), _flag(condition), initial))[2]


def masked_loop(
    step: Callable[..., Any], max_trips: int, initial: State, *, condition: Any = None
) -> tuple[Any, ...]:
    """`step(i, *state) -> (going, *state, *outputs)`: a while loop with outputs, as a scan over `max_trips`.

    After the condition turned false the state stays and the outputs are zero: their number is static, which a
    compiled program needs.
    """
    n = len(initial)

    def advance(carry: State, i: Any) -> tuple[State, State]:
        going, state = carry
        still, *values = _tuple(step(i, *state))
        kept = tuple(jnp.where(going, new, old) for new, old in zip(values[:n], state, strict=True))
        outputs = tuple(jnp.where(going, value, jnp.zeros_like(value)) for value in values[n:])
        return (going & jnp.reshape(still, ()), kept), outputs

    initial = _steady(lambda *state: tuple(_tuple(step(_index(0), *state))[1 : 1 + n]), initial)
    indices = jnp.arange(max_trips, dtype=_index(0).dtype)
    (_, state), outputs = jax.lax.scan(advance, (_flag(condition), initial), indices)
    return (*state, *outputs)


def scan(
    step: Callable[..., Any],
    initial: State,
    sequences: State,
    *,
    axes: Sequence[int] = (),
    backward: Sequence[bool] = (),
    output_axes: Sequence[int] = (),
    output_backward: Sequence[bool] = (),
) -> tuple[Any, ...]:
    """`step(*state, *slices) -> (*state, *outputs)` over slices of the sequences.

    Args:
        axes, backward: for each sequence the axis it is cut along (0), and whether from its end.
        output_axes, output_backward: for each output the axis it is stacked along (0), and whether its end
            comes first.
    """
    n = len(initial)
    cut = [
        jnp.moveaxis(jnp.asarray(s), a, 0)
        for s, a in zip(sequences, _padded(axes, sequences, 0), strict=True)
    ]
    cut = [jnp.flip(s, 0) if b else s for s, b in zip(cut, _padded(backward, cut, False), strict=True)]

    def advance(state: State, slices: Sequence[Any]) -> tuple[State, State]:
        values = _tuple(step(*state, *slices))
        return values[:n], values[n:]

    initial = _steady(lambda *state: advance(state, [s[0] for s in cut])[0], initial)
    state, outputs = jax.lax.scan(advance, initial, cut)
    stacked = [
        jnp.flip(o, 0) if b else o
        for o, b in zip(outputs, _padded(output_backward, outputs, False), strict=True)
    ]
    moved = [jnp.moveaxis(o, 0, a) for o, a in zip(stacked, _padded(output_axes, outputs, 0), strict=True)]
    return (*state, *moved)


def _padded(values: Sequence[Any], like: Sequence[Any], default: Any) -> Sequence[Any]:
    return values or [default] * len(like)


def _tuple(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def _index(value: int) -> jax.Array:
    return jnp.asarray(value, jax.dtypes.canonicalize_dtype(np.int64))


def _flag(condition: Any) -> jax.Array:
    return jnp.asarray(True) if condition is None else jnp.reshape(jnp.asarray(condition, bool), ())


def _steady(step: Callable[..., State], initial: State) -> State:
    """The initial state with the shapes and dtypes that it has after a step."""
    state = tuple(jnp.asarray(value) for value in initial)
    for _ in range(3):
        after = jax.eval_shape(step, *state)
        if all(a.shape == s.shape and a.dtype == s.dtype for a, s in zip(after, state, strict=True)):
            return state
        state = tuple(
            jnp.broadcast_to(s, jnp.broadcast_shapes(s.shape, a.shape)).astype(a.dtype)
            for a, s in zip(after, state, strict=True)
        )
    shapes = [s.shape for s in state]
    raise ValueError(f"a loop whose state changes its shape at every step: {shapes}; fix it in the model")
