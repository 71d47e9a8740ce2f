"""Serialized tf.Example messages into tensors: dense features of fixed or open length, sparse ones, and
ragged ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving.host.operators.registry import Lookups, Operator, check, filled, refuse, strings, zero_of
from serving.wire.example_pb2 import Example

_KINDS = {"string": "bytes_list", "float32": "float_list", "int64": "int64_list"}
_DTYPES = {"string": np.dtype(object), "float32": np.dtype(np.float32), "int64": np.dtype(np.int64)}

Features = Mapping[bytes, Any]


def _dtype_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind == "O" else dtype.name


def _parse(serialized: bytes, at: int) -> Features:
    """The features by key; of a repeated key the last one counts, and one without values of any kind is
    missing."""
    try:
        example = Example.FromString(serialized)
    except DecodeError:
        refuse(f"example {at} is not a serialized tf.Example")
    return {e.key: e.value for e in example.features.feature}


def _values(features: Features, key: bytes, dtype: str, at: int) -> Sequence[Any] | None:
    """The values of a feature, or None without it."""
    feature = features.get(key)
    if feature is None or (kind := feature.WhichOneof("kind")) is None:
        return None
    if kind != _KINDS[dtype]:
        refuse(f"example {at}: feature {key.decode(errors='replace')!r} is a {kind}, expected {dtype}")
    return getattr(feature, kind).value


def _flat(values: Sequence[Any], dtype: str) -> np.ndarray:
    return strings(list(values)) if dtype == "string" else np.array(values, _DTYPES[dtype])


@dataclass(frozen=True)
class _Ragged:
    """A feature of all examples: flat values, and how many each example has."""

    values: np.ndarray
    lengths: np.ndarray


def _collect(examples: Sequence[Features], key: bytes, dtype: str) -> _Ragged:
    check(dtype in _KINDS, f"a feature of dtype {dtype}")
    rows = [_values(features, key, dtype, i) or () for i, features in enumerate(examples)]
    lengths = np.array([len(row) for row in rows], np.int64)
    return _Ragged(_flat([v for row in rows for v in row], dtype), lengths)


def _dense(examples: Sequence[Features], key: bytes, default: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`[examples, *shape]`; an open first dimension is as long as the longest and padded with the default."""
    dtype, name = _dtype_name(default.dtype), key.decode(errors="replace")
    if len(shape) > 0 and shape[0] == -1:
        return _dense_open(examples, key, default, shape)
    size = int(np.prod(shape, dtype=np.int64))
    out = np.empty((len(examples), size), default.dtype)
    for i, features in enumerate(examples):
        values = _values(features, key, dtype, i)
        if values is None:
            if default.size != size or (size == 0 and default.ndim == 0):
                check(default.size, f"example {i}: feature {name!r} ({dtype}) is required but is not there")
                refuse(f"the default of feature {name!r} has {default.size} values, expected {size}")
            out[i] = default.ravel()
        else:
            check(len(values) == size, f"example {i}: feature {name!r} has {len(values)} values, not {size}")
            out[i] = _flat(values, dtype)
    return out.reshape(len(examples), *shape)


def _dense_open(
    examples: Sequence[Features], key: bytes, default: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    name, inner = key.decode(errors="replace"), int(np.prod(shape[1:], dtype=np.int64))
    found = _collect(examples, key, _dtype_name(default.dtype))
    check((found.lengths % max(inner, 1) == 0).all(), f"feature {name!r} is not made of {list(shape[1:])}")
    longest = int(found.lengths.max(initial=0))
    padding = default.ravel()[0] if default.size else zero_of(default.dtype)
    out = filled((len(examples), longest), padding, default.dtype)
    out[np.arange(longest) < found.lengths[:, None]] = found.values
    return out.reshape(len(examples), longest // max(inner, 1), *shape[1:])


def _sparse(found: _Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = found.lengths
    column = np.arange(found.values.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    indices = np.column_stack([np.repeat(np.arange(lengths.size), lengths), column]).astype(np.int64)
    return indices, found.values, np.array([lengths.size, lengths.max(initial=0)], np.int64)


def _by_output(parts: Sequence[Sequence[np.ndarray]], outputs: int) -> list[np.ndarray]:
    """All first outputs, then all second ones, ..."""
    return [part[i] for i in range(outputs) for part in parts]


def parse_example_v2(
    lookups: Lookups,
    serialized: np.ndarray,
    names: np.ndarray,
    sparse_keys: np.ndarray,
    dense_keys: np.ndarray,
    ragged_keys: np.ndarray,
    *dense_defaults: np.ndarray,
    num_sparse: int,
    sparse_types: Sequence[str],
    ragged_value_types: Sequence[str],
    ragged_split_types: Sequence[str],
    dense_shapes: Sequence[Sequence[int]],
) -> tuple[np.ndarray, ...]:
    """Sparse indices, values, shapes; dense values; ragged values, row splits: each for all its keys. A
    scalar `serialized` is one example without a batch dimension."""
    check(serialized.ndim <= 1, f"serialized examples of shape {list(serialized.shape)}")
    examples = [_parse(text, i) for i, text in enumerate(serialized.ravel().tolist())]
    single = serialized.ndim == 0
    sparse = [
        _sparse(_collect(examples, key, dtype))
        for key, dtype in zip(sparse_keys.tolist(), sparse_types, strict=True)
    ]
    if single:
        sparse = [(indices[:, 1:], values, shape[1:]) for indices, values, shape in sparse]
    dense = [
        _dense(examples, key, default, shape)
        for key, default, shape in zip(dense_keys.tolist(), dense_defaults, dense_shapes, strict=True)
    ]
    ragged = []
    for key, dtype, split_type in zip(
        ragged_keys.tolist(), ragged_value_types, ragged_split_types, strict=True
    ):
        found = _collect(examples, key, dtype)
        splits = np.concatenate([[0], np.cumsum(found.lengths)]) if not single else np.zeros(0)
        ragged.append((found.values, splits.astype(split_type)))
    return (
        *_by_output(sparse, 3),
        *(d.reshape(d.shape[1:]) if single else d for d in dense),
        *_by_output(ragged, 2),
    )


def parse_example(
    lookups: Lookups,
    serialized: np.ndarray,
    names: np.ndarray,
    *keys_and_defaults: np.ndarray,
    Nsparse: int,  # noqa: N803
    Ndense: int,  # noqa: N803
    sparse_types: Sequence[str],
    dense_shapes: Sequence[Sequence[int]],
) -> tuple[np.ndarray, ...]:
    """Sparse indices, values and shapes, then dense values. The inputs are the sparse keys, the dense keys,
    the defaults."""
    check(serialized.ndim == 1, f"serialized examples of shape {list(serialized.shape)}")
    keys = [key.ravel()[0] for key in keys_and_defaults[: Nsparse + Ndense]]
    return parse_example_v2(
        lookups,
        serialized,
        names,
        strings(keys[:Nsparse]),
        strings(keys[Nsparse:]),
        strings([]),
        *keys_and_defaults[Nsparse + Ndense :],
        num_sparse=Nsparse,
        sparse_types=sparse_types,
        ragged_value_types=(),
        ragged_split_types=(),
        dense_shapes=dense_shapes,
    )


def parse_single_example(
    lookups: Lookups,
    serialized: np.ndarray,
    *dense_defaults: np.ndarray,
    num_sparse: int,
    sparse_keys: Sequence[str],
    dense_keys: Sequence[str],
    sparse_types: Sequence[str],
    dense_shapes: Sequence[Sequence[int]],
) -> tuple[np.ndarray, ...]:
    """As `parse_example` for one example, without the batch dimension."""
    check(serialized.ndim == 0, f"one serialized example is expected, found shape {list(serialized.shape)}")
    return parse_example_v2(
        lookups,
        serialized,
        strings([]),
        strings([key.encode() for key in sparse_keys]),
        strings([key.encode() for key in dense_keys]),
        strings([]),
        *dense_defaults,
        num_sparse=num_sparse,
        sparse_types=sparse_types,
        ragged_value_types=(),
        ragged_split_types=(),
        dense_shapes=dense_shapes,
    )


OPERATORS: dict[str, Operator] = {
    "parse_example": parse_example,
    "parse_example_v2": parse_example_v2,
    "parse_single_example": parse_single_example,
}
