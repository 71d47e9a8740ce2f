"""The server over gRPC: TensorFlow's scores in both encodings, and every bad request's status while it keeps
serving."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.client import PredictClient
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode, encode_content
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE
from tests import models

MODEL = "ranker"


@pytest.fixture(scope="module")
def reference(ranker_saved_model: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    loaded = tf.saved_model.load(str(ranker_saved_model))
    predict = lambda features: models.call(loaded.signatures["serving_default"], features)  # noqa: E731
    predict.loaded = loaded  # type: ignore[attr-defined]
    return predict


def _request(
    features: dict[str, np.ndarray], encoder: Callable = encode_content, **spec: object
) -> pb.PredictRequest:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(**{"name": MODEL, **spec}))  # type: ignore[arg-type]
    for name, value in features.items():
        request.inputs[name].CopyFrom(encoder(value))
    return request


def _call(client: PredictClient, request: pb.PredictRequest | bytes, method: str = "Predict") -> bytes:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return client.channel.unary_unary(f"/{PREDICTION_SERVICE}/{method}")(data, timeout=30)


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 257, 1000, 5000])
@pytest.mark.parametrize("encoder", [encode, encode_content])
def test_scores_are_tensorflows(
    client: PredictClient, reference: Callable, rows: int, encoder: Callable
) -> None:
    """One module for 1 to 5,000 candidates. 1e-5: float32 sums in another order."""
    features = models.ranker_request(rows, seed=rows)
    response = pb.PredictResponse.FromString(_call(client, _request(features, encoder)))
    for name, expected in reference(features).items():
        assert (
            len(response.outputs[name].float_val) == rows
        )  # TensorFlow Serving answers in the typed encoding
        np.testing.assert_allclose(response.outputs[name].float_val, expected, rtol=0, atol=1e-5)
    assert response.model_spec.name == MODEL
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"


def test_concurrent_requests_do_not_mix(client: PredictClient, reference: Callable) -> None:
    requests = [models.ranker_request(n, seed=n) for n in range(1, 400, 9)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda features: client.predict(MODEL, features), requests))
    for features, outputs in zip(requests, found, strict=True):
        for name, expected in reference(features).items():
            np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=1e-5)


def test_output_filter(client: PredictClient) -> None:
    assert set(client.predict(MODEL, models.ranker_request(3, 0), outputs=["watch"])) == {"watch"}


def test_version_can_be_named(client: PredictClient) -> None:
    assert set(client.predict(MODEL, models.ranker_request(3, 0), version=3)) == {"click", "watch"}


def test_metadata_is_the_signature(client: PredictClient) -> None:
    signature = client.signature(MODEL)["serving_default"]
    assert set(signature.outputs) == {"click", "watch"}
    tags = signature.inputs["item_tags"]
    assert (tags.dtype, [d.size for d in tags.tensor_shape.dim]) == (tf.string.as_datatype_enum, [-1, 3])
    assert signature.method_name == "tensorflow/serving/predict"


def test_health(client: PredictClient) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", PREDICTION_SERVICE):
        status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_shows_the_public_names(client: PredictClient) -> None:
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert PREDICTION_SERVICE in database.get_services()
    file = database.FindFileContainingSymbol(PREDICTION_SERVICE)
    assert file.package == "tensorflow.serving"
    (service,) = file.service
    assert {m.name: m.input_type for m in service.method}["Predict"] == ".tensorflow.serving.PredictRequest"
    assert database.FindFileContainingSymbol("tensorflow.TensorProto").package == "tensorflow"
    for other, package in ((MODEL_SERVICE, "tensorflow.serving"), (INFERENCE_SERVICE, "inference")):
        assert other in database.get_services()
        assert database.FindFileContainingSymbol(other).package == package


GOOD = models.ranker_request(4, 1)


def _with(**changes: object) -> dict[str, np.ndarray]:
    return {k: v for k, v in {**GOOD, **changes}.items() if v is not None}  # type: ignore[misc]


def _version(number: int) -> dict[str, object]:
    from google.protobuf.wrappers_pb2 import Int64Value

    return {"version": Int64Value(value=number)}


INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        pytest.param(_request(_with(item_id=None)), INVALID, "'item_id'", id="missing feature"),
        pytest.param(_request(_with(color=np.zeros(4))), INVALID, "'color'", id="unknown feature"),
        # Percent-encoded, this message is over the 16 KiB that gRPC carries.
        pytest.param(
            _request(_with(**{"☃" * 199 + str(i): np.zeros(4) for i in range(10)})),
            INVALID,
            "unknown feature '☃",
            id="long message",
        ),
        pytest.param(
            _request(_with(item_price=np.zeros(4))), INVALID, "'item_price' has dtype float64", id="dtype"
        ),
        pytest.param(
            _request(_with(item_id=np.zeros((4, 2), np.int64))), INVALID, "'item_id' has 2 dim", id="rank"
        ),
        pytest.param(
            _request(_with(item_price=np.zeros(3, np.float32))),
            INVALID,
            "'item_price' has 3 rows",
            id="ragged",
        ),
        pytest.param(
            _request(models.ranker_request(0, 1)), INVALID, "at least one candidate", id="zero candidates"
        ),
        pytest.param(_request(models.ranker_request(5001, 1)), INVALID, "at most 5000", id="too many"),
        pytest.param(_request(models.ranker_request(90_000, 1)), INVALID, "at most 5000", id="far too many"),
        pytest.param(
            _request(_with(item_slot=np.full(4, 9, np.int32))), INVALID, "'item_slot'.*id 9 ", id="id outside"
        ),
        pytest.param(
            _request(GOOD, name="nothing"), NOT_FOUND, "no model 'nothing'; models: ranker", id="model"
        ),
        pytest.param(_request(GOOD, name="../ranker"), NOT_FOUND, "no model", id="path"),
        pytest.param(_request(GOOD, name=""), INVALID, "name is empty", id="no model name"),
        pytest.param(
            _request(GOOD, **_version(7)), NOT_FOUND, "no version 7; version 3 is served", id="version"
        ),
        pytest.param(_request(GOOD, version_label="canary"), INVALID, "version label: canary", id="label"),
        pytest.param(
            _request(GOOD, signature_name="train"), PRECONDITION, "no signature 'train'", id="signature"
        ),
        pytest.param(
            _request(GOOD).SerializeToString()[:-7], INVALID, "not a PredictRequest", id="truncated"
        ),
        pytest.param(b"\xff" * 50, INVALID, "not a PredictRequest", id="garbage"),
        pytest.param(b"", INVALID, "name is empty", id="empty"),
    ],
)
def test_bad_requests(
    client: PredictClient,
    reference: Callable,
    request_: pb.PredictRequest | bytes,
    code: grpc.StatusCode,
    words: str,
) -> None:
    """The right status and words, and the server answers the next request."""
    with pytest.raises(grpc.RpcError) as caught:
        _call(client, request_)
    assert caught.value.code() is code
    assert re.search(words, caught.value.details())
    np.testing.assert_allclose(
        client.predict(MODEL, GOOD)["click"], reference(GOOD)["click"], rtol=0, atol=1e-5
    )


def test_unknown_output_filter(client: PredictClient) -> None:
    with pytest.raises(grpc.RpcError, match="output_filter names 'clicks'; the outputs are: click, watch"):
        client.predict(MODEL, GOOD, outputs=["clicks"])


def test_unknown_metadata_field(client: PredictClient) -> None:
    request = pb.GetModelMetadataRequest(model_spec=pb.ModelSpec(name=MODEL), metadata_field=["weights"])
    with pytest.raises(grpc.RpcError) as caught:
        _call(client, request.SerializeToString(), "GetModelMetadata")
    assert caught.value.code() is INVALID


def test_a_message_over_the_limit(models_dir: Path, start_server: Callable) -> None:
    client = PredictClient(start_server(models_dir, max_message_mib=1).address)
    with pytest.raises(grpc.RpcError) as caught:
        client.predict(MODEL, _with(user_device=np.array([b"x" * (2 << 20)], object)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert set(client.predict(MODEL, GOOD)) == {"click", "watch"}
    client.close()


def test_a_deadline_is_kept(client: PredictClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.predict(MODEL, models.ranker_request(5000, 0), timeout=1e-4)
    # Whoever is first: the client's clock, or the server, which sees that there is no time left.
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_client_without_a_deadline(client: PredictClient) -> None:
    """It waits for as long as it takes: 5,000 candidates are several calls, for which its thread waits."""
    features = models.ranker_request(5000, 1)
    patient, hurried = (client.predict(MODEL, features, timeout=timeout) for timeout in (None, 30.0))
    for name, scores in hurried.items():
        np.testing.assert_allclose(patient[name], scores, rtol=0, atol=1e-5)
