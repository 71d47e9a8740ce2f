"""KServe v2's tensors as arrays: raw contents and the names of datatypes."""

import math
import struct
from collections.abc import Sequence

import numpy as np

from serving.errors import InvalidRequestError
from serving.wire.codec import MAX_ELEMENTS, MAX_RANK

DATATYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
"""By TensorFlow's name of the dtype."""
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def dtype_of(name: str, datatype: str) -> str:
    """TensorFlow's name of a datatype. Raises `InvalidRequestError` for one that is not served."""
    if datatype not in _DTYPES:
        raise InvalidRequestError(
            f"input {name[:200]!r} has datatype {datatype[:50]!r}; send one of: {', '.join(_DTYPES)}"
        )
    return _DTYPES[datatype]


def datatype_of(value: np.ndarray) -> str:
    """The datatype of an array; strings are object arrays."""
    return DATATYPES["string" if value.dtype == object else value.dtype.name]


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """The array in raw contents. Raises `InvalidRequestError` where shape and bytes do not fit."""
    dtype = dtype_of(name, datatype)
    size = checked_size(name, shape)
    if dtype == "string":
        return _strings(name, data, size).reshape(shape)
    wanted = np.dtype(dtype).newbyteorder("<")
    if len(data) != size * wanted.itemsize:
        raise InvalidRequestError(
            f"input {name!r} has {len(data)} bytes; shape {list(shape)} of {datatype} needs "
            f"{size * wanted.itemsize}"
        )
    if dtype == "bool":
        # Any byte may come; NumPy's bools are only well-defined as 0 and 1.
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
    return np.frombuffer(data, wanted).reshape(shape)


def checked_size(name: str, shape: Sequence[int]) -> int:
    """Elements of a shape. Raises `InvalidRequestError` for a shape that is not taken."""
    # The rank first: a product of thousands of dimensions takes minutes, with Python's lock.
    known = len(shape) <= MAX_RANK and min(shape, default=0) >= 0
    size = math.prod(shape) if known else 0
    if not known or max(size, *shape, 0) > MAX_ELEMENTS:
        raise InvalidRequestError(
            f"input {name[:200]!r} has shape {list(shape)[:20]}; at most {MAX_RANK} dimensions and "
            f"{MAX_ELEMENTS} elements are taken"
        )
    return size


def to_raw(value: np.ndarray) -> bytes:
    """Raw contents of an array."""
    if value.dtype == object:
        return b"".join(_LENGTH.pack(len(text)) + text for text in value.ravel().tolist())
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()


def _strings(name: str, data: bytes, size: int) -> np.ndarray:
    found, at = [], 0
    while at < len(data) and len(found) <= size:
        if at + 4 > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data) or len(found) != size:
        raise InvalidRequestError(
            f"input {name!r} has {len(data)} bytes, which are not {size} strings with their length (uint32, "
            "little-endian) in front of each"
        )
    values = np.empty(size, object)
    values[:] = found
    return values
