"""The ONNX operator table: for each operator of opset 18 that tf2onnx writes, the Python expression that does
the same.

A function gets its operands as expressions and the node's attributes as keyword arguments with ONNX's
defaults; an attribute that it does not name is an error. `Static` operands are constants that must be known
when the module is written (axes, shapes); they arrive as NumPy arrays. Shapes are at one row; a first
dimension of 1 is the row and is written as -1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ONNX_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


@dataclass(frozen=True)
class OnnxOp:
    """One entry of the table. `static` are positions of operands that must be constants."""

    function: Callable[..., str]
    static: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operand:
    """An operand as an expression, with its shape at one row."""

    text: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.text


OPS: dict[str, OnnxOp] = {}


def op(*names: str, static: tuple[int, ...] = ()) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function under one or more ONNX names."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        OPS.update((name, OnnxOp(function, static)) for name in names)
        return function

    return register


def _binary(name: str, symbol: str) -> None:
    OPS[name] = OnnxOp(lambda a, b: f"({a} {symbol} {b})")


def _call(name: str, function: str) -> None:
    OPS[name] = OnnxOp(lambda *operands: f"{function}({', '.join(map(str, operands))})")


for _name, _symbol in {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "Div": "/",
    "Equal": "==",
    "Less": "<",
    "LessOrEqual": "<=",
    "Greater": ">",
    "GreaterOrEqual": ">=",
    "And": "&",
    "Or": "|",
    "Xor": "^",
}.items():
    _binary(_name, _symbol)

for _name, _function in {
    "Abs": "jnp.abs",
    "Ceil": "jnp.ceil",
    "Cos": "jnp.cos",
    "Exp": "jnp.exp",
    "Floor": "jnp.floor",
    "Log": "jnp.log",
    "Neg": "jnp.negative",
    "Not": "jnp.logical_not",
    "Reciprocal": "jnp.reciprocal",
    "Relu": "jax.nn.relu",
    "Round": "jnp.round",
    "Sigmoid": "jax.nn.sigmoid",
    "Sign": "jnp.sign",
    "Sin": "jnp.sin",
    "Softplus": "jax.nn.softplus",
    "Softsign": "jax.nn.soft_sign",
    "Sqrt": "jnp.sqrt",
    "Tanh": "jnp.tanh",
    "Erf": "jax.scipy.special.erf",
    "Erfc": "jax.scipy.special.erfc",
    "Expm1": "jnp.expm1",
    "Log1p": "jnp.log1p",
    "Where": "jnp.where",
    "MatMul": "jnp.matmul",
}.items():
    _call(_name, _function)


@op("Identity")
def _identity(x: Operand) -> str:
    return x.text


@op("Pow")
def _pow(x: Operand, exponent: Operand) -> str:
    """A whole exponent is written as one, which XLA and IREE compute by multiplying: right for a negative
    base too."""
    whole = re.fullmatch(r"\(?(-?\d+)\.0\)?", exponent.text)
    return f"({x} ** {whole.group(1)})" if whole else f"jnp.power({x}, {exponent})"


@op("Max")
def _max(*xs: Operand) -> str:
    return _fold_calls("jnp.maximum", xs)


@op("Min")
def _min(*xs: Operand) -> str:
    return _fold_calls("jnp.minimum", xs)


@op("Sum")
def _sum(*xs: Operand) -> str:
    return f"({' + '.join(map(str, xs))})"


@op("LeakyRelu")
def _leaky_relu(x: Operand, *, alpha: float = 0.01) -> str:
    return f"jax.nn.leaky_relu({x}, {alpha!r})"


@op("Elu")
def _elu(x: Operand, *, alpha: float = 1.0) -> str:
    return f"jax.nn.elu({x}, {alpha!r})"


@op("Selu")
def _selu(x: Operand, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> str:
    return f"({gamma!r} * jax.nn.elu({x}, {alpha!r}))"


@op("PRelu")
def _prelu(x: Operand, slope: Operand) -> str:
    return f"jnp.where({x} < 0, {slope} * {x}, {x})"


@op("HardSigmoid")
def _hard_sigmoid(x: Operand, *, alpha: float = 0.2, beta: float = 0.5) -> str:
    return f"jnp.clip({alpha!r} * {x} + {beta!r}, 0.0, 1.0)"


@op("Clip")
def _clip(x: Operand, low: Operand | None = None, high: Operand | None = None) -> str:
    return f"jnp.clip({x}, {low}, {high})"


@op("Softmax")
def _softmax(x: Operand, *, axis: int = -1) -> str:
    return f"jax.nn.softmax({x}, axis={axis})"


@op("LogSoftmax")
def _log_softmax(x: Operand, *, axis: int = -1) -> str:
    return f"jax.nn.log_softmax({x}, axis={axis})"


@op("Cast")
def _cast(x: Operand, *, to: int) -> str:
    if to not in ONNX_DTYPES:
        raise ValueError(f"a cast to ONNX dtype {to}")
    return f"{x}.astype(jnp.{ONNX_DTYPES[to]}{'_' if to == 9 else ''})"


@op("Concat")
def _concat(*xs: Operand, axis: int) -> str:
    return f"concatenate([{', '.join(map(str, xs))}], axis={_axis(axis, xs[0])})"


@op("Reshape", static=(1,))
def _reshape(x: Operand, shape: np.ndarray, *, allowzero: int = 0) -> str:
    target = [x.shape[i] if d == 0 and not allowzero else int(d) for i, d in enumerate(shape)]
    return _reshaped(x, _resolve(x.shape, target))


@op("Flatten")
def _flatten(x: Operand, *, axis: int = 1) -> str:
    return _reshaped(x, (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:]))))


@op("Squeeze", static=(1,))
def _squeeze(x: Operand, axes: np.ndarray | None = None) -> str:
    drop = (
        [i for i, d in enumerate(x.shape) if d == 1]
        if axes is None
        else [int(a) % len(x.shape) for a in axes]
    )
    if 0 in drop:
        return _reshaped(x, tuple(d for i, d in enumerate(x.shape) if i not in drop))
    return f"jnp.squeeze({x}, axis={_tuple(drop)})"


@op("Unsqueeze", static=(1,))
def _unsqueeze(x: Operand, axes: np.ndarray) -> str:
    rank = len(x.shape) + len(axes)
    return f"jnp.expand_dims({x}, {_tuple([int(a) % rank for a in axes])})"


@op("Expand", static=(1,))
def _expand(x: Operand, shape: np.ndarray) -> str:
    target = np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))
    return x.text if target == x.shape else _broadcast(x, target)


@op("Tile", static=(1,))
def _tile(x: Operand, repeats: np.ndarray) -> str:
    if (repeats == 1).all():
        return x.text
    if all(d == 1 or r == 1 for d, r in zip(x.shape, repeats, strict=True)):
        return _broadcast(x, tuple(int(d * r) for d, r in zip(x.shape, repeats, strict=True)))
    return f"jnp.tile({x}, {_tuple(repeats)})"


@op("Transpose")
def _transpose(x: Operand, *, perm: list[int] | None = None) -> str:
    return f"jnp.transpose({x}{'' if perm is None else f', {_tuple(perm)}'})"


@op("Slice", static=(1, 2, 3, 4))
def _slice(
    x: Operand,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> str:
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    parts = [":"] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[int(axis)]
        low = "" if start == 0 else str(int(start))
        high = "" if end >= size else str(int(end))
        parts[int(axis) % len(x.shape)] = f"{low}:{high}" + ("" if step == 1 else f":{int(step)}")
    while parts and parts[-1] == ":":
        parts.pop()
    return f"{x}[{', '.join(parts)}]" if parts else x.text


@op("Split", static=(1,))
def _split(
    x: Operand, sizes: np.ndarray | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> str:
    points = num_outputs if sizes is None else [int(p) for p in np.cumsum(sizes)[:-1]]
    return f"jnp.split({x}, {points}, axis={_axis(axis, x)})"


@op("Gather", static=(1,))
def _gather(x: Operand, indices: np.ndarray, *, axis: int = 0) -> str:
    if indices.ndim == 0:
        where = ", ".join([":"] * _axis(axis, x) + [str(int(indices))])
        return f"{x}[{where}]"
    return f"jnp.take({x}, jnp.array({indices.tolist()}), axis={_axis(axis, x)})"


@op("Pad", static=(1, 3))
def _pad(
    x: Operand,
    pads: np.ndarray,
    value: Operand | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: str = "constant",
) -> str:
    if mode not in ("constant", "reflect", "edge") or axes is not None:
        raise ValueError(f"pad mode {mode!r} or explicit axes")
    half = len(pads) // 2
    widths = [(int(a), int(b)) for a, b in zip(pads[:half], pads[half:], strict=True)]
    extra = f", constant_values={value}" if value is not None and mode == "constant" else ""
    return f"jnp.pad({x}, {widths}, mode={mode!r}{extra})"


@op("Einsum")
def _einsum(*xs: Operand, equation: bytes) -> str:
    return f"jnp.einsum({equation.decode()!r}, {', '.join(map(str, xs))})"


@op("Gemm")
def _gemm(
    a: Operand,
    b: Operand,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> str:
    left, right = f"{a}{'.T' if transA else ''}", f"{b}{'.T' if transB else ''}"
    product = f"jnp.matmul({left}, {right})" if alpha == 1.0 else f"{alpha!r} * jnp.matmul({left}, {right})"
    if c is None:
        return product
    return f"({product} + {c if beta == 1.0 else f'{beta!r} * {c}'})"


def _reduction(name: str, template: str) -> None:
    def reduce(
        x: Operand, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> str:
        if axes is None and noop_with_empty_axes:
            return x.text
        wanted = range(len(x.shape)) if axes is None else [int(a) % len(x.shape) for a in axes]
        return template.format(x=x, axis=_tuple(wanted), keep=", keepdims=True" if keepdims else "")

    OPS[name] = OnnxOp(reduce, static=(1,))


for _name, _template in {
    "ReduceMax": "jnp.max({x}, axis={axis}{keep})",
    "ReduceMin": "jnp.min({x}, axis={axis}{keep})",
    "ReduceMean": "jnp.mean({x}, axis={axis}{keep})",
    "ReduceProd": "jnp.prod({x}, axis={axis}{keep})",
    "ReduceSum": "jnp.sum({x}, axis={axis}{keep})",
    "ReduceL1": "jnp.sum(jnp.abs({x}), axis={axis}{keep})",
    "ReduceL2": "jnp.sqrt(jnp.sum(jnp.square({x}), axis={axis}{keep}))",
    "ReduceSumSquare": "jnp.sum(jnp.square({x}), axis={axis}{keep})",
    "ReduceLogSumExp": "jax.scipy.special.logsumexp({x}, axis={axis}{keep})",
}.items():
    _reduction(_name, _template)


def _fold_calls(function: str, xs: tuple[Operand, ...]) -> str:
    text = xs[0].text
    for x in xs[1:]:
        text = f"{function}({text}, {x})"
    return text


def _axis(axis: int, x: Operand) -> int:
    return axis % len(x.shape)


def _tuple(values: Any) -> str:
    items = [int(v) for v in values]
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(map(str, items))})"


def _resolve(source: tuple[int, ...], target: list[int]) -> tuple[int, ...]:
    known = int(np.prod([d for d in target if d != -1], dtype=np.int64))
    return tuple(int(np.prod(source, dtype=np.int64)) // max(known, 1) if d == -1 else d for d in target)


def _broadcast(x: Operand, target: tuple[int, ...]) -> str:
    """The first dimension is the row's where both have one row."""
    if len(target) == len(x.shape) and target[0] == 1 and x.text.isidentifier():
        return f"jnp.broadcast_to({x}, ({x}.shape[0], {', '.join(map(str, target[1:]))}))"
    return f"jnp.broadcast_to({x}, {_tuple(target)})"


def _reshaped(x: Operand, target: tuple[int, ...]) -> str:
    """The first dimension of both shapes holds the rows, so it is left open."""
    if not target:
        return f"jnp.reshape({x}, ())"
    return f"jnp.reshape({x}, {_tuple((-1, *target[1:]))})"
