"""PredictRequest and PredictResponse as bytes, without the copies that Protocol Buffers' messages make.

Arrays are read from the request's bytes, and written into the answer's.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from serving.errors import InvalidRequestError
from serving.native import _core
from serving.wire import predict_pb2 as pb
from serving.wire import tensor_pb2
from serving.wire.codec import Content, encode, number_of, packed, shape_proto


@dataclass(frozen=True)
class PredictMessage:
    """A request. Tensors with all values in `tensor_content` are `Content`, others messages."""

    spec: pb.ModelSpec
    output_filter: Sequence[str]
    inputs: Mapping[str, tensor_pb2.TensorProto | Content]


def read_request(data: bytes) -> PredictMessage:
    """The request in `data`. Raises `InvalidRequestError` for what is none."""
    found = _core.find_tensors(data)
    try:
        if found is None:
            request = pb.PredictRequest.FromString(data)
            return PredictMessage(request.model_spec, request.output_filter, request.inputs)
        spec, names, tensors = found
        inputs = {
            name: Content(data, *tensor)
            if isinstance(tensor, tuple)
            else tensor_pb2.TensorProto.FromString(tensor)
            for name, tensor in tensors.items()
        }
        return PredictMessage(pb.ModelSpec.FromString(spec), names, inputs)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a PredictRequest: {len(data)} bytes do not parse"
        ) from error


def write_response(spec: bytes, outputs: Mapping[str, np.ndarray], *, tensor_content: bool) -> bytes:
    """A serialized PredictResponse: `spec` is a serialized ModelSpec; `tensor_content` asks for the compact
    encoding, TensorFlow Serving's default is the typed one."""
    parts: list[bytes | memoryview] = []
    for name, value in outputs.items():
        tensor = _tensor(value, tensor_content)
        key = name.encode()
        entry = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(sum(map(len, tensor)))
        parts += [b"\x0a", _varint(len(entry) + sum(map(len, tensor))), entry, *tensor]
    return b"".join([*parts, b"\x12", _varint(len(spec)), spec])


def _tensor(value: np.ndarray, tensor_content: bool) -> Sequence[bytes | memoryview]:
    """Pieces of a serialized TensorProto."""
    field = packed(value, tensor_content)
    if field is None:
        return (encode(value).SerializeToString(),)
    number, values = field
    head = _head(number_of(value), value.shape)
    content = np.ascontiguousarray(values).data.cast("B") if value.size else b""
    return (head, bytes([number << 3 | 2]), _varint(len(content)), content) if value.size else (head,)


@functools.lru_cache(maxsize=1024)
def _head(number: tensor_pb2.DataType, shape: tuple[int, ...]) -> bytes:
    return tensor_pb2.TensorProto(dtype=number, tensor_shape=shape_proto(shape)).SerializeToString()


def _varint(number: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
