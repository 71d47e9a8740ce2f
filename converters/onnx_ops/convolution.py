"""Convolutions and pooling: `[N, C, spatial...]`. Automatic padding and rounding up are resolved here, so the
module has plain numbers."""

from collections.abc import Sequence

import numpy as np

from converters.onnx_ops.registry import Operand, Result, call, changed, op, tuple_text

Pads = list[tuple[int, int]]


def _window(
    x: Operand,
    kernel: Sequence[int],
    strides: list[int] | None,
    pads: list[int] | None,
    dilations: list[int] | None,
    auto_pad: bytes,
) -> tuple[list[int], Pads, list[int]]:
    """Strides, pads for each side, dilations."""
    n = len(kernel)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    if auto_pad in (b"NOTSET", b""):
        flat = pads or [0] * (2 * n)
        return strides, list(zip(flat[:n], flat[n:], strict=True)), dilations
    if auto_pad == b"VALID":
        return strides, [(0, 0)] * n, dilations
    found: Pads = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        low = total // 2 if auto_pad == b"SAME_UPPER" else total - total // 2
        found.append((low, total - low))
    return strides, found, dilations


def _keywords(strides: list[int], pads: Pads, dilations: list[int]) -> dict[str, str | None]:
    n = len(strides)
    return {
        "strides": None if strides == [1] * n else tuple_text(strides),
        "pads": None if pads == [(0, 0)] * n else repr(pads),
        "dilations": None if dilations == [1] * n else tuple_text(dilations),
    }


def conv_keywords(
    x: Operand,
    w: Operand,
    kernel_shape: list[int] | None,
    strides: list[int] | None,
    pads: list[int] | None,
    dilations: list[int] | None,
    group: int,
    auto_pad: bytes,
) -> dict[str, str | None]:
    """The keyword arguments of `layers.conv`, of convolutions of any dtype."""
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ValueError(f"kernel_shape {kernel_shape} beside a kernel of shape {list(w.shape)}")
    window = _window(x, w.shape[2:], strides, pads, dilations, auto_pad)
    return {**_keywords(*window), "groups": changed(group, 1)}


@op("Conv")
def conv(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: bytes = b"NOTSET",
) -> str:
    return call(
        "layers.conv", x, w, b, **conv_keywords(x, w, kernel_shape, strides, pads, dilations, group, auto_pad)
    )


@op("ConvTranspose")
def conv_transpose(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: bytes = b"NOTSET",
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
) -> str:
    """Pads cut the full result; `output_shape` and automatic padding say what is left of it."""
    kernel = w.shape[2:]
    n = len(kernel)
    strides, dilations, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
    flat = pads or [0] * (2 * n)
    cut: Pads = list(zip(flat[:n], flat[n:], strict=True))
    wanted = output_shape[-n:] if output_shape else None
    if wanted is None and auto_pad in (b"SAME_UPPER", b"SAME_LOWER"):
        wanted = [d * s for d, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        cut = []
        for size, k, s, d, e, out in zip(x.shape[2:], kernel, strides, dilations, extra, wanted, strict=True):
            total = (size - 1) * s + e + (k - 1) * d + 1 - out
            low = total // 2 if auto_pad == b"SAME_UPPER" else total - total // 2
            # A shape larger than the full result is filled at the end.
            cut.append((low, total - low) if total > 0 else (0, total))
    return call(
        "layers.conv_transpose",
        x,
        w,
        b,
        **_keywords(strides, cut, dilations),
        output_padding=None if extra == [0] * n else tuple_text(extra),
        groups=changed(group, 1),
    )


@op("MaxPool", outputs=None)
def max_pool(
    x: Operand,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
    results: tuple[Result, ...],
) -> str:
    strides, low_high, dilations = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    extra = _ceil_extra(x, kernel_shape, strides, low_high, dilations) if ceil_mode else [0] * len(strides)
    padded = [(a, b + e) for (a, b), e in zip(low_high, extra, strict=True)]
    keywords = _keywords(strides, padded, dilations)
    window = tuple_text(kernel_shape)
    if len(results) == 1:
        return call("layers.max_pool", x, window, **keywords)
    column_major = changed(bool(storage_order), False)
    return call("layers.max_pool_with_indices", x, window, **keywords, column_major=column_major)


@op("AveragePool")
def average_pool(
    x: Operand,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> str:
    strides, low_high, dilations = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    extra = _ceil_extra(x, kernel_shape, strides, low_high, dilations) if ceil_mode else [0] * len(strides)
    return call(
        "layers.average_pool",
        x,
        tuple_text(kernel_shape),
        **_keywords(strides, low_high, dilations),
        overhang=tuple_text(extra) if any(extra) else None,
        count_padding=changed(bool(count_include_pad), False),
    )


@op("LpPool")
def lp_pool(
    x: Operand,
    *,
    kernel_shape: list[int],
    p: int = 2,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0,
) -> str:
    strides, low_high, dilations = _window(x, kernel_shape, strides, pads, dilations, auto_pad)
    extra = _ceil_extra(x, kernel_shape, strides, low_high, dilations) if ceil_mode else [0] * len(strides)
    padded = [(a, b + e) for (a, b), e in zip(low_high, extra, strict=True)]
    return call("layers.lp_pool", x, tuple_text(kernel_shape), p, **_keywords(strides, padded, dilations))


@op("GlobalAveragePool")
def global_average_pool(x: Operand) -> str:
    return f"jnp.mean({x}, axis={tuple_text(range(2, x.rank))}, keepdims=True)"


@op("GlobalMaxPool")
def global_max_pool(x: Operand) -> str:
    return f"jnp.max({x}, axis={tuple_text(range(2, x.rank))}, keepdims=True)"


@op("GlobalLpPool")
def global_lp_pool(x: Operand, *, p: int = 2) -> str:
    axes = tuple_text(range(2, x.rank))
    return f"(jnp.sum(jnp.abs({x}) ** {p}, axis={axes}, keepdims=True) ** {1 / p!r})"


@op("MaxUnpool", static=(2,))
def max_unpool(
    x: Operand,
    indices: Operand,
    output_shape: np.ndarray | None = None,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
) -> str:
    """The indices point into the smallest shape that the pooling could have come from, even where a larger
    one is asked for."""
    strides, low_high, _ = _window(x, kernel_shape, strides, pads, None, b"NOTSET")
    inferred = [
        (d - 1) * s + k - a - b
        for d, s, k, (a, b) in zip(x.shape[2:], strides, kernel_shape, low_high, strict=True)
    ]
    wanted = None if output_shape is None else tuple_text(output_shape[2:])
    return call("layers.max_unpool", x, indices, tuple_text(inferred), wanted)


def _ceil_extra(
    x: Operand, kernel: Sequence[int], strides: list[int], pads: Pads, dilations: list[int]
) -> list[int]:
    """Padding beyond `pads` that the last window needs when its number is rounded up; a window that would
    start in the right padding is left out."""
    extra = []
    for size, k, s, (low, high), d in zip(x.shape[2:], kernel, strides, pads, dilations, strict=True):
        span = (k - 1) * d + 1
        count = -(-(size + low + high - span) // s) + 1
        if (count - 1) * s >= size + low:
            count -= 1
        extra.append(max((count - 1) * s + span - (size + low + high), 0))
    return extra
