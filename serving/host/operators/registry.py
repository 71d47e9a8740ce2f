"""What every operator shares: its calling convention, its name, and how it refuses a request.

An operator is a function `op(lookups, *inputs, **attrs)`. One that mirrors a TensorFlow op takes that op's
inputs by position in TensorFlow's order, lists flattened, and as keyword-only parameters those TensorFlow
attributes that it honours. It returns one array, or a tuple where TensorFlow's op has several outputs.
Strings are object arrays of bytes; scalars are 0-d arrays.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from serving.errors import InvalidRequestError
from serving.host.lookups import KeyLookup
from serving.tables import RowSource
from serving.tiers.budget import LookupBudget


@dataclass(frozen=True)
class Lookups:
    """What operators may read besides their inputs."""

    tables: Mapping[str, RowSource]
    vocabularies: Mapping[str, KeyLookup]
    budget: LookupBudget = field(default_factory=LookupBudget)
    """Of the request, for tables that are not in memory."""


Operator = Callable[..., np.ndarray | tuple[np.ndarray, ...]]

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z0-9])(?=V\d+$)")


def operator_name(op_type: str) -> str:
    """The operator that mirrors a TensorFlow op: `TopKV2` -> `top_k_v2`, `StringNGrams` ->
    `string_n_grams`."""
    return _WORD_STARTS.sub("_", op_type).lower()


def decode_constant(constant: Mapping[str, Any]) -> np.ndarray:
    """A constant from its JSON form."""
    if constant["dtype"] == "string":
        return strings([base64.b64decode(v) for v in constant["values"]], constant["shape"])
    return np.array(constant["values"], constant["dtype"]).reshape(constant["shape"])


def strings(values: list[bytes], shape: tuple[int, ...] | list[int] | int = -1) -> np.ndarray:
    """An object array of bytes. NumPy would make a list of equal-length bytes into something else."""
    out = np.empty(len(values), object)
    out[:] = values
    return out if shape == -1 else out.reshape(shape)


def array(value: Any, dtype: np.dtype | type | str | None = None) -> np.ndarray:
    """An array of what a NumPy function returned: NumPy turns 0-d results into scalars, and a bytes scalar
    into dtype S."""
    if isinstance(value, bytes):
        return strings([value], ())
    return np.asarray(value, dtype)


def refuse(message: str) -> NoReturn:
    """Raises `InvalidRequestError`: the data of the request is what TensorFlow would refuse, too."""
    raise InvalidRequestError(message)


def check(condition: Any, message: str) -> None:
    """Raises `InvalidRequestError` unless the condition holds."""
    if not condition:
        refuse(message)


def scalar(value: np.ndarray, name: str) -> Any:
    """The Python value of an input that must have one element."""
    check(value.size == 1, f"{name} must be one value, it has shape {list(value.shape)}")
    return value.reshape(())[()].item() if value.dtype.kind != "O" else value.reshape(())[()]


def axis_of(axis: int, rank: int, name: str = "axis") -> int:
    """`axis` counted from the front. Raises `InvalidRequestError` outside of [-rank, rank)."""
    check(-rank <= axis < rank, f"{name} {axis} is outside of the {rank} dimensions of the tensor")
    return axis + rank if axis < 0 else axis


def zero_of(dtype: np.dtype) -> Any:
    """What TensorFlow fills with: 0, False or the empty string."""
    return b"" if dtype.kind == "O" else dtype.type(0)


def filled(shape: tuple[int, ...] | list[int], value: Any, dtype: np.dtype) -> np.ndarray:
    """`np.full` that takes bytes."""
    out = np.empty(shape, dtype)
    out[...] = value
    return out
