# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Computes only the rows and columns that something reads.

Rule: a slice of an elementwise op, a product, a reduction, a concatenation, a broadcast or a change of axes
is the same op on slices of its operands; a part of a concatenation that no slice reaches is not computed.
Condition: of every value the smallest range along each axis that covers all of its readers is computed, so a
value that is also read as a whole stays as it is. Axes whose size is the number of candidates stay whole.
Effect on FLOPs: a product whose result is read at one of T steps costs 1/T, and so does everything before it
that mixes no steps. The numbers do not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from mlir_pipeline.dataflow import ELEMENTWISE, REDUCTIONS
from mlir_pipeline.jaxpr import Read, retrace

Range = tuple[int, int] | None
"""Start and end along an axis; None for all of an axis whose size depends on the number of candidates."""
Window = tuple[Range, ...]
Take = Callable[[int], Any]
"""The part of an operand, by its position, that an equation's rule asked for."""


def slice_pushdown(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Applies the rule to a flat jaxpr."""
    made, asked = _windows(closed.jaxpr)
    read_eqns = [eqn for eqn in closed.jaxpr.eqns if id(eqn) in asked]

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        windows = asked.get(id(eqn))
        if windows is None or all(
            isinstance(v, core.Literal) or w == _whole(v)
            for v, w in zip((*eqn.invars, *eqn.outvars), (*windows, *map(made.get, eqn.outvars)), strict=True)
        ):
            return None

        def take(position: int) -> Any:
            var, window = eqn.invars[position], windows[position]
            assert window is not None
            stored = made.get(var) if isinstance(var, core.Var) else None
            return _cut(read(var), stored or _whole(var), window)

        return _apply(eqn, [made.get(v) for v in eqn.outvars], windows, take)

    return retrace(core.ClosedJaxpr(closed.jaxpr.replace(eqns=read_eqns), closed.consts), rule)


def _windows(
    jaxpr: core.Jaxpr,
) -> tuple[dict[core.Var, Window], dict[int, list[Window | None]]]:
    """The window of each value that is computed, and for each equation that is, by its id, the windows of its
    operands that it reads."""
    needed: dict[core.Var, Window] = {v: _whole(v) for v in jaxpr.outvars if isinstance(v, core.Var)}
    made: dict[core.Var, Window] = {}
    asked: dict[int, list[Window | None]] = {}
    for eqn in reversed(jaxpr.eqns):
        wanted = [needed.get(v) for v in eqn.outvars]
        if all(w is None for w in wanted):
            continue
        stored, operands = _ask(eqn, wanted)
        made.update({v: w for v, w in zip(eqn.outvars, stored, strict=True) if w is not None})
        asked[id(eqn)] = operands
        for v, window in zip(eqn.invars, operands, strict=True):
            if isinstance(v, core.Var) and window is not None:
                needed[v] = _hull(needed[v], window) if v in needed else window
    return made, asked


def _ask(
    eqn: core.JaxprEqn, wanted: Sequence[Window | None]
) -> tuple[Sequence[Window | None], list[Window | None]]:
    """What an equation computes when its results are wanted in windows, and what it reads for it."""
    name = eqn.primitive.name
    if name == "split":
        return wanted, [_split_window(eqn, wanted)]
    window = wanted[0]
    if len(wanted) == 1 and window is not None:
        if name in ELEMENTWISE:
            return [window], [_repeated(v, window) for v in eqn.invars]
        if name in REDUCTIONS:
            kept = iter(window)
            shape = eqn.invars[0].aval.shape
            return [window], [
                tuple(_all(d) if a in eqn.params["axes"] else next(kept) for a, d in enumerate(shape))
            ]
        ask = _ASK.get(name)
        if ask is not None and (found := ask(eqn, window)) is not None:
            return [found[0]], found[1]
    return [_whole(v) for v in eqn.outvars], [_whole(v) for v in eqn.invars]


def _ask_slice(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]] | None:
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    strides = eqn.params["strides"] or [1] * len(window)
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    stored: list[Range] = []
    asked: list[Range] = []
    for a, r in enumerate(window):
        if not isinstance(shape[a], int):
            if isinstance(result[a], int) or shape[a] != result[a]:
                return None  # some of the candidates
            stored.append(None)
            asked.append(None)
        elif r is None or strides[a] != 1:
            stored.append(_all(result[a]))
            asked.append((starts[a], limits[a]))
        else:
            stored.append(r)
            asked.append((starts[a] + r[0], starts[a] + r[1]))
    return tuple(stored), [tuple(asked)]


def _ask_broadcast(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]] | None:
    if len(eqn.invars) != 1:
        return None
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    at = [int(d) for d in eqn.params["broadcast_dimensions"]]
    return window, [
        tuple(
            (0, 1) if _is_one(d) and not _is_one(result[p]) else window[p]
            for d, p in zip(shape, at, strict=True)
        )
    ]


def _ask_concatenate(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]] | None:
    axis = eqn.params["dimension"]
    along = window[axis]
    if along is None:
        return None
    asked: list[Window | None] = []
    start = 0
    for v in eqn.invars:
        low, high = max(along[0] - start, 0), min(along[1] - start, v.aval.shape[axis])
        start += v.aval.shape[axis]
        asked.append((*window[:axis], (low, high), *window[axis + 1 :]) if low < high else None)
    return window, asked


def _ask_stack(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]] | None:
    axis = eqn.params["axis"]
    along = window[axis]
    if along is None:
        return None
    part = (*window[:axis], *window[axis + 1 :])
    return window, [part if along[0] <= i < along[1] else None for i in range(len(eqn.invars))]


def _ask_dot(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]]:
    contract, batch = eqn.params["dimension_numbers"]
    results = list(window)
    shared, results = results[: len(batch[0])], results[len(batch[0]) :]
    asked: list[Window | None] = []
    for v, summed, together in zip(eqn.invars, contract, batch, strict=True):
        own: list[Range] = []
        for a, d in enumerate(v.aval.shape):
            if a in summed:
                own.append(_all(d))
            else:
                own.append(shared[list(together).index(a)] if a in together else results.pop(0))
        asked.append(tuple(own))
    return window, asked


def _ask_transpose(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]]:
    place = {int(source): a for a, source in enumerate(eqn.params["permutation"])}
    return window, [tuple(window[place[a]] for a in range(len(window)))]


def _ask_squeeze(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]]:
    kept = iter(window)
    dropped = eqn.params["dimensions"]
    return window, [tuple((0, 1) if a in dropped else next(kept) for a in range(eqn.invars[0].aval.ndim))]


def _ask_reshape(eqn: core.JaxprEqn, window: Window) -> tuple[Window, list[Window | None]] | None:
    """The axes that a reshape leaves alone at the front and at the back pass a window on."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.params["dimensions"] is not None or len(eqn.invars) != 1:
        return None
    front = _common(before, after)
    back = _common(before[front:][::-1], after[front:][::-1])
    end, own_end = len(after) - back, len(before) - back
    stored = (*window[:front], *map(_all, after[front:end]), *window[end:])
    asked = (*window[:front], *map(_all, before[front:own_end]), *window[end:])
    return stored, [asked]


def _common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many dimensions two shapes have in common from the start."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if type(a) is not type(b) or a != b:
            break
        count += 1
    return count


_ASK: dict[str, Callable[[core.JaxprEqn, Window], tuple[Window, list[Window | None]] | None]] = {
    "slice": _ask_slice,
    "broadcast_in_dim": _ask_broadcast,
    "concatenate": _ask_concatenate,
    "stack": _ask_stack,
    "dot_general": _ask_dot,
    "transpose": _ask_transpose,
    "squeeze": _ask_squeeze,
    "reshape": _ask_reshape,
}


def _split_window(eqn: core.JaxprEqn, wanted: Sequence[Window | None]) -> Window | None:
    axis, start = eqn.params["axis"], 0
    found: Window | None = None
    for size, window in zip(eqn.params["sizes"], wanted, strict=True):
        if window is not None:
            shifted = _shift(window, axis, start)
            found = shifted if found is None else _hull(found, shifted)
        start += size
    return found


def _apply(
    eqn: core.JaxprEqn, made: list[Window | None], windows: list[Window | None], take: Take
) -> list[Any]:
    """An equation on the windows that it asked for."""
    name, params = eqn.primitive.name, eqn.params
    if name == "split":
        return _apply_split(eqn, made, windows, take)
    (window,) = made
    assert window is not None
    sizes = [d if r is None else r[1] - r[0] for d, r in zip(eqn.outvars[0].aval.shape, window, strict=True)]
    if name == "slice":
        strides = params["strides"]
        value = take(0)
        return [
            value
            if strides is None or set(strides) == {1}
            else lax.slice(value, [0] * value.ndim, value.shape, strides)
        ]
    if name == "broadcast_in_dim":
        return [lax.broadcast_in_dim(take(0), sizes, params["broadcast_dimensions"])]
    if name == "reshape":
        return [lax.reshape(take(0), sizes)]
    if name == "stack":
        parts = [lax.expand_dims(take(i), (params["axis"],)) for i, w in enumerate(windows) if w is not None]
        return [lax.concatenate(parts, params["axis"]) if len(parts) > 1 else parts[0]]
    if name == "concatenate":
        parts = [take(i) for i, w in enumerate(windows) if w is not None]
        return [lax.concatenate(parts, params["dimension"]) if len(parts) > 1 else parts[0]]
    return [eqn.primitive.bind(*map(take, range(len(eqn.invars))), **params)]


def _apply_split(
    eqn: core.JaxprEqn, made: list[Window | None], windows: list[Window | None], take: Take
) -> list[Any]:
    axis, start = eqn.params["axis"], 0
    (stored,) = windows
    assert stored is not None
    value = take(0)
    pieces = []
    for size, window in zip(eqn.params["sizes"], made, strict=True):
        pieces.append(None if window is None else _cut(value, stored, _shift(window, axis, start)))
        start += size
    return pieces


def _cut(value: Any, stored: Window, window: Window) -> Any:
    """A window of a value that is there in the window `stored`."""
    if stored == window:
        return value
    starts = [0 if r is None or s is None else r[0] - s[0] for s, r in zip(stored, window, strict=True)]
    ends = [d if r is None else a + r[1] - r[0] for d, a, r in zip(value.shape, starts, window, strict=True)]
    if not isinstance(value, jax.core.Tracer):
        return np.asarray(value)[tuple(map(slice, starts, ends))]
    return lax.slice(value, starts, ends)


def _repeated(atom: Any, window: Window) -> Window:
    """What an elementwise op reads of an operand that has axes of size 1 where the result repeats it."""
    return tuple(
        (0, 1) if _is_one(d) else r for d, r in zip(atom.aval.shape, window, strict=bool(atom.aval.shape))
    )


def _shift(window: Window, axis: int, by: int) -> Window:
    along = window[axis]
    return (*window[:axis], along and (along[0] + by, along[1] + by), *window[axis + 1 :])


def _hull(left: Window, right: Window) -> Window:
    return tuple(
        None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))
        for a, b in zip(left, right, strict=True)
    )


def _all(dimension: Any) -> Range:
    return (0, dimension) if isinstance(dimension, int) else None


def _whole(atom: Any) -> Window:
    return tuple(_all(d) for d in atom.aval.shape)


def _is_one(dimension: Any) -> bool:
    return isinstance(dimension, int) and dimension == 1
