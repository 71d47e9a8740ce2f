"""The host operators: each a function from NumPy arrays to one NumPy array that does exactly what
TensorFlow's op does.

Strings are object arrays of bytes. Every array has the rows as its first dimension; an operator's `attrs` are
those of `jaxrank.host_program.HostOperator`. `docs/host_program.md` lists the operators for people.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import InvalidRequestError
from serving.host.lookups import KeyLookup
from serving.native._core import hash_bucket_fast


@dataclass(frozen=True)
class Lookups:
    """What operators may read besides their inputs."""

    tables: Mapping[str, np.ndarray]
    vocabularies: Mapping[str, KeyLookup]


Operator = Callable[..., np.ndarray]


def decode_constant(constant: Mapping[str, Any]) -> np.ndarray:
    """A constant from its JSON form."""
    if constant["dtype"] == "string":
        values: np.ndarray = np.empty(len(constant["values"]), object)
        values[:] = [base64.b64decode(v) for v in constant["values"]]
        return values.reshape(constant["shape"])
    return np.array(constant["values"], constant["dtype"]).reshape(constant["shape"])


def _elementwise(function: Callable[..., Any]) -> Operator:
    def run(
        lookups: Lookups, *inputs: np.ndarray, constants: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        operands = list(inputs)
        for position, value in sorted((constants or {}).items(), key=lambda item: int(item[0])):
            operands.insert(int(position), value)
        return np.asarray(function(*operands))

    return run


def _compare(function: Callable[..., Any]) -> Operator:
    """Comparison of object arrays gives objects; the result is always bool."""
    return _elementwise(lambda a, b: np.asarray(function(a, b), bool))


def _divide(function: Callable[..., Any]) -> Operator:
    """TensorFlow refuses a zero divisor of integers; NumPy would give 0."""

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if b.dtype.kind in "iu" and (b == 0).any():
            raise InvalidRequestError("integer division by zero")
        return function(a, b)

    return _elementwise(run)


def vocabulary_lookup(
    lookups: Lookups, keys: np.ndarray, *, vocabulary: str, override: Mapping[str, Any] | None = None
) -> np.ndarray:
    """int64 value of each key. `override` is one more entry, `{key, value}`, that wins over the
    vocabulary."""
    found = lookups.vocabularies[vocabulary](keys)
    if override is not None:
        found = np.where(np.asarray(keys == override["key"], bool), override["value"], found)
    return found


def hash_bucket(lookups: Lookups, strings: np.ndarray, *, buckets: int) -> np.ndarray:
    """int64 bucket of each string, as tf.strings.to_hash_bucket_fast."""
    out = np.empty(strings.size, np.int64)
    hash_bucket_fast(strings.ravel().tolist(), buckets, out)
    return out.reshape(strings.shape)


def embedding_lookup(lookups: Lookups, ids: np.ndarray, *, table: str, negative_ids: str) -> np.ndarray:
    """Row of each id, `[..., dim]` float32. An id outside of the table is refused, as TensorFlow refuses it
    on a CPU.

    With `negative_ids="wrap"` (Keras 3) an id of -1 is the last row.
    """
    rows = lookups.tables[table]
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        lowest = -len(rows) if negative_ids == "wrap" else 0
        if low < lowest or high >= len(rows):
            bad = low if low < lowest else high
            raise InvalidRequestError(
                f"id {bad} is outside of table {table!r}, which has rows [{lowest}, {len(rows)})"
            )
    return rows[ids]


def wrap_negative(lookups: Lookups, ids: np.ndarray, *, rows: int) -> np.ndarray:
    """Ids with negative ones counted from the end."""
    return np.where(ids < 0, ids + rows, ids)


def one_hot(lookups: Lookups, ids: np.ndarray, *, depth: int, on: float, off: float) -> np.ndarray:
    """`[..., depth]` float32; an id outside of the depth gives a row of `off`."""
    return np.where(ids[..., None] == np.arange(depth), np.float32(on), np.float32(off))


def multi_hot(lookups: Lookups, ids: np.ndarray, *, depth: int) -> np.ndarray:
    """`[..., K]` ids to `[..., depth]` float32 with 1.0 at every id that occurs; ids outside of the depth are
    dropped."""
    flat = ids.reshape(-1, ids.shape[-1])
    # One column more than the depth takes the ids that TensorFlow's one_hot would drop.
    where = np.where((flat < 0) | (flat >= depth), depth, flat)
    out = np.zeros((len(flat), depth + 1), np.float32)
    out[np.arange(len(flat))[:, None], where] = 1.0
    return out[:, :depth].reshape(*ids.shape[:-1], depth)


def cast(lookups: Lookups, values: np.ndarray, *, dtype: str) -> np.ndarray:
    """Values in another dtype."""
    return values.astype(dtype)


def reshape(lookups: Lookups, values: np.ndarray, *, shape: list[int]) -> np.ndarray:
    """Row-major reshape; the first dimension, -1, follows the number of rows."""
    return values.reshape(shape)


def concat(lookups: Lookups, *values: np.ndarray, axis: int) -> np.ndarray:
    """Concatenation within a row; one request row is repeated beside many candidate rows."""
    rows = max(len(v) for v in values)
    return np.concatenate([np.broadcast_to(v, (rows, *v.shape[1:])) for v in values], axis=axis)


OPERATORS: dict[str, Operator] = {
    "vocabulary_lookup": vocabulary_lookup,
    "hash_bucket_fast": hash_bucket,
    "embedding_lookup": embedding_lookup,
    "wrap_negative": wrap_negative,
    "one_hot": one_hot,
    "multi_hot": multi_hot,
    "cast": cast,
    "reshape": reshape,
    "concat": concat,
    "equal": _compare(np.equal),
    "not_equal": _compare(np.not_equal),
    "less": _compare(np.less),
    "less_equal": _compare(np.less_equal),
    "greater": _compare(np.greater),
    "greater_equal": _compare(np.greater_equal),
    "add": _elementwise(np.add),
    "subtract": _elementwise(np.subtract),
    "multiply": _elementwise(np.multiply),
    "floor_mod": _divide(np.mod),
    "floor_divide": _divide(np.floor_divide),
    "maximum": _elementwise(np.maximum),
    "minimum": _elementwise(np.minimum),
    "logical_and": _elementwise(np.logical_and),
    "logical_or": _elementwise(np.logical_or),
    "logical_not": _elementwise(np.logical_not),
    "select": _elementwise(np.where),
}
