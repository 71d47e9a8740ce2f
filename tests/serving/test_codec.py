"""Tensors on the wire against TensorFlow's own encoder and decoder, in the same process."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2 as tf_pb2

from serving.errors import InvalidRequestError
from serving.wire import tensor_pb2 as pb
from serving.wire.codec import MAX_ELEMENTS, MAX_FILLED, decode, encode, encode_content

_DTYPES = [
    np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64,
    np.uint8, np.uint16, np.uint32, np.uint64, bool,
]  # fmt: skip
_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def _to_ours(message: tf_pb2.TensorProto) -> pb.TensorProto:
    return pb.TensorProto.FromString(message.SerializeToString())


def _to_tensorflow(message: pb.TensorProto) -> tf_pb2.TensorProto:
    return tf_pb2.TensorProto.FromString(message.SerializeToString())


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(_DTYPES))
def test_numbers(data: st.DataObject, dtype: type) -> None:
    """Both directions, both encodings, bit for bit."""
    value = data.draw(hnp.arrays(dtype, _SHAPES))
    np.testing.assert_array_equal(decode("x", _to_ours(tf.make_tensor_proto(value))), value)
    for ours in (encode(value), encode_content(value)):
        np.testing.assert_array_equal(tf.make_ndarray(_to_tensorflow(ours)), value)
        np.testing.assert_array_equal(decode("x", ours), value)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(object, hnp.array_shapes(max_dims=3, max_side=4), elements=st.binary(max_size=20)))
def test_strings(value: np.ndarray) -> None:
    np.testing.assert_array_equal(decode("x", _to_ours(tf.make_tensor_proto(value, tf.string))), value)
    np.testing.assert_array_equal(tf.make_ndarray(_to_tensorflow(encode(value))), value)


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32, tf.int64, tf.bool, tf.float16, tf.uint8, tf.string])
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_short_typed_fields_repeat_the_last_value(dtype: tf.DType, sent: int) -> None:
    value = (
        np.array([b"a", b"b"], object)
        if dtype == tf.string
        else np.array([1, 0]).astype(dtype.as_numpy_dtype)
    )
    message = _to_tensorflow(encode(value[:sent]))
    message.ClearField("tensor_shape")
    message.tensor_shape.dim.add().size = 5
    if not sent and dtype == tf.string:
        np.testing.assert_array_equal(decode("x", _to_ours(message)), [b""] * 5)  # make_ndarray cannot
    else:
        np.testing.assert_array_equal(decode("x", _to_ours(message)), tf.make_ndarray(message))


def test_any_byte_of_a_bool_is_a_bool() -> None:
    """Other bytes than 0 and 1 would make NumPy bools that are neither."""
    found = decode("x", _message(dtype=pb.DT_BOOL, shape=[3], tensor_content=b"\x00\x02\x01"))
    np.testing.assert_array_equal(found.view(np.uint8), [0, 1, 1])


def _message(**fields: object) -> pb.TensorProto:
    shape = fields.pop("shape", [2])
    fields.setdefault("dtype", pb.DT_FLOAT)
    dims = [pb.TensorShapeProto.Dim(size=d) for d in shape]  # type: ignore[attr-defined]
    return pb.TensorProto(tensor_shape=pb.TensorShapeProto(dim=dims), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (_message(shape=[-1]), "negative"),
        (_message(shape=[1 << 40]), "at most"),
        (_message(shape=[1 << 32, 1 << 32]), "at most"),
        (_message(shape=[0, 1 << 60]), "at most"),
        (_message(shape=[1] * 40), "more than 16 dimensions"),
        (_message(shape=[MAX_ELEMENTS + 1], float_val=[1.0]), "at most"),
        (_message(shape=[MAX_FILLED + 1], float_val=[1.0]), "send all values"),
        (_message(shape=[2, MAX_FILLED]), "send all values"),
        (_message(shape=[3], float_val=[1.0] * 4), "4 values; shape .3. has room for 3"),
        (_message(shape=[3], tensor_content=b"1234567"), "7 bytes of tensor_content"),
        (_message(dtype=pb.DT_STRING, shape=[1], tensor_content=b"abc"), "string_val"),
        (_message(dtype=pb.DT_STRING, shape=[1], string_val=[b"a", b"b"]), "2 values"),
        (_message(dtype=pb.DT_COMPLEX64), "dtype complex64, which is not supported"),
        (_message(dtype=pb.DT_BFLOAT16), "dtype bfloat16, which is not supported"),
        (_message(dtype=pb.DT_INVALID), "dtype invalid"),
        (_message(dtype=20), "dtype 20, which is not supported"),
        (_message(dtype=pb.DT_INT8, shape=[1], int_val=[1000]), "outside of int8"),
        (
            pb.TensorProto(dtype=pb.DT_FLOAT, tensor_shape=pb.TensorShapeProto(unknown_rank=True)),
            "unknown rank",
        ),
    ],
)
def test_bad_tensors_are_refused_by_name(message: pb.TensorProto, expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"'user_age'.*{expected}"):
        decode("user_age", message)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_message_is_decoded_or_refused(data: bytes) -> None:
    """Whatever bytes parse as a TensorProto give an array or an InvalidRequestError, and stay within the
    bound."""
    try:
        message = pb.TensorProto.FromString(data)
    except Exception:
        return
    with contextlib.suppress(InvalidRequestError):
        assert decode("x", message, max_elements=1000).size <= 1000
