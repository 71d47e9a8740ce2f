"""TensorProto <-> NumPy, in both of TensorFlow's encodings.

Everything a client can say about a tensor is checked against what it sent before anything of that size is
allocated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from serving.errors import InvalidRequestError
from serving.wire import tensor_pb2 as pb

MAX_ELEMENTS = 1 << 24
"""Elements of one tensor where the caller gives no smaller bound."""
MAX_FILLED = 1 << 22
"""Elements of one tensor that comes with fewer values: a message of a few bytes takes no more memory."""
MAX_RANK = 16

# dtype number -> (NumPy dtype, typed field). int_val carries all small integers.
_NUMERIC: dict[pb.DataType, tuple[np.dtype, str]] = {
    pb.DT_FLOAT: (np.dtype("<f4"), "float_val"),
    pb.DT_DOUBLE: (np.dtype("<f8"), "double_val"),
    pb.DT_INT32: (np.dtype("<i4"), "int_val"),
    pb.DT_INT16: (np.dtype("<i2"), "int_val"),
    pb.DT_INT8: (np.dtype("i1"), "int_val"),
    pb.DT_UINT8: (np.dtype("u1"), "int_val"),
    pb.DT_UINT16: (np.dtype("<u2"), "int_val"),
    pb.DT_INT64: (np.dtype("<i8"), "int64_val"),
    pb.DT_UINT32: (np.dtype("<u4"), "uint32_val"),
    pb.DT_UINT64: (np.dtype("<u8"), "uint64_val"),
    pb.DT_BOOL: (np.dtype("?"), "bool_val"),
    pb.DT_HALF: (np.dtype("<f2"), "half_val"),
}
_FIELDS = pb.TensorProto.DESCRIPTOR.fields_by_name
_NAMES: dict[int, str] = {n: name.removeprefix("DT_").lower() for name, n in pb.DataType.items()}
_NAMES |= {number: dtype.name for number, (dtype, _) in _NUMERIC.items()}
_NUMBER_OF: dict[str, pb.DataType] = {dtype.name: number for number, (dtype, _) in _NUMERIC.items()}
_NUMBER_OF["object"] = pb.DT_STRING
# NumPy takes as long to name a dtype as the codec for the rest of a tensor.
_NUMBER_OF_DTYPE = {np.dtype(name): number for name, number in _NUMBER_OF.items()}


class Content(NamedTuple):
    """A tensor whose values are bytes of the message `data`: what a TensorProto with `tensor_content` says.
    `dtype` is the wire's number, no size of `shape` is negative, and there are at most `MAX_RANK`."""

    data: bytes
    dtype: int
    shape: tuple[int, ...]
    offset: int
    size: int


def dtype_number(name: str) -> pb.DataType:
    """The wire's number of TensorFlow's dtype name ("float32", "string", "bfloat16", ...)."""
    if name in _NUMBER_OF:
        return _NUMBER_OF[name]
    return cast(pb.DataType, pb.DataType.Value(f"DT_{name.upper()}"))


def dtype_name(number: int) -> str:
    """TensorFlow's name of a wire dtype, for messages; the number itself where it is not one."""
    return _NAMES.get(number, str(number))


def decode(feature: str, tensor: pb.TensorProto | Content, max_elements: int = MAX_ELEMENTS) -> np.ndarray:
    """The array a tensor of a message holds. Numbers of a `Content` are read-only views of the message where
    they are aligned there; strings are object arrays of bytes.

    As in TensorFlow, a typed field may hold fewer values than the shape: the last one fills the rest, and
    none at all means zeros or empty strings. Raises `InvalidRequestError` naming the feature.
    """
    shape = declared_shape(feature, tensor)
    size = math.prod(shape)
    if size > max_elements or max(shape, default=0) > MAX_ELEMENTS:
        raise InvalidRequestError(
            f"feature {feature!r} has shape {list(shape)}: at most {max_elements} elements are taken"
        )
    if isinstance(tensor, pb.TensorProto):
        content = tensor.tensor_content  # copied whenever it is read
        compact = Content(content, tensor.dtype, shape, 0, len(content)) if content else None
    else:
        compact = tensor
    if tensor.dtype == pb.DT_STRING:
        if compact is not None:
            raise InvalidRequestError(
                f"feature {feature!r} has strings in tensor_content; send them in string_val"
            )
        return _strings(feature, cast(pb.TensorProto, tensor).string_val, shape, size)
    if tensor.dtype not in _NUMERIC:
        raise InvalidRequestError(
            f"feature {feature!r} has dtype {dtype_name(tensor.dtype)}, which is not supported; send "
            "floats of 16, 32 or 64 bits, bools, strings or integers of 8 to 64 bits"
        )
    dtype, field = _NUMERIC[cast(pb.DataType, tensor.dtype)]
    if compact is not None:
        if compact.size != size * dtype.itemsize:
            raise InvalidRequestError(
                f"feature {feature!r} has {compact.size} bytes of tensor_content; shape "
                f"{list(shape)} of {dtype.name} needs {size * dtype.itemsize}"
            )
        if tensor.dtype == pb.DT_BOOL:
            # Any byte may come; NumPy's bools are only well-defined as 0 and 1.
            return (np.frombuffer(compact.data, np.uint8, size, compact.offset) != 0).reshape(shape)
        values = np.frombuffer(compact.data, dtype, size, compact.offset).reshape(shape)
        # A message has its values anywhere; native code reads aligned numbers.
        return values if values.flags.aligned else values.copy()
    sent = getattr(tensor, field)
    _check_count(feature, len(sent), size, shape)
    if tensor.dtype == pb.DT_HALF:
        values = np.asarray(sent, np.int32).astype(np.uint16).view(np.float16)
    elif field == "int_val":
        wide = np.asarray(sent, np.int32)
        values = wide.astype(dtype)
        if (values != wide).any():
            raise InvalidRequestError(f"feature {feature!r} has a value outside of {dtype.name}")
    else:
        values = np.asarray(sent, dtype)
    if len(values) < size:
        filled = np.zeros(size, dtype)
        filled[: len(values)] = values
        filled[len(values) :] = values[-1] if len(values) else 0
        values = filled
    return values.reshape(shape)


def declared_shape(feature: str, tensor: pb.TensorProto | Content) -> tuple[int, ...]:
    """The shape that a tensor says it has. Raises `InvalidRequestError` for one that no array has."""
    if isinstance(tensor, Content):
        return tensor.shape
    dims = tensor.tensor_shape.dim
    if tensor.tensor_shape.unknown_rank or len(dims) > MAX_RANK:
        raise InvalidRequestError(
            f"feature {feature!r} has no usable shape: unknown rank or more than {MAX_RANK} dimensions"
        )
    shape = tuple(d.size for d in dims)
    if min(shape, default=0) < 0:
        raise InvalidRequestError(
            f"feature {feature!r} has shape {list(shape)}; dimensions must not be negative"
        )
    return shape


def encode(value: np.ndarray) -> pb.TensorProto:
    """A TensorProto in the typed encoding, which is what TensorFlow Serving answers with by default."""
    number = number_of(value)
    tensor = pb.TensorProto(dtype=number, tensor_shape=shape_proto(value.shape))
    if number == pb.DT_STRING:
        tensor.string_val.extend(value.ravel().tolist())
    elif number == pb.DT_HALF:
        tensor.half_val.extend(value.ravel().view(np.uint16).tolist())
    else:
        getattr(tensor, _NUMERIC[number][1]).extend(value.ravel().tolist())
    return tensor


def encode_content(value: np.ndarray) -> pb.TensorProto:
    """A TensorProto in the compact encoding: numbers in `tensor_content`, strings in `string_val`."""
    number = number_of(value)
    if number == pb.DT_STRING:
        return encode(value)
    content = np.ascontiguousarray(value, _NUMERIC[number][0]).tobytes()
    return pb.TensorProto(dtype=number, tensor_shape=shape_proto(value.shape), tensor_content=content)


def shape_proto(shape: Sequence[int | None]) -> pb.TensorShapeProto:
    """A shape on the wire; `None` is -1."""
    return pb.TensorShapeProto(dim=[pb.TensorShapeProto.Dim(size=-1 if d is None else d) for d in shape])


def packed(value: np.ndarray, tensor_content: bool) -> tuple[int, np.ndarray] | None:
    """The number of a TensorProto's field whose bytes on the wire are those of an array, and that array; None
    where there is none: strings, and integers of variable length."""
    dtype, field = _NUMERIC.get(number_of(value), (None, ""))
    if dtype is not None and (tensor_content or field in ("float_val", "double_val")):
        return _FIELDS["tensor_content" if tensor_content else field].number, value.astype(dtype, copy=False)
    return None


def number_of(value: np.ndarray) -> pb.DataType:
    """The wire's number of an array's dtype. Raises `TypeError` for one that has none."""
    number = _NUMBER_OF_DTYPE.get(value.dtype) or _NUMBER_OF.get(value.dtype.name)
    if number is None:
        raise TypeError(
            f"arrays of {value.dtype} have no tensor dtype; use object arrays of bytes for strings"
        )
    return number


def _check_count(feature: str, sent: int, size: int, shape: tuple[int, ...]) -> None:
    if sent > size:
        raise InvalidRequestError(
            f"feature {feature!r} has {sent} values; shape {list(shape)} has room for {size}"
        )
    if sent < size and size > MAX_FILLED:
        raise InvalidRequestError(
            f"feature {feature!r} has {sent} values for shape {list(shape)}; the last one fills at "
            f"most {MAX_FILLED} elements: send all values"
        )


def _strings(feature: str, sent: Sequence[bytes], shape: tuple[int, ...], size: int) -> np.ndarray:
    _check_count(feature, len(sent), size, shape)
    values = np.empty(size, object)
    values[: len(sent)] = list(sent)
    values[len(sent) :] = sent[-1] if sent else b""
    return values.reshape(shape)
