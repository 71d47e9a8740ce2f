"""The official client package, `tensorflow-serving-api`, against our server, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.wire import inference_pb2, model_service_pb2, predict_pb2, server_config_pb2
from tests import models

_CLIENT = """
import sys
import grpc, numpy as np, tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

address, given, result = sys.argv[1:]
stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
request = predict_pb2.PredictRequest()
request.model_spec.name = "ranker"
request.model_spec.signature_name = "serving_default"
with np.load(given) as stored:
    for name, value in stored.items():
        value = value.astype(object) if value.dtype.kind == "S" else value
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
response = stub.Predict(request, 30)
np.savez(result, **{name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()})
assert response.model_spec.version.value == 3

request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
request.model_spec.name = "ranker"
metadata = stub.GetModelMetadata(request, 30).metadata["signature_def"]
signatures = get_model_metadata_pb2.SignatureDefMap()
assert metadata.Unpack(signatures)
assert sorted(signatures.signature_def["serving_default"].outputs) == ["click", "watch"]
"""

_EXAMPLES = """
import sys
import grpc, tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2, get_model_status_pb2, inference_pb2, model_management_pb2, model_service_pb2_grpc,
    prediction_service_pb2_grpc, regression_pb2,
)

address, models = sys.argv[1:]
channel = grpc.insecure_channel(address)
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

request = classification_pb2.ClassificationRequest()
request.model_spec.name = "classifier"
for i in range(5):
    features = request.input.example_list.examples.add().features.feature
    features["price"].float_list.value.extend([i, 0.5])
    features["id"].int64_list.value.append(i)
examples = [e.SerializeToString() for e in request.input.example_list.examples]
expected = tf.saved_model.load(models + "/classifier").signatures["serving_default"](tf.constant(examples))
rows = stub.Classify(request, 30).result.classifications
assert [[c.label.encode() for c in row.classes] for row in rows] == expected["classes"].numpy().tolist()
for row, scores in zip(rows, expected["scores"].numpy(), strict=True):
    assert abs(scores - [c.score for c in row.classes]).max() < 1e-6

request = regression_pb2.RegressionRequest()
request.model_spec.name = "regressor"
given = request.input.example_list_with_context
given.context.features.feature["user_age"].float_list.value.append(30)
features = given.examples.add().features.feature
features["item_id"].int64_list.value.append(3)
features["item_price"].float_list.value.extend([1, 2])
features["item_color"].bytes_list.value.append(b"red")
(one,) = stub.Regress(request, 30).result.regressions
multi = inference_pb2.MultiInferenceRequest(input=request.input)
multi.tasks.add(model_spec=request.model_spec, method_name="tensorflow/serving/regress")
assert stub.MultiInference(multi, 30).results[0].regression_result.regressions[0] == one

service = model_service_pb2_grpc.ModelServiceStub(channel)
reload = model_management_pb2.ReloadConfigRequest()
config = reload.config.model_config_list.config.add()
config.name, config.base_path = "regressor", models + "/models/regressor"
config.model_platform = "tensorflow"
config.version_labels["stable"] = 1
assert service.HandleReloadConfigRequest(reload, 30).status.error_code == 0
status = get_model_status_pb2.GetModelStatusRequest()
status.model_spec.name = "regressor"
(version,) = service.GetModelStatus(status, 30).model_version_status
assert version.State.Name(version.state) == "AVAILABLE" and version.status.error_message == ""
request.model_spec.version_label = "stable"
assert stub.Regress(request, 30).model_spec.version.value == 1
status.model_spec.name = "classifier"
(version,) = service.GetModelStatus(status, 30).model_version_status
assert version.State.Name(version.state) == "END"
"""

_FIELDS = """
import json, sys
from google.protobuf.descriptor_pool import Default
from tensorflow_serving.apis import (
    get_model_metadata_pb2, get_model_status_pb2, inference_pb2, model_management_pb2, predict_pb2,
)
fields = lambda d: {f.name: [f.number, f.type, f.is_repeated] for f in d.fields}
print(json.dumps({name: fields(Default().FindMessageTypeByName(name)) for name in sys.argv[1:]}))
"""


def _environment(packages: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(packages), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}


def test_field_numbers_are_the_official_ones(client_packages: Path) -> None:
    ours = {
        message.full_name.removeprefix("jaxrank."): message
        for file in (predict_pb2, inference_pb2, server_config_pb2, model_service_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
        # The client package has no messages of these files.
        if message.name
        not in ("PrometheusConfig", "MonitoringConfig", "SSLConfig", "BatchingParameters", "Trial")
    }
    found = subprocess.run(
        [sys.executable, "-c", _FIELDS, *ours],
        env=_environment(client_packages),
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
    )
    official = json.loads(found.stdout)
    serialized = {("ExampleList", "examples"), ("ExampleListWithContext", "examples")}
    serialized |= {("ExampleListWithContext", "context")}
    for name, message in ours.items():
        for field in message.fields:
            if (message.name, field.name) == ("ModelConfig", "trial"):  # our own
                assert field.name not in official[name]
                continue
            # We keep examples as the bytes that they are on the wire.
            kind = field.TYPE_MESSAGE if (message.name, field.name) in serialized else field.type
            assert [field.number, kind, field.is_repeated] == official[name][field.name]


def test_the_official_client_on_examples(
    client_packages: Path, example_models: Path, start_server: Callable
) -> None:
    """Classify, Regress, MultiInference and ModelService with the official messages."""
    server = start_server(example_models / "models")
    command = [sys.executable, "-c", _EXAMPLES, server.address, str(example_models)]
    subprocess.run(command, env=_environment(client_packages), check=True, timeout=120)


def test_the_official_client(
    client_packages: Path, address: str, ranker_saved_model: Path, tmp_path: Path
) -> None:
    """Its own messages, its own tensors, our scores equal to TensorFlow's."""
    features = models.ranker_request(120, 77)
    np.savez(tmp_path / "in.npz", **models.as_npz(features))
    command = [sys.executable, "-c", _CLIENT, address, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, env=_environment(client_packages), check=True, timeout=120)
    expected = models.tensorflow_outputs(ranker_saved_model, features)
    with np.load(tmp_path / "out.npz") as found:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5)
