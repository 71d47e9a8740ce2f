"""Recurrent layers with ONNX's weights: gates side by side, one leading axis for directions.

Shapes: T steps, B rows, D features, H units, `dirs` 1 or 2. The sequence `x` is `[T, B, D]` (with
`batch_first` `[B, T, D]`); `w [dirs, gates * H, D]`; `r [dirs, gates * H, H]`; `b [dirs, 2 * gates * H]`,
the input's biases and then the recurrent ones; `lengths [B]`; initial states `[dirs, B, H]`, where B may be
1 for all rows. Results: all states `[T, dirs, B, H]`, the last state `[dirs, B, H]`; with `batch_first`, B
comes first. Beyond a row's length its states are zero, and its last state is the one at its length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Activation = str | tuple[Any, ...]
State = tuple[jax.Array, ...]

_ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    "affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "elu": jax.nn.elu,
    "hardsigmoid": lambda x, alpha=0.2, beta=0.5: jnp.clip(alpha * x + beta, 0, 1),
    "leakyrelu": jax.nn.leaky_relu,
    "relu": jax.nn.relu,
    "scaledtanh": lambda x, alpha=1.0, beta=1.0: alpha * jnp.tanh(beta * x),
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
    "thresholdedrelu": lambda x, alpha=1.0: jnp.where(x > alpha, x, 0),
}


def lstm(
    x: jax.Array,
    w: jax.Array,
    r: jax.Array,
    b: jax.Array | None = None,
    lengths: jax.Array | None = None,
    initial_h: jax.Array | None = None,
    initial_c: jax.Array | None = None,
    peepholes: jax.Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[Activation] = ("sigmoid", "tanh", "tanh"),
    clip: float | None = None,
    coupled_input_forget: bool = False,
    batch_first: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gates in the order input, output, forget, cell; `peepholes [dirs, 3 * H]` input, output, forget.

    Returns all states, the last state, and the last cell.
    """

    def cell(k: int) -> Callable[..., State]:
        gate, candidate, squash = _functions(activations, 3, k)
        p_i, p_o, p_f = jnp.split(peepholes[k], 3) if peepholes is not None else (0.0, 0.0, 0.0)

        def step(projected: jax.Array, state: State) -> State:
            h, c = state
            i, o, f, g = jnp.split(projected + h @ r[k].T + _bias(b, k, 4, recurrent=True), 4, axis=-1)
            i = gate(_clipped(i + p_i * c, clip))
            f = 1 - i if coupled_input_forget else gate(_clipped(f + p_f * c, clip))
            c = f * c + i * candidate(_clipped(g, clip))
            o = gate(_clipped(o + p_o * c, clip))
            return o * squash(c), c

        return step

    initial = (initial_h, initial_c)
    outputs, (h, c) = _both_ways(cell, x, w, b, 4, lengths, initial, direction, batch_first)
    return outputs, h, c


def gru(
    x: jax.Array,
    w: jax.Array,
    r: jax.Array,
    b: jax.Array | None = None,
    lengths: jax.Array | None = None,
    initial_h: jax.Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[Activation] = ("sigmoid", "tanh"),
    clip: float | None = None,
    reset_after: bool = False,
    batch_first: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Gates in the order update, reset, candidate; `reset_after` multiplies by the reset gate after the
    recurrent product, as cuDNN and Keras do. Returns all states and the last one."""

    def cell(k: int) -> Callable[..., State]:
        gate, candidate = _functions(activations, 2, k)
        r_z, r_r, r_n = jnp.split(r[k], 3)
        b_z, b_r, b_n = _bias_parts(b, k, 3, r.shape[-1])

        def step(projected: jax.Array, state: State) -> State:
            (h,) = state
            z, reset, n = jnp.split(projected, 3, axis=-1)
            z = gate(_clipped(z + h @ r_z.T + b_z, clip))
            reset = gate(_clipped(reset + h @ r_r.T + b_r, clip))
            recurrent = reset * (h @ r_n.T + b_n) if reset_after else (reset * h) @ r_n.T + b_n
            n = candidate(_clipped(n + recurrent, clip))
            return ((1 - z) * n + z * h,)

        return step

    outputs, (h,) = _both_ways(cell, x, w, b, 3, lengths, (initial_h,), direction, batch_first)
    return outputs, h


def rnn(
    x: jax.Array,
    w: jax.Array,
    r: jax.Array,
    b: jax.Array | None = None,
    lengths: jax.Array | None = None,
    initial_h: jax.Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[Activation] = ("tanh",),
    clip: float | None = None,
    batch_first: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`h' = f(x w + h r + b)`. Returns all states and the last one."""

    def cell(k: int) -> Callable[..., State]:
        (activation,) = _functions(activations, 1, k)

        def step(projected: jax.Array, state: State) -> State:
            (h,) = state
            return (activation(_clipped(projected + h @ r[k].T + _bias(b, k, 1, recurrent=True), clip)),)

        return step

    outputs, (h,) = _both_ways(cell, x, w, b, 1, lengths, (initial_h,), direction, batch_first)
    return outputs, h


def _both_ways(
    cell: Callable[[int], Callable[..., State]],
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    gates: int,
    lengths: jax.Array | None,
    initial: tuple[jax.Array | None, ...],
    direction: str,
    batch_first: bool,
) -> tuple[jax.Array, State]:
    if batch_first:
        x = jnp.swapaxes(x, 0, 1)
        initial = tuple(None if s is None else jnp.swapaxes(s, 0, 1) for s in initial)
    steps, rows = x.shape[:2]
    units = w.shape[1] // gates
    outputs, lasts = [], []
    for k in range(w.shape[0]):
        backward = direction == "reverse" or k == 1
        # The input's products of all steps are one matrix product.
        projected = x @ w[k].T + _bias(b, k, gates, recurrent=False)
        projected = reverse_sequence(projected, lengths) if backward else projected
        state = tuple(
            jnp.zeros((rows, units), x.dtype) if s is None else jnp.broadcast_to(s[k], (rows, units))
            for s in initial
        )
        states, last = _run(cell(k), projected, state, lengths)
        outputs.append(reverse_sequence(states, lengths) if backward else states)
        lasts.append(last)
    stacked = jnp.stack(outputs, axis=1)
    final = tuple(jnp.stack(parts) for parts in zip(*lasts, strict=True))
    if batch_first:
        stacked = jnp.transpose(stacked, (2, 0, 1, 3))
        final = tuple(jnp.swapaxes(s, 0, 1) for s in final)
    return stacked, final


def _run(
    step: Callable[..., State], projected: jax.Array, state: State, lengths: jax.Array | None
) -> tuple[jax.Array, State]:
    def advance(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        t, inputs = now
        new = step(inputs, state)
        if lengths is None:
            return new, new[0]
        going = (t < lengths)[:, None]
        kept = tuple(jnp.where(going, n, s) for n, s in zip(new, state, strict=True))
        return kept, jnp.where(going, new[0], 0)

    last, states = jax.lax.scan(advance, state, (jnp.arange(projected.shape[0]), projected))
    return states, last


def reverse_sequence(
    x: jax.Array, lengths: jax.Array | None, *, batch_axis: int = 1, time_axis: int = 0
) -> jax.Array:
    """The first `lengths[b]` steps of each row in reverse, the rest in place; all steps without lengths."""
    if lengths is None:
        return jnp.flip(x, time_axis)
    steps = jnp.arange(x.shape[time_axis])
    last = lengths[:, None].astype(steps.dtype) - 1
    index = jnp.where(steps[None] <= last, last - steps[None], steps[None])  # [B, T]
    index = index if batch_axis < time_axis else index.T
    shape = [1] * x.ndim
    shape[batch_axis], shape[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    return jnp.take_along_axis(x, jnp.reshape(index, shape), axis=time_axis)


def _functions(activations: Sequence[Activation], count: int, k: int) -> list[Callable[..., jax.Array]]:
    """The functions of one direction; a tuple is a name with its parameters."""
    chosen = activations[k * count : (k + 1) * count] or activations[:count]
    found = []
    for entry in chosen:
        name, *parameters = (entry,) if isinstance(entry, str) else entry
        if name not in _ACTIVATIONS:
            raise ValueError(f"activation {name!r}; there are {', '.join(_ACTIVATIONS)}")
        function = _ACTIVATIONS[name]
        found.append(lambda x, function=function, parameters=parameters: function(x, *parameters))
    return found


def _bias(b: jax.Array | None, k: int, gates: int, *, recurrent: bool) -> jax.Array | float:
    if b is None:
        return 0.0
    return jnp.split(b[k], 2)[1 if recurrent else 0]


def _bias_parts(b: jax.Array | None, k: int, gates: int, units: int) -> list[Any]:
    return [0.0] * gates if b is None else list(jnp.split(jnp.split(b[k], 2)[1], gates))


def _clipped(x: jax.Array, clip: float | None) -> jax.Array:
    return x if clip is None else jnp.clip(x, -clip, clip)
