"""Fourier transforms; complex values are pairs in the last axis."""

import numpy as np

from converters.onnx_ops.registry import Operand, call, changed, op
from converters.onnx_ops.registry import scalar as number


@op("DFT", static=(1, 2))
def dft(
    x: Operand,
    length: np.ndarray | None = None,
    axis: np.ndarray | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    **old: int,
) -> str:
    """The axis is an attribute, 1 by default, before opset 20."""
    if old.keys() - {"axis"}:
        raise ValueError(f"attributes {sorted(old)}")
    at = number(axis) if axis is not None else old.get("axis", -2)
    return call(
        "layers.dft",
        x,
        axis=at % x.rank,
        length=None if length is None else number(length),
        inverse=changed(bool(inverse), False),
        onesided=changed(bool(onesided), False),
    )


@op("STFT", static=(1, 3))
def stft(
    x: Operand,
    step: np.ndarray,
    window: Operand | None = None,
    length: np.ndarray | None = None,
    *,
    onesided: int = 1,
) -> str:
    if length is None and window is None:
        raise ValueError("neither a window nor a frame length")
    size = number(length) if length is not None else window.shape[0] if window is not None else 0
    return call("layers.stft", x, window=window, length=size, step=number(step), onesided=bool(onesided))
