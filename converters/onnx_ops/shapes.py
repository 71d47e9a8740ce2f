"""Operators that move values without computing: reshape, transpose, slice, concat, pad, tile."""

import numpy as np

from converters.onnx_ops.registry import (
    Operand,
    Result,
    axis_of,
    broadcast,
    call,
    changed,
    dtype_name,
    op,
    reshaped,
    tuple_text,
)


@op("Concat")
def concat(*xs: Operand, axis: int) -> str:
    """`concatenate` of `jaxrank.flax_layers` repeats a request row beside candidate rows; where no operand
    can hold such a row, it is JAX's."""
    at = axis_of(axis, xs[0])
    plain = at == 0 or all(x.shape[0] != 1 for x in xs)
    return f"{'jnp.' if plain else ''}concatenate([{', '.join(map(str, xs))}], axis={at})"


@op("Reshape", static=(1,))
def reshape(x: Operand, shape: np.ndarray, *, allowzero: int = 0) -> str:
    target = [x.shape[i] if d == 0 and not allowzero else int(d) for i, d in enumerate(shape)]
    return reshaped(x, _resolve(x.shape, target))


@op("Flatten")
def flatten(x: Operand, *, axis: int = 1) -> str:
    at = axis + x.rank if axis < 0 else axis
    return reshaped(x, (int(np.prod(x.shape[:at])), int(np.prod(x.shape[at:]))))


@op("Squeeze", static=(1,))
def squeeze(x: Operand, axes: np.ndarray | None = None) -> str:
    drop = (
        [i for i, d in enumerate(x.shape) if d == 1] if axes is None else [axis_of(int(a), x) for a in axes]
    )
    if 0 in drop:
        return reshaped(x, tuple(d for i, d in enumerate(x.shape) if i not in drop))
    return f"jnp.squeeze({x}, axis={tuple_text(drop)})"


@op("Unsqueeze", static=(1,))
def unsqueeze(x: Operand, axes: np.ndarray) -> str:
    rank = x.rank + axes.size
    return f"jnp.expand_dims({x}, {tuple_text([int(a) % rank for a in axes.reshape(-1)])})"


@op("Expand", static=(1,))
def expand(x: Operand, shape: np.ndarray) -> str:
    target = np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))
    return x.text if target == x.shape else broadcast(x, target)


@op("Tile", static=(1,))
def tile(x: Operand, repeats: np.ndarray) -> str:
    if (repeats == 1).all():
        return x.text
    if all(d == 1 or r == 1 for d, r in zip(x.shape, repeats, strict=True)):
        return broadcast(x, tuple(int(d * r) for d, r in zip(x.shape, repeats, strict=True)))
    return f"jnp.tile({x}, {tuple_text(repeats)})"


@op("Transpose")
def transpose(x: Operand, *, perm: list[int] | None = None) -> str:
    return f"jnp.transpose({x}{'' if perm is None else f', {tuple_text(perm)}'})"


@op("Slice", static=(1, 2, 3, 4))
def slice_(
    x: Operand,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> str:
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    parts = [":"] * x.rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis_of(int(axis), x)
        parts[at] = _slice_text(int(start), int(end), int(step), x.shape[at])
    while parts and parts[-1] == ":":
        parts.pop()
    return f"{x}[{', '.join(parts)}]" if parts else x.text


def _slice_text(start: int, end: int, step: int, size: int) -> str:
    """ONNX clamps both ends, as Python does; only the open ends of a backward slice are spelled otherwise."""
    if step < 0:
        low = "" if start >= size - 1 else str(start)
        return f"{low}:{'' if end < -size else end}:{step}"
    low = "" if start == 0 or start <= -size else str(start)
    high = "" if end >= size else str(end)
    return f"{low}:{high}" + ("" if step == 1 else f":{step}")


@op("Split", static=(1,), outputs=None)
def split(
    x: Operand,
    sizes: np.ndarray | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    results: tuple[Result, ...],
) -> str:
    """Without sizes the parts are equal, and the last may be shorter."""
    at, count = axis_of(axis, x), num_outputs or len(results)
    points: object = count
    if sizes is not None:
        points = [int(p) for p in np.cumsum(sizes)[:-1]]
    elif x.shape[at] % count:
        part = -(-x.shape[at] // count)
        points = [part * i for i in range(1, count)]
    text = f"jnp.split({x}, {points}, axis={at})"
    return f"{text}[0]" if len(results) == 1 else text


@op("Pad", static=(1, 3))
def pad(
    x: Operand,
    pads: np.ndarray,
    value: Operand | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: bytes = b"constant",
) -> str:
    """Negative pads cut."""
    if mode not in (b"constant", b"reflect", b"edge", b"wrap"):
        raise ValueError(f"mode {mode.decode()!r}")
    half = len(pads) // 2
    widths = [(0, 0)] * x.rank
    for axis, low, high in zip(range(half) if axes is None else axes, pads[:half], pads[half:], strict=True):
        widths[axis_of(int(axis), x)] = (int(low), int(high))
    text = x.text
    if any(w < 0 for pair in widths for w in pair):
        cuts = [f"{max(-a, 0) or ''}:{min(b, 0) or ''}" for a, b in widths]
        text, widths = f"{x}[{', '.join(cuts)}]", [(max(a, 0), max(b, 0)) for a, b in widths]
    if not any(w for pair in widths for w in pair):
        return text
    fill = None
    if value is not None and mode == b"constant":
        fill = value if not value.known_shape else f"jnp.reshape({value}, ())"
    return call("jnp.pad", text, widths, mode=changed(mode.decode(), "constant"), constant_values=fill)


@op("Range", static=(0, 1, 2))
def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> str:
    return f"jnp.arange({start.item()}, {limit.item()}, {delta.item()}, dtype={dtype_name(start.dtype)})"


@op("ConstantOfShape", static=(0,))
def constant_of_shape(shape: np.ndarray, *, value: object = None) -> str:
    from onnx import numpy_helper

    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)  # type: ignore[arg-type]
    return f"jnp.full({tuple_text(shape)}, {fill.reshape(-1)[0].item()!r}, {dtype_name(fill.dtype)})"


@op("Shape")
def shape(x: Operand, *, start: int = 0, end: int | None = None) -> str:
    """Known shapes are folded before: this one refuses the others."""
    return f"jnp.array({list(x.shape[start:end])}, int)"


@op("Size")
def size(x: Operand) -> str:
    return f"jnp.array({int(np.prod(x.shape))}, int)"


@op("DepthToSpace")
def depth_to_space(x: Operand, *, blocksize: int, mode: bytes = b"DCR") -> str:
    return call("layers.depth_to_space", x, blocksize, mode=changed(mode.decode(), "DCR"))


@op("SpaceToDepth")
def space_to_depth(x: Operand, *, blocksize: int, mode: bytes = b"DCR") -> str:
    return call("layers.space_to_depth", x, blocksize, mode=changed(mode.decode(), "DCR"))


@op("ReverseSequence")
def reverse_sequence(x: Operand, lengths: Operand, *, batch_axis: int = 1, time_axis: int = 0) -> str:
    return call("layers.reverse_sequence", x, lengths, batch_axis=batch_axis, time_axis=time_axis)


@op("Col2Im", static=(1, 2))
def col2im(
    x: Operand,
    image: np.ndarray,
    block: np.ndarray,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> str:
    n = len(image)
    pads = pads or [0] * (2 * n)
    return call(
        "layers.col2im",
        x,
        tuple_text(image),
        tuple_text(block),
        strides=tuple_text(strides or [1] * n),
        pads=list(zip(pads[:n], pads[n:], strict=True)),
        dilations=tuple_text(dilations or [1] * n),
    )


def _resolve(source: tuple[int, ...], target: list[int]) -> tuple[int, ...]:
    known = int(np.prod([d for d in target if d != -1], dtype=np.int64))
    return tuple(int(np.prod(source, dtype=np.int64)) // max(known, 1) if d == -1 else d for d in target)
