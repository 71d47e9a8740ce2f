"""If, Loop and Scan. A body becomes a nested function; values from outside reach it as Python closures."""

import numpy as np

from converters.onnx_ops.registry import Body, Operand, Result, call, op
from converters.onnx_ops.registry import scalar as number

_BOOL = np.dtype(bool)


@op("If", outputs=None)
def if_(condition: Operand, *, then_branch: Body, else_branch: Body) -> str:
    """Both branches are functions, of which one runs. (Under vmap with a condition that differs between
    rows, JAX runs both and selects.) A condition that is known is gone before."""
    outputs = range(then_branch.outputs)
    then = then_branch.bind(()).define("then_branch", (), outputs)
    otherwise = else_branch.bind(()).define("else_branch", (), outputs)
    flag = condition if condition.known_shape == () else f"jnp.reshape({condition}, ())"
    return call("jax.lax.cond", flag, then, otherwise)


@op("Loop", outputs=None, constants=(0, 1))
def loop(
    trips: Operand | np.ndarray | None,
    condition: Operand | np.ndarray | None,
    *carried: Operand,
    body: Body,
    results: tuple[Result, ...],
) -> str:
    """Three kinds: a known number of trips is a scan; a condition without outputs for each trip is a while
    loop; a condition with such outputs is a scan over the largest number of trips that stops changing once
    the condition is false (its outputs are zeros from there on)."""
    always = condition is None or (isinstance(condition, np.ndarray) and bool(number(condition)))
    n = len(carried)
    parameters = [Operand(f"state_{i}", c.known_shape, c.known_dtype) for i, c in enumerate(carried)]
    index = Operand("i", (), np.dtype(np.int64))
    flag = np.array(True) if always else Operand("going", (), _BOOL)
    bound = body.bind([index, flag, *parameters])
    state, scanned = range(1, 1 + n), range(1 + n, body.outputs)
    inputs = [0, *range(2, 2 + n)]
    ends = bound.constant(0)
    counted = always and ends is not None and bool(number(ends))
    known = isinstance(trips, np.ndarray)
    initial = f"({', '.join(map(str, carried))}{',' if n == 1 else ''})"
    limit = number(trips) if isinstance(trips, np.ndarray) else trips
    if isinstance(trips, np.ndarray) and int(number(trips)) > np.iinfo(np.int32).max:
        trips, known, limit = None, False, None  # no limit, as TensorFlow 1 writes it
    if counted and trips is not None and (known or not scanned):
        step = bound.define("step", inputs, [*state, *scanned])
        text = call("layers.counted_loop", step, limit, initial)
    elif not scanned:
        step = bound.define("step", inputs, [0, *state])
        start = None if always else _condition_text(condition)
        text = call("layers.while_loop", step, initial, condition=start, max_trips=limit)
    elif known:
        step = bound.define("step", inputs, [0, *state, *scanned])
        start = None if always else _condition_text(condition)
        text = call("layers.masked_loop", step, limit, initial, condition=start)
    else:
        raise ValueError("outputs for each trip and no constant maximum of trips; give the loop one")
    return f"{text}[0]" if len(results) == 1 else text


@op("Scan", outputs=None)
def scan(
    *operands: Operand,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
    results: tuple[Result, ...],
) -> str:
    n = len(operands) - num_scan_inputs
    states, sequences = operands[:n], operands[n:]
    axes = scan_input_axes or [0] * num_scan_inputs
    slices = [
        None if s.known_shape is None else tuple(np.delete(s.known_shape, a).tolist())
        for s, a in zip(sequences, axes, strict=True)
    ]
    bound = body.bind(
        [
            *(Operand(f"state_{i}", s.known_shape, s.known_dtype) for i, s in enumerate(states)),
            *(
                Operand(f"x_{i}", d, s.known_dtype)
                for i, (s, d) in enumerate(zip(sequences, slices, strict=True))
            ),
        ]
    )
    step = bound.define("step", range(body.inputs), range(body.outputs))
    ends = scan_output_axes or []
    text = call(
        "layers.scan",
        step,
        f"({', '.join(map(str, states))}{',' if n == 1 else ''})",
        f"({', '.join(map(str, sequences))}{',' if num_scan_inputs == 1 else ''})",
        axes=repr(tuple(axes)) if any(axes) else None,
        backward=_flags(scan_input_directions),
        output_axes=repr(tuple(ends)) if any(ends) else None,
        output_backward=_flags(scan_output_directions),
    )
    return f"{text}[0]" if len(results) == 1 else text


def _flags(directions: list[int] | None) -> str | None:
    flags = tuple(bool(d) for d in directions or ())
    return repr(flags) if any(flags) else None


def _condition_text(condition: Operand | np.ndarray | None) -> str:
    return str(bool(number(condition))) if isinstance(condition, np.ndarray) else str(condition)
