"""Resampling. A resize is separable: along each axis it is a product with a matrix of weights, which NumPy
makes when the model is traced."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def resize(
    x: jax.Array,
    shape: Sequence[int],
    *,
    mode: str = "nearest",
    coordinates: str = "half_pixel",
    factors: Sequence[float] | None = None,
    rounding: str = "round_prefer_floor",
    cubic_coefficient: float = -0.75,
    antialias: bool = False,
    exclude_outside: bool = False,
    crop: Sequence[tuple[float, float]] | None = None,
    extrapolation_value: float = 0.0,
) -> jax.Array:
    """`x` resampled to `shape`.

    Args:
        mode: `nearest`, `linear` or `cubic`.
        coordinates: how an output index becomes a position in the input: `half_pixel`, `pytorch_half_pixel`,
            `half_pixel_symmetric`, `align_corners`, `asymmetric`, `tf_crop_and_resize`.
        factors: output size over input size as that computes with; the quotient of the shapes by default.
        rounding: which neighbour is nearest: `round_prefer_floor`, `round_prefer_ceil`, `floor`, `ceil`.
        antialias: stretch the kernel where an axis shrinks.
        exclude_outside: weights beyond the edge are 0, not the edge's.
        crop: for `tf_crop_and_resize` the part of each axis, as fractions; positions outside of the input are
            `extrapolation_value`.
    """
    y = x if jnp.issubdtype(x.dtype, jnp.floating) or mode == "nearest" else x.astype(jnp.float32)
    outside: list[tuple[int, np.ndarray]] = []
    for axis, (old, new) in enumerate(zip(x.shape, shape, strict=True)):
        factor = new / old if factors is None else factors[axis]
        if old == new and factor == 1 and (crop is None or crop[axis] == (0.0, 1.0)):
            continue
        place = _positions(coordinates, new, old, factor, (0.0, 1.0) if crop is None else crop[axis])
        if crop is not None:
            outside.append((axis, (place < 0) | (place > old - 1)))
        if mode == "nearest":
            y = jnp.take(y, np.clip(_nearest(place, rounding), 0, old - 1), axis=axis)
            continue
        kernel, reach = (_linear, 1.0) if mode == "linear" else (_cubic(cubic_coefficient), 2.0)
        stretch = min(factor, 1.0) if antialias else 1.0
        weights = _weights(place, old, kernel, reach, stretch, exclude_outside)
        y = jnp.moveaxis(jnp.tensordot(y, jnp.asarray(weights, y.dtype), axes=(axis, 1)), -1, axis)
    for axis, mask in outside:
        across = jnp.asarray(mask).reshape([-1 if i == axis else 1 for i in range(y.ndim)])
        y = jnp.where(across, extrapolation_value, y)
    return y.astype(x.dtype)


def grid_sample(
    x: jax.Array,
    grid: jax.Array,
    *,
    mode: str = "linear",
    padding: str = "zeros",
    align_corners: bool = False,
) -> jax.Array:
    """`x [N, C, spatial...]` at positions `grid [N, out..., axes]` from -1 to 1, the last axis first.

    Args:
        mode: `nearest`, `linear` or `cubic`.
        padding: beyond the edge is `zeros`, the `border`'s value, or the `reflection` at the border.
        align_corners: -1 and 1 are the centres of the outer values, not their outer edges.
    """
    sizes = x.shape[2:]
    points = []
    for axis, size in enumerate(sizes):
        place = grid[..., len(sizes) - 1 - axis]
        place = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
        place = jnp.round(place) if mode == "nearest" else place
        points.append(
            place if padding == "zeros" or mode == "cubic" else _inside(place, size, padding, align_corners)
        )
    if mode == "nearest":
        offsets: Sequence[int] = (0,)
    else:
        offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    kernel = _cubic(-0.75) if mode == "cubic" else _linear
    total = jnp.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
    for corner in itertools.product(offsets, repeat=len(sizes)):
        weight, index, valid = jnp.ones_like(points[0]), [], jnp.ones(points[0].shape, bool)
        for place, offset, size in zip(points, corner, sizes, strict=True):
            at = jnp.floor(place) + offset
            if mode != "nearest":
                weight = weight * kernel(jnp.abs(place - at), jnp)
            if padding != "zeros":
                at = jnp.trunc(_inside(at, size, padding, align_corners))
            valid = valid & (at >= 0) & (at <= size - 1)
            index.append(jnp.clip(at, 0, size - 1).astype(jnp.int32))
        values = jax.vmap(lambda image, *where: image[(slice(None), *where)])(x, *index)
        total = total + jnp.where(valid, weight, 0)[:, None] * values
    return total.astype(x.dtype)


def roi_align(
    x: jax.Array,
    boxes: jax.Array,
    batch: jax.Array,
    shape: tuple[int, int],
    *,
    samples: int,
    scale: float = 1.0,
    reduce: str = "avg",
    half_pixel: bool = True,
) -> jax.Array:
    """Images `[N, C, H, W]` at boxes `[R, 4]` (x1, y1, x2, y2) of image `batch [R]`: `[R, C, *shape]`.

    Each cell takes `samples x samples` bilinear samples, and of these the mean (`avg`) or the largest
    weighted neighbour (`max`).
    """
    shift = 0.5 if half_pixel else 0.0
    x1, y1, x2, y2 = jnp.moveaxis(boxes * scale - shift, -1, 0)
    width, height = x2 - x1, y2 - y1
    if not half_pixel:
        width, height = jnp.maximum(width, 1), jnp.maximum(height, 1)
    cells = [(jnp.arange(n * samples) + 0.5) / (n * samples) for n in shape]
    ys = y1[:, None] + cells[0] * height[:, None]
    xs = x1[:, None] + cells[1] * width[:, None]
    image = x[batch]  # [R, C, H, W]

    def neighbours(place: jax.Array, size: int) -> list[tuple[jax.Array, jax.Array]]:
        inside = (place >= -1) & (place <= size)
        place = jnp.clip(place, 0, size - 1)
        low = jnp.floor(place).astype(jnp.int32)
        rest = place - low
        high = jnp.minimum(low + 1, size - 1)
        return [(low, jnp.where(inside, 1 - rest, 0)), (high, jnp.where(inside, rest, 0))]

    parts = []
    for (row, row_weight), (column, column_weight) in itertools.product(
        neighbours(ys, x.shape[2]), neighbours(xs, x.shape[3])
    ):
        values = jax.vmap(lambda im, r, c: im[:, r[:, None], c[None]])(image, row, column)
        parts.append(values * (row_weight[:, None, :, None] * column_weight[:, None, None, :]))
    stacked = jnp.stack(parts)
    combined = jnp.sum(stacked, axis=0) if reduce == "avg" else jnp.max(stacked, axis=0)
    cut = jnp.reshape(combined, (*combined.shape[:2], shape[0], samples, shape[1], samples))
    return jnp.mean(cut, axis=(3, 5)) if reduce == "avg" else jnp.max(cut, axis=(3, 5))


def _positions(coordinates: str, new: int, old: int, factor: float, crop: tuple[float, float]) -> np.ndarray:
    """Where each output index lies in the input."""
    index, length = np.arange(new, dtype=np.float64), factor * old
    if coordinates == "asymmetric":
        return index / factor
    if coordinates == "align_corners":
        return np.zeros(new) if length == 1 else index * (old - 1) / (length - 1)
    if coordinates == "tf_crop_and_resize":
        start, end = crop
        if length == 1:
            return np.full(new, (start + end) * (old - 1) / 2)
        return start * (old - 1) + index * (end - start) * (old - 1) / (length - 1)
    centre = (index + 0.5) / factor - 0.5
    if coordinates == "half_pixel":
        return centre
    if coordinates == "pytorch_half_pixel":
        return centre if length > 1 else np.full(new, -0.5)
    if coordinates == "half_pixel_symmetric":
        return old / 2 * (1 - new / length) + centre
    raise ValueError(f"coordinates {coordinates!r}")


def _nearest(place: np.ndarray, rounding: str) -> np.ndarray:
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if rounding not in rules:
        raise ValueError(f"rounding {rounding!r}; there are {', '.join(rules)}")
    return rules[rounding](place).astype(np.int64)


def _weights(
    place: np.ndarray, size: int, kernel: Callable, reach: float, stretch: float, exclude_outside: bool
) -> np.ndarray:
    """`[new, size]`: how much of each input value is in each output value."""
    half = int(np.ceil(reach / stretch)) + 1
    taps = np.floor(place).astype(np.int64)[:, None] + np.arange(-half, half + 1)
    values = kernel(np.abs(taps - place[:, None]) * stretch, np)
    if exclude_outside:
        values = np.where((taps >= 0) & (taps < size), values, 0)
    if exclude_outside or stretch < 1:
        values = values / values.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(place), size))
    np.add.at(matrix, (np.arange(len(place))[:, None], np.clip(taps, 0, size - 1)), values)
    return matrix


def _linear(distance, numpy):  # noqa: ANN001, ANN202
    return numpy.maximum(1 - distance, 0)


def _cubic(a: float) -> Callable:
    """Keys' cubic convolution kernel (https://ieeexplore.ieee.org/document/1163711)."""

    def kernel(d, numpy):  # noqa: ANN001, ANN202
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return numpy.where(d <= 1, near, numpy.where(d < 2, far, 0))

    return kernel


def _inside(place: jax.Array, size: int, padding: str, align_corners: bool) -> jax.Array:
    if padding == "border":
        return jnp.clip(place, 0, size - 1)
    if padding != "reflection":
        return place
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return jnp.zeros_like(place)
    away = jnp.abs(place - low) % (2 * span)
    return low + jnp.where(away > span, 2 * span - away, away)
