"""Quantized values: real = scale * (quantized - zero point)."""

import numpy as np

from converters.onnx_ops.convolution import conv_keywords
from converters.onnx_ops.registry import Operand, call, changed, dtype_name, onnx_dtype, op


@op("QuantizeLinear")
def quantize_linear(
    x: Operand,
    scale: Operand,
    zero: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> str:
    dtype = (
        zero.dtype if zero is not None else onnx_dtype(output_dtype) if output_dtype else np.dtype("uint8")
    )
    return call(
        "layers.quantize",
        x,
        scale,
        zero,
        dtype=dtype_name(dtype),
        axis=changed(axis, 1),
        block_size=changed(block_size, 0),
        precision=dtype_name(onnx_dtype(precision)) if precision else None,
        saturate=changed(bool(saturate), True),
    )


@op("DequantizeLinear")
def dequantize_linear(
    x: Operand,
    scale: Operand,
    zero: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> str:
    return call(
        "layers.dequantize",
        x,
        scale,
        zero,
        dtype=dtype_name(onnx_dtype(output_dtype)) if output_dtype else None,
        axis=changed(axis, 1),
        block_size=changed(block_size, 0),
    )


@op("DynamicQuantizeLinear", outputs=3)
def dynamic_quantize_linear(x: Operand) -> str:
    return call("layers.dynamic_quantize", x)


@op("MatMulInteger")
def matmul_integer(
    a: Operand, b: Operand, a_zero: Operand | None = None, b_zero: Operand | None = None
) -> str:
    return call("layers.matmul_integer", a, b, a_zero, b_zero)


@op("QLinearMatMul")
def quantized_matmul(
    a: Operand,
    a_scale: Operand,
    a_zero: Operand,
    b: Operand,
    b_scale: Operand,
    b_zero: Operand,
    y_scale: Operand,
    y_zero: Operand,
) -> str:
    return call("layers.quantized_matmul", a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero)


@op("ConvInteger")
def conv_integer(
    x: Operand,
    w: Operand,
    x_zero: Operand | None = None,
    w_zero: Operand | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: bytes = b"NOTSET",
) -> str:
    keywords = conv_keywords(x, w, kernel_shape, strides, pads, dilations, group, auto_pad)
    return call("layers.conv_integer", x, w, x_zero, w_zero, **keywords)


@op("QLinearConv")
def quantized_conv(
    x: Operand,
    x_scale: Operand,
    x_zero: Operand,
    w: Operand,
    w_scale: Operand,
    w_zero: Operand,
    y_scale: Operand,
    y_zero: Operand,
    b: Operand | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: bytes = b"NOTSET",
) -> str:
    keywords = conv_keywords(x, w, kernel_shape, strides, pads, dilations, group, auto_pad)
    operands = (x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b)
    return call("layers.quantized_conv", *operands, **keywords)
