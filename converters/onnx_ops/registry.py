"""What an entry of the operator table is, and how entries write shapes, axes and dtypes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnx import helper


@dataclass(frozen=True)
class Operand:
    """An operand as an expression, with its dtype and its shape at one row where they are known."""

    text: str
    known_shape: tuple[int, ...] | None = None
    known_dtype: np.dtype | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def shape(self) -> tuple[int, ...]:
        """Raises `ValueError` where the shape depends on values that are not there yet."""
        if self.known_shape is None:
            raise ValueError(f"a shape of {self.text} that is not known before it runs; give it a fixed one")
        return self.known_shape

    @property
    def dtype(self) -> np.dtype:
        if self.known_dtype is None:
            raise ValueError(f"a dtype of {self.text} that cannot be inferred; cast it in the model")
        return self.known_dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Result:
    """One output that a node lists: what is known of it, and whether anything reads it."""

    known_shape: tuple[int, ...] | None
    known_dtype: np.dtype | None
    used: bool


class BoundBody(Protocol):
    """A sub-graph with the types of its inputs known and its constants folded."""

    def constant(self, output: int) -> np.ndarray | None:
        """The value of an output that does not depend on anything, else None."""
        ...

    def define(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> str:
        """Writes a nested function of the inputs at these positions, which returns the outputs at those:
        one bare value, or a tuple. Returns the function's name."""
        ...


class Body(Protocol):
    """A sub-graph attribute."""

    inputs: int
    outputs: int

    def bind(self, inputs: Sequence[Operand | np.ndarray]) -> BoundBody:
        """`inputs`: for each input a constant, or an operand whose text is the parameter's name."""
        ...


@dataclass(frozen=True)
class OnnxOp:
    """One entry of the table.

    `function` gets operands (None where an optional one is left out) and attributes as keyword arguments; if
    it has a parameter `results`, it gets the node's `Result`s too. It returns the expression.
    `static` are positions of operands that must be constants; they arrive as NumPy arrays. `constants` are
    positions that arrive as arrays where they are constants, and as operands otherwise.
    `literals`: single numbers may stand as Python literals, because JAX's promotion gives them the dtype of
    the operand beside them.
    `outputs` is how many values the expression has; None: as many as the node lists.
    """

    function: Callable[..., str]
    static: tuple[int, ...] = ()
    literals: bool = False
    outputs: int | None = 1
    constants: tuple[int, ...] = ()


OPS: dict[str, OnnxOp] = {}


def op(
    *names: str,
    static: tuple[int, ...] = (),
    literals: bool = False,
    outputs: int | None = 1,
    constants: tuple[int, ...] = (),
) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function under one or more ONNX names."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        OPS.update((name, OnnxOp(function, static, literals, outputs, constants)) for name in names)
        return function

    return register


def call(function: str, *operands: Any, **keywords: Any) -> str:
    """A call; trailing operands that are None are left out, and keywords that are None."""
    kept = list(operands)
    while kept and kept[-1] is None:
        kept.pop()
    parts = [str(operand) for operand in kept]
    parts += [f"{name}={value}" for name, value in keywords.items() if value is not None]
    return f"{function}({', '.join(parts)})"


def changed(value: Any, default: Any) -> Any:
    """`value` unless it is the called function's default: then None, which `call` leaves out."""
    return None if value == default else repr(value)


def short(value: float) -> float:
    """The shortest decimal that is this float32: how attributes and thresholds are written."""
    return float(str(np.float32(value)))


def dtype_name(dtype: Any) -> str:
    """`int` for int64, which is int32 without a warning where JAX runs without 64-bit values."""
    name = np.dtype(dtype).name
    return {"bool": "jnp.bool_", "int64": "int"}.get(name, f"jnp.{name}")


def onnx_dtype(number: int) -> np.dtype:
    """Raises `ValueError` for a dtype that is not numeric."""
    dtype = helper.tensor_dtype_to_np_dtype(number)
    if dtype == np.dtype(object) or dtype.kind == "c":
        raise ValueError(f"the ONNX dtype {number}, which has no JAX form")
    return dtype


def scalar(value: np.ndarray) -> Any:
    """The one number of a constant that ONNX lets be a scalar or `[1]`."""
    return np.asarray(value).reshape(-1)[0].item()


def axis_of(axis: int, x: Operand) -> int:
    if not -x.rank <= axis < max(x.rank, 1):
        raise ValueError(f"axis {axis} of a value of rank {x.rank}")
    return axis % max(x.rank, 1)


def tuple_text(values: Iterable[Any]) -> str:
    items = [int(v) for v in values]
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(map(str, items))})"


def reshaped(x: Operand, target: tuple[int, ...]) -> str:
    """The first dimension of both shapes holds the rows, so it is left open."""
    if not target:
        return f"jnp.reshape({x}, ())"
    if 0 in target[1:]:
        return f"jnp.reshape({x}, {tuple_text(target)})"
    return f"jnp.reshape({x}, {tuple_text((-1, *target[1:]))})"


def broadcast(x: Operand, target: tuple[int, ...]) -> str:
    """The first dimension is the row's where both have one row."""
    if len(target) == x.rank and target and target[0] == 1 and x.text.isidentifier():
        return f"jnp.broadcast_to({x}, ({x}.shape[0], {', '.join(map(str, target[1:]))}))"
    return f"jnp.broadcast_to({x}, {tuple_text(target)})"
