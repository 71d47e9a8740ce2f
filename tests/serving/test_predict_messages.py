"""Requests and answers as bytes say what Protocol Buffers' messages say."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrank.manifest import Signature, TensorSpec
from serving.errors import InvalidRequestError
from serving.native import _core
from serving.validation import decode_inputs
from serving.wire import predict_pb2 as pb
from serving.wire import tensor_pb2
from serving.wire.codec import Content, decode, encode, encode_content
from serving.wire.predict_messages import read_request, write_response
from tests.faults.mutations import MUTATIONS, Mutation, mutated

DTYPES = (
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)
VALUES = {
    **{f"of_{dtype}": np.arange(-6 if dtype[0] in "fi" else 0, 300, 53).astype(dtype) for dtype in DTYPES},
    "matrix": np.arange(12, dtype=np.float32).reshape(4, 3),
    "scalar": np.array(2.5, np.float64),
    "nothing": np.zeros((0, 4), np.float32),
    "text": np.array([[b"a", b"\xff"], [b"", b"bc"]], object),
}


def _request(compact: bool) -> pb.PredictRequest:
    request = pb.PredictRequest(
        model_spec=pb.ModelSpec(name="m", version_label="x"), output_filter=["a", "é"]
    )
    for name, value in VALUES.items():
        request.inputs[name].CopyFrom((encode_content if compact else encode)(value))
    return request


@pytest.mark.parametrize("compact", [True, False])
def test_a_request_is_what_its_message_says(compact: bool) -> None:
    message = _request(compact)
    found = read_request(message.SerializeToString())
    assert found.spec == message.model_spec and list(found.output_filter) == ["a", "é"]
    assert found.inputs.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert isinstance(found.inputs[name], Content) == (compact and value.size > 0 and name != "text"), (
            name
        )
        array = decode(name, found.inputs[name])
        assert array.dtype == value.dtype and array.flags.aligned
        np.testing.assert_array_equal(array, value)


def test_values_are_read_where_they_lie() -> None:
    """At every offset: a view of the message where the values are aligned in memory, one copy elsewhere."""
    value, views = np.arange(64, dtype=np.float32), 0
    for length in range(8):
        request = pb.PredictRequest(model_spec=pb.ModelSpec(name="m" * (length + 1)))
        request.inputs["x"].CopyFrom(encode_content(value))
        data = request.SerializeToString()
        array = decode("x", read_request(data).inputs["x"])
        is_view = np.shares_memory(array, np.frombuffer(data, np.uint8))
        tensor = read_request(data).inputs["x"]
        assert isinstance(tensor, Content) and is_view == (tensor.offset % 4 == 0)
        np.testing.assert_array_equal(array, value)
        views += is_view
    assert views == 2


@settings(max_examples=600, deadline=None, database=None)
@given(st.booleans(), MUTATIONS)
def test_hostile_requests_are_read_as_protocol_buffers_does(compact: bool, mutations: list[Mutation]) -> None:
    """What the scan takes is what the parser takes; what it leaves is parsed, and refused by that parser."""
    data = mutated(_request(compact), mutations)
    try:
        message = pb.PredictRequest.FromString(data)
    except DecodeError:
        with pytest.raises(InvalidRequestError, match="do not parse"):
            read_request(data)
        return
    found = read_request(data)
    assert found.spec == message.model_spec and list(found.output_filter) == list(message.output_filter)
    assert found.inputs.keys() == message.inputs.keys()
    for name, tensor in found.inputs.items():
        said = message.inputs[name]
        if isinstance(tensor, tensor_pb2.TensorProto):
            assert tensor == said
            continue
        dims = tuple(dim.size for dim in said.tensor_shape.dim)
        assert (tensor.dtype, tensor.shape) == (said.dtype, dims) and not said.tensor_shape.unknown_rank
        assert data[tensor.offset : tensor.offset + tensor.size] == said.tensor_content != b""


def test_every_length_is_checked() -> None:
    """Of a message that is cut anywhere: nothing beyond its end is read."""
    data = _request(True).SerializeToString()
    for end in range(len(data)):
        found = _core.find_tensors(data[:end])
        for tensor in found[2].values() if found is not None else ():
            assert isinstance(tensor, bytes) or tensor[2] + tensor[3] <= end


@pytest.mark.parametrize("compact", [True, False])
def test_an_answer_is_what_its_message_would_be(compact: bool) -> None:
    spec = pb.ModelSpec(name="m", signature_name="s")
    outputs = {**VALUES, "x" * 200: np.linspace(0, 1, 500, dtype=np.float32)}
    answer = pb.PredictResponse.FromString(
        write_response(spec.SerializeToString(), outputs, tensor_content=compact)
    )
    expected = pb.PredictResponse(model_spec=spec)
    for name, value in outputs.items():
        expected.outputs[name].CopyFrom((encode_content if compact else encode)(value))
    assert answer == expected


SIGNATURE = Signature(
    name="s",
    method_name="",
    inputs=(
        TensorSpec(name="user", dtype="int64", shape=(1, 3), scope="request", tensor_name="user:0"),
        TensorSpec(name="item", dtype="float32", shape=(None, 2), scope="candidate", tensor_name="item:0"),
        TensorSpec(name="id", dtype="int32", shape=(None,), scope="candidate", tensor_name="id:0"),
    ),
    outputs=(),
)
FITS = {
    "user": np.arange(3).reshape(1, 3),
    "item": np.ones((4, 2), np.float32),
    "id": np.arange(4, dtype=np.int32),
}
CHANGES = {
    "fits": {},
    "a missing feature": {"id": None},
    "an unknown feature": {"other": np.ones(4, np.float32)},
    "another dtype": {"id": np.arange(4)},
    "strings": {"id": np.array([b"a"] * 4, object)},
    "another rank": {"id": np.ones((4, 1), np.int32)},
    "another width": {"item": np.ones((4, 3), np.float32)},
    "other rows": {"id": np.arange(5, dtype=np.int32)},
    "no rows": {"id": np.empty(0, np.int32), "item": np.empty((0, 2), np.float32)},
    "too many rows": {"id": np.arange(9, dtype=np.int32), "item": np.ones((9, 2), np.float32)},
    "two users": {"user": np.arange(6).reshape(2, 3)},
    "a scalar": {"id": np.array(1, np.int32)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_checks_are_the_same_however_tensors_come(change: str) -> None:
    features = {n: v for n, v in {**FITS, **CHANGES[change]}.items() if v is not None}
    message = pb.PredictRequest(model_spec=pb.ModelSpec(name="m"))
    for name, value in features.items():
        message.inputs[name].CopyFrom(encode_content(value))
    results = []
    for tensors in (read_request(message.SerializeToString()).inputs, dict(message.inputs)):
        try:
            results.append({n: v.tolist() for n, v in decode_inputs(tensors, SIGNATURE, 8).items()})
        except InvalidRequestError as error:
            results.append(str(error))
    assert results[0] == results[1]
    assert isinstance(results[0], dict) == (change == "fits")


def test_a_tensor_with_less_content_than_its_shape_is_refused() -> None:
    message = pb.PredictRequest(model_spec=pb.ModelSpec(name="m"))
    for name, value in FITS.items():
        message.inputs[name].CopyFrom(encode_content(value))
    message.inputs["id"].tensor_content = b"\0" * 12
    with pytest.raises(InvalidRequestError, match=r"'id' has 12 bytes of tensor_content; shape \[4\]"):
        decode_inputs(read_request(message.SerializeToString()).inputs, SIGNATURE, 8)
