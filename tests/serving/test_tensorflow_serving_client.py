"""The official client package, `tensorflow-serving-api`, against our server, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from serving.wire import predict_pb2
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

_FIELDS = """
import json
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2
messages = [
    model_pb2.ModelSpec, predict_pb2.PredictRequest, predict_pb2.PredictResponse,
    get_model_metadata_pb2.SignatureDefMap, get_model_metadata_pb2.GetModelMetadataRequest,
    get_model_metadata_pb2.GetModelMetadataResponse,
]
fields = lambda d: {f.name: [f.number, f.type, f.is_repeated] for f in d.fields}
print(json.dumps({m.DESCRIPTOR.full_name: fields(m.DESCRIPTOR) for m in messages}))
"""


def _environment(packages: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(packages), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}


def test_field_numbers_are_the_official_ones(client_packages: Path) -> None:
    command = [sys.executable, "-c", _FIELDS]
    found = subprocess.run(
        command, env=_environment(client_packages), check=True, timeout=120, stdout=subprocess.PIPE
    )
    official = json.loads(found.stdout)
    ours = {
        m.full_name.removeprefix("jaxrank."): m for m in predict_pb2.DESCRIPTOR.message_types_by_name.values()
    }
    assert ours.keys() == official.keys()
    for name, message in ours.items():
        for field in message.fields:
            assert [field.number, field.type, field.is_repeated] == official[name][field.name]


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
