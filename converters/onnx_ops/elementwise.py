"""Arithmetic, comparisons, activations, casts: one value of each operand for one value of the result."""

import re

import numpy as np

from converters.onnx_ops.registry import (
    OPS,
    OnnxOp,
    Operand,
    Result,
    call,
    changed,
    dtype_name,
    onnx_dtype,
    op,
)
from converters.onnx_ops.registry import scalar as number


def _binary(name: str, symbol: str) -> None:
    OPS[name] = OnnxOp(lambda a, b: f"({a} {symbol} {b})", literals=True)


def _call(name: str, function: str) -> None:
    OPS[name] = OnnxOp(lambda *operands: call(function, *operands), literals=name == "Where")


for _name, _symbol in {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "Equal": "==",
    "Less": "<",
    "LessOrEqual": "<=",
    "Greater": ">",
    "GreaterOrEqual": ">=",
    "And": "&",
    "Or": "|",
    "Xor": "^",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "BitwiseXor": "^",
}.items():
    _binary(_name, _symbol)

for _name, _function in {
    "Abs": "jnp.abs",
    "Acos": "jnp.arccos",
    "Acosh": "jnp.arccosh",
    "Asin": "jnp.arcsin",
    "Asinh": "jnp.arcsinh",
    "Atan": "jnp.arctan",
    "Atanh": "jnp.arctanh",
    "BitwiseNot": "jnp.bitwise_not",
    "Ceil": "jnp.ceil",
    "Cos": "jnp.cos",
    "Cosh": "jnp.cosh",
    "Erf": "jax.scipy.special.erf",
    "Erfc": "jax.scipy.special.erfc",
    "Exp": "jnp.exp",
    "Expm1": "jnp.expm1",
    "Floor": "jnp.floor",
    "HardSwish": "jax.nn.hard_swish",
    "IsNaN": "jnp.isnan",
    "Log": "jnp.log",
    "Log1p": "jnp.log1p",
    "Lgamma": "jax.scipy.special.gammaln",
    "Digamma": "jax.scipy.special.digamma",
    "Erfinv": "jax.scipy.special.erfinv",
    "Ndtri": "jax.scipy.special.ndtri",
    "BesselI0e": "jax.scipy.special.i0e",
    "BesselI1e": "jax.scipy.special.i1e",
    "Mish": "jax.nn.mish",
    "Neg": "jnp.negative",
    "Not": "jnp.logical_not",
    "Reciprocal": "jnp.reciprocal",
    "Relu": "jax.nn.relu",
    "Round": "jnp.round",
    "Sigmoid": "jax.nn.sigmoid",
    "Sign": "jnp.sign",
    "Sin": "jnp.sin",
    "Sinh": "jnp.sinh",
    "Softplus": "jax.nn.softplus",
    "Softsign": "jax.nn.soft_sign",
    "Sqrt": "jnp.sqrt",
    "Tan": "jnp.tan",
    "Tanh": "jnp.tanh",
    "Where": "jnp.where",
}.items():
    _call(_name, _function)


@op("Identity")
def identity(x: Operand) -> str:
    return x.text


@op("Div", literals=True)
def div(a: Operand, b: Operand) -> str:
    """Integers round towards zero."""
    whole = a.known_dtype is not None and a.known_dtype.kind in "iu"
    return call("layers.integer_division", a, b) if whole else f"({a} / {b})"


@op("Mod", literals=True)
def mod(a: Operand, b: Operand, *, fmod: int = 0) -> str:
    """The sign is the divisor's, with `fmod` the dividend's."""
    return call("jnp.fmod" if fmod else "jnp.mod", a, b)


@op("Pow", literals=True)
def pow_(x: Operand, exponent: Operand) -> str:
    """A whole exponent is written as one, which XLA and IREE compute by multiplying: right for a negative
    base too. The result has the dtype of the base."""
    whole = re.fullmatch(r"\(?(-?\d+)\.0\)?", exponent.text)
    if whole:
        return f"({x} ** {whole.group(1)})"
    power = call("jnp.power", x, exponent)
    same = x.known_dtype == exponent.known_dtype
    return power if same else f"{power}.astype({dtype_name(x.dtype)})"


@op("BitShift")
def bit_shift(a: Operand, b: Operand, *, direction: bytes) -> str:
    """Unsigned integers only, so the shift is logical."""
    return call({b"LEFT": "jnp.left_shift", b"RIGHT": "jnp.right_shift"}[direction], a, b)


@op("Max", literals=True)
def max_(*xs: Operand) -> str:
    return _fold_calls("jnp.maximum", xs)


@op("Min", literals=True)
def min_(*xs: Operand) -> str:
    return _fold_calls("jnp.minimum", xs)


@op("Sum", literals=True)
def sum_(*xs: Operand) -> str:
    return f"({' + '.join(map(str, xs))})"


@op("Mean", literals=True)
def mean(*xs: Operand) -> str:
    return f"(({' + '.join(map(str, xs))}) / {len(xs)})"


@op("LeakyRelu")
def leaky_relu(x: Operand, *, alpha: float = 0.01) -> str:
    return f"jax.nn.leaky_relu({x}, {alpha!r})"


@op("Elu")
def elu(x: Operand, *, alpha: float = 1.0) -> str:
    return f"jax.nn.elu({x}, {alpha!r})"


@op("Celu")
def celu(x: Operand, *, alpha: float = 1.0) -> str:
    return f"jax.nn.celu({x}, {alpha!r})"


@op("Selu")
def selu(x: Operand, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> str:
    return f"({gamma!r} * jax.nn.elu({x}, {alpha!r}))"


@op("Gelu")
def gelu(x: Operand, *, approximate: bytes = b"none") -> str:
    if approximate not in (b"none", b"tanh"):
        raise ValueError(f"approximate = {approximate.decode()!r}")
    return f"jax.nn.gelu({x}, approximate={approximate == b'tanh'})"


@op("Swish")
def swish(x: Operand, *, alpha: float = 1.0) -> str:
    return f"jax.nn.silu({x})" if alpha == 1.0 else f"({x} * jax.nn.sigmoid({alpha!r} * {x}))"


@op("PRelu")
def prelu(x: Operand, slope: Operand) -> str:
    return f"jnp.where({x} < 0, {slope} * {x}, {x})"


@op("ThresholdedRelu")
def thresholded_relu(x: Operand, *, alpha: float = 1.0) -> str:
    return f"jnp.where({x} > {alpha!r}, {x}, 0)"


@op("Shrink")
def shrink(x: Operand, *, bias: float = 0.0, lambd: float = 0.5) -> str:
    inside = f"jnp.where({x} > {lambd!r}, {x} - {bias!r}, 0)"
    text = f"jnp.where({x} < {-lambd!r}, {x} + {bias!r}, {inside})"
    return text if x.dtype.kind not in "iu" else f"{text}.astype({dtype_name(x.dtype)})"


@op("HardSigmoid")
def hard_sigmoid(x: Operand, *, alpha: float = 0.2, beta: float = 0.5) -> str:
    return f"jnp.clip({alpha!r} * {x} + {beta!r}, 0.0, 1.0)"


@op("Clip", literals=True)
def clip(x: Operand, low: Operand | None = None, high: Operand | None = None) -> str:
    if low is None and high is None:
        return x.text
    return call("jnp.clip", x, low, high) if low is not None else call("jnp.clip", x, max=high)


@op("IsInf")
def is_inf(x: Operand, *, detect_negative: int = 1, detect_positive: int = 1) -> str:
    if detect_negative and detect_positive:
        return f"jnp.isinf({x})"
    if detect_positive:
        return f"jnp.isposinf({x})"
    return f"jnp.isneginf({x})" if detect_negative else f"jnp.zeros_like({x}, jnp.bool_)"


@op("Cast")
def cast(x: Operand, *, to: int, saturate: int = 1, round_mode: bytes = b"up") -> str:
    """`saturate` is about the 8-bit floats: too large a value becomes their largest, not NaN or infinity."""
    return cast_text(x, onnx_dtype(to), saturate, round_mode)


@op("CastLike")
def cast_like(x: Operand, like: Operand, *, saturate: int = 1, round_mode: bytes = b"up") -> str:
    return cast_text(x, like.dtype, saturate, round_mode)


def cast_text(x: Operand, dtype: np.dtype, saturate: int, round_mode: bytes) -> str:
    if "float8" in dtype.name or (x.known_dtype is not None and "float8_e8m0" in x.known_dtype.name):
        return call(
            "layers.cast_to_float8",
            x,
            dtype_name(dtype),
            saturate=changed(bool(saturate), True),
            round_mode=changed(round_mode.decode(), "up"),
        )
    if dtype.itemsize == 1 and dtype.name[-1] in "24" and dtype.kind not in "biufc":
        return call("layers.cast_to_narrow_int", x, dtype_name(dtype))
    return f"{x}.astype({dtype_name(dtype)})"


@op("BitCast")
def bit_cast(x: Operand, *, to: int) -> str:
    dtype = onnx_dtype(to)
    if "bool" in (x.dtype.name, dtype.name):
        return f"{x}.astype({dtype_name(dtype)})"
    return call("jax.lax.bitcast_convert_type", x, dtype_name(dtype))


@op("Dropout", static=(1, 2), outputs=None)
def dropout(
    x: Operand,
    ratio: np.ndarray | None = None,
    training: np.ndarray | None = None,
    *,
    seed: int = 0,
    results: tuple[Result, ...],
) -> str:
    """Inference: nothing is dropped."""
    drops = training is not None and number(training) and (ratio is None or number(ratio) != 0)
    if drops:
        raise ValueError("training_mode; export the model for inference")
    return x.text if len(results) == 1 else f"{x}, jnp.ones_like({x}, jnp.bool_)"


def _fold_calls(function: str, xs: tuple[Operand, ...]) -> str:
    text = xs[0].text
    for x in xs[1:]:
        text = f"{function}({text}, {x})"
    return text
