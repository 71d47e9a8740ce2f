"""Resampling of images and volumes."""

import numpy as np

from converters.onnx_ops.registry import Operand, axis_of, call, changed, op, short, tuple_text


@op("Resize", static=(1, 2, 3))
def resize(
    x: Operand,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    mode: bytes = b"nearest",
    axes: list[int] | None = None,
    antialias: int = 0,
    coordinate_transformation_mode: bytes = b"half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: bytes = b"stretch",
    nearest_mode: bytes = b"round_prefer_floor",
) -> str:
    """Sizes are fixed here; the factors that coordinates are computed with go beside them where they are not
    the quotient of the sizes."""
    at = [axis_of(a, x) for a in axes] if axes else list(range(x.rank))
    target, factor = list(x.shape), [1.0] * x.rank
    if sizes is not None and sizes.size:
        wanted = [int(s) for s in sizes]
        quotients = [w / x.shape[a] for w, a in zip(wanted, at, strict=True)]
        if keep_aspect_ratio_policy != b"stretch":
            pick = min if keep_aspect_ratio_policy == b"not_larger" else max
            quotients = [pick(quotients)] * len(at)
            # Half goes up, as in the operator's definition.
            wanted = [int(np.floor(q * x.shape[a] + 0.5)) for q, a in zip(quotients, at, strict=True)]
        for a, w, q in zip(at, wanted, quotients, strict=True):
            target[a], factor[a] = w, q
    elif scales is not None and scales.size:
        for a, s in zip(at, scales.tolist(), strict=True):
            target[a], factor[a] = int(np.floor(x.shape[a] * s)), s
    else:
        raise ValueError("neither scales nor sizes")
    crop = None
    if coordinate_transformation_mode == b"tf_crop_and_resize" and roi is not None:
        low, high = roi[: len(at)].tolist(), roi[len(at) :].tolist()
        crop = [(0.0, 1.0)] * x.rank
        for a, start, end in zip(at, low, high, strict=True):
            crop[a] = (short(start), short(end))
    plain = all(abs(f * d - t) < 1e-6 for f, d, t in zip(factor, x.shape, target, strict=True))
    return call(
        "layers.resize",
        x,
        tuple_text(target),
        mode=changed(mode.decode(), "nearest"),
        coordinates=changed(coordinate_transformation_mode.decode(), "half_pixel"),
        factors=None if plain else repr(tuple(factor)),
        rounding=changed(nearest_mode.decode(), "round_prefer_floor") if mode == b"nearest" else None,
        cubic_coefficient=changed(cubic_coeff_a, -0.75),
        antialias=changed(bool(antialias), False),
        exclude_outside=changed(bool(exclude_outside), False),
        crop=None if crop is None else repr(crop),
        extrapolation_value=changed(extrapolation_value, 0.0),
    )


@op("Upsample", static=(1,))
def upsample(x: Operand, scales: np.ndarray, *, mode: bytes = b"nearest") -> str:
    """The older name of a resize whose coordinates are quotients, rounded down."""
    return resize(
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode=b"asymmetric",
        nearest_mode=b"floor",
    )


@op("GridSample")
def grid_sample(
    x: Operand,
    grid: Operand,
    *,
    mode: bytes = b"linear",
    padding_mode: bytes = b"zeros",
    align_corners: int = 0,
) -> str:
    names = {b"bilinear": "linear", b"bicubic": "cubic"}
    return call(
        "layers.grid_sample",
        x,
        grid,
        mode=changed(names.get(mode, mode.decode()), "linear"),
        padding=changed(padding_mode.decode(), "zeros"),
        align_corners=changed(bool(align_corners), False),
    )


@op("RoiAlign")
def roi_align(
    x: Operand,
    rois: Operand,
    batch_indices: Operand,
    *,
    mode: bytes = b"avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    coordinate_transformation_mode: bytes = b"half_pixel",
) -> str:
    if sampling_ratio <= 0:
        raise ValueError("sampling_ratio 0, a number of samples that depends on values; give it a fixed one")
    return call(
        "layers.roi_align",
        x,
        rois,
        batch_indices,
        (output_height, output_width),
        samples=sampling_ratio,
        scale=changed(short(spatial_scale), 1.0),
        reduce=changed(mode.decode(), "avg"),
        half_pixel=changed(coordinate_transformation_mode == b"half_pixel", True),
    )
