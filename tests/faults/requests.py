"""Valid requests of every protocol: the seeds of hostile ones. The model is `ranker`, version 3, or one of
the examples, `classifier` and `regressor`; calls that unload and load name `spare`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.protocols.kserve_tensors import datatype_of, to_raw
from serving.wire import inference_pb2, kserve_pb2, model_service_pb2, ranking_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode, encode_content
from serving.wire.example_pb2 import Example
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE, RANKING_SERVICE
from tests import models

FEATURES = models.ranker_request(6, 3)
USER = {name: value for name, value in FEATURES.items() if len(value) == 1}
ITEMS = {name: value for name, value in FEATURES.items() if len(value) > 1}
_SPEC = pb.ModelSpec(name="ranker")
_CLASSIFIER, _REGRESSOR = pb.ModelSpec(name="classifier"), pb.ModelSpec(name="regressor")


class Call(NamedTuple):
    """A gRPC call: one message, or those of a stream."""

    method: str
    messages: tuple[Message, ...]
    kind: str = "unary"
    """Or "stream", both ways, or "watch", answers without end."""
    prepared: bool = False
    """Whether the first message is to have the handle of a request that was prepared."""


def _predict() -> pb.PredictRequest:
    request = pb.PredictRequest(model_spec=_SPEC, output_filter=["click"])
    for i, (name, value) in enumerate(FEATURES.items()):
        request.inputs[name].CopyFrom((encode if i % 2 else encode_content)(value))
    return request


def _example(**features: float | bytes | list[float]) -> bytes:
    """A serialized tf.Example."""
    example = Example()
    for name, value in features.items():
        feature = example.features.feature.add(key=name.encode()).value
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.float_list.value.extend(np.atleast_1d(value).tolist())
    return example.SerializeToString()


def _parsed_by_the_model() -> inference_pb2.Input:
    given = inference_pb2.Input()
    given.example_list.examples.extend(_example(price=[0.5, i], id=i) for i in range(3))
    return given


def _parsed_by_the_server() -> inference_pb2.Input:
    given = inference_pb2.Input()
    given.example_list_with_context.context = _example(user_age=3.5)
    given.example_list_with_context.examples.extend(
        _example(item_id=i, item_price=[0.5, i], item_color=b"red") for i in range(3)
    )
    return given


def _infer() -> kserve_pb2.ModelInferRequest:
    request = kserve_pb2.ModelInferRequest(model_name="ranker", id="7")
    fields = {"BYTES": "bytes", "FP32": "fp32", "INT64": "int64", "INT32": "int"}
    for name, value in FEATURES.items():
        datatype = datatype_of(value)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        getattr(tensor.contents, f"{fields[datatype]}_contents").extend(value.ravel().tolist())
    return request


def _raw_infer() -> kserve_pb2.ModelInferRequest:
    request = kserve_pb2.ModelInferRequest(model_name="ranker", id="8")
    for name, value in FEATURES.items():
        request.inputs.add(name=name, datatype=datatype_of(value), shape=value.shape)
        request.raw_input_contents.append(to_raw(value))
    return request


def _rank(**fields: Any) -> ranking_pb2.RankRequest:
    request = ranking_pb2.RankRequest(**fields)
    for name, value in ITEMS.items():
        request.candidates[name].CopyFrom(encode_content(value))
    return request


def _user() -> dict[str, Any]:
    return {name: encode(value) for name, value in USER.items()}


def reload_of(directory: Path) -> model_service_pb2.ReloadConfigRequest:
    """A configuration of the models of a directory."""
    request = model_service_pb2.ReloadConfigRequest()
    for path in sorted(directory.iterdir()):
        request.config.model_config_list.config.add(
            name=path.name, base_path=str(path), model_platform="tensorflow"
        ).model_version_policy.specific.versions.append(3)
    return request


def administration(directory: Path) -> tuple[Call, ...]:
    """Calls that change what is served."""
    load = kserve_pb2.RepositoryModelLoadRequest(model_name="spare")
    unload = kserve_pb2.RepositoryModelUnloadRequest(model_name="spare")
    return (
        Call(f"{MODEL_SERVICE}/HandleReloadConfigRequest", (reload_of(directory),)),
        Call(f"{INFERENCE_SERVICE}/RepositoryModelLoad", (load,)),
        Call(f"{INFERENCE_SERVICE}/RepositoryModelUnload", (unload,)),
    )


_TASK = inference_pb2.InferenceTask(model_spec=_CLASSIFIER, method_name="tensorflow/serving/classify")
_ASKED = reflection_pb2.ServerReflectionRequest(
    host="x", file_containing_symbol="tensorflow.serving.PredictionService"
)
CALLS = (
    Call(f"{PREDICTION_SERVICE}/Predict", (_predict(),)),
    Call(f"{PREDICTION_SERVICE}/Predict", (_predict(),)),
    Call(
        f"{PREDICTION_SERVICE}/Classify",
        (inference_pb2.ClassificationRequest(model_spec=_CLASSIFIER, input=_parsed_by_the_model()),),
    ),
    Call(
        f"{PREDICTION_SERVICE}/Regress",
        (inference_pb2.RegressionRequest(model_spec=_REGRESSOR, input=_parsed_by_the_server()),),
    ),
    Call(
        f"{PREDICTION_SERVICE}/MultiInference",
        (inference_pb2.MultiInferenceRequest(tasks=[_TASK], input=_parsed_by_the_model()),),
    ),
    Call(
        f"{PREDICTION_SERVICE}/GetModelMetadata",
        (pb.GetModelMetadataRequest(model_spec=_SPEC, metadata_field=["signature_def"]),),
    ),
    Call(f"{MODEL_SERVICE}/GetModelStatus", (model_service_pb2.GetModelStatusRequest(model_spec=_SPEC),)),
    Call(f"{INFERENCE_SERVICE}/ModelInfer", (_infer(),)),
    Call(f"{INFERENCE_SERVICE}/ModelInfer", (_raw_infer(),)),
    Call(
        f"{INFERENCE_SERVICE}/ModelMetadata", (kserve_pb2.ModelMetadataRequest(name="ranker", version="3"),)
    ),
    Call(
        f"{INFERENCE_SERVICE}/ModelStatistics",
        (kserve_pb2.ModelStatisticsRequest(name="ranker", version="3"),),
    ),
    Call(f"{INFERENCE_SERVICE}/RepositoryIndex", (kserve_pb2.RepositoryIndexRequest(ready=True),)),
    Call(
        f"{RANKING_SERVICE}/PrepareRequest",
        (ranking_pb2.RequestFeatures(model_spec=_SPEC, features=_user()),),
    ),
    Call(f"{RANKING_SERVICE}/Rank", (_rank(model_spec=_SPEC),), prepared=True),
    Call(f"{RANKING_SERVICE}/Rank", (_rank(model_spec=_SPEC, request_features=_user()),)),
    Call(f"{RANKING_SERVICE}/RankSlices", (_rank(model_spec=_SPEC), _rank()), "stream", prepared=True),
    Call(f"{health.SERVICE_NAME}/Check", (health_pb2.HealthCheckRequest(service=PREDICTION_SERVICE),)),
    Call(f"{health.SERVICE_NAME}/Watch", (health_pb2.HealthCheckRequest(service="ranker"),), "watch"),
    Call(f"{reflection.SERVICE_NAME}/ServerReflectionInfo", (_ASKED, _ASKED), "stream"),
)
COLUMNS = {
    name: [v.decode() for v in value.ravel()] if value.ndim == 1 and value.dtype == object
    else [[v.decode() for v in row] for row in value] if value.dtype == object
    else value.tolist()
    for name, value in FEATURES.items()
}  # fmt: skip
TENSORS = [
    {"name": "user_age", "shape": [1], "datatype": "FP32", "data": [3.5]},
    {"name": "item_id", "shape": [6], "datatype": "INT64", "data": FEATURES["item_id"].tolist()},
]
INFER = "/v2/models/ranker/infer"
DOCUMENTS = (
    ("/v1/models/ranker:predict", {"inputs": COLUMNS}),
    ("/v1/models/ranker:predict", {"signature_name": "serving_default", "instances": [COLUMNS]}),
    ("/v1/models/ranker/versions/3:classify", {"examples": [{"user_age": 1.5, "item_id": 7}], "context": {}}),
    (
        "/v1/models/regressor:regress",
        {
            "context": {"user_age": 1.5},
            "examples": [{"item_id": 7, "item_price": [1.5, 2.5], "item_color": "red"}],
        },
    ),
    (INFER, {"id": "1", "inputs": TENSORS, "outputs": [{"name": "click"}]}),
    ("/v2/repository/index", {"ready": True}),
)
RAW = b"".join(map(to_raw, FEATURES.values()))
BINARY = {
    "inputs": [
        {
            "name": name,
            "shape": list(value.shape),
            "datatype": datatype_of(value),
            "parameters": {"binary_data_size": len(to_raw(value))},
        }
        for name, value in FEATURES.items()
    ],
    "outputs": [{"name": "click", "parameters": {"binary_data": True}}],
}
"""The JSON in front of `RAW`, the tensors' bytes."""
LENGTHS = ("", "-1", "+5", "1e3", "0x10", "1 2", "9" * 11, "9" * 400, "00000000001", "٣")
"""Of `Inference-Header-Content-Length`, that are none or not that of the JSON."""
# A client's preface, an empty SETTINGS frame, and the HEADERS of nothing: https://www.rfc-editor.org/rfc/rfc9113.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\5\0\0\0\1\x82" + b"\0" * 40
HTTP1 = (
    b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n"
    b'Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"in\r\n0\r\n\r\n'
)
