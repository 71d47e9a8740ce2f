"""`make demo`, shortened to one pass over the ratings: every stage runs, scores are TensorFlow's, and the
clients that teams have get them from the model that it made."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxrank import bundle as files
from jaxrank.certificate import Example, load_examples
from serving.grpc_server import Server, ServerOptions
from tests import models
from tests.conftest import CACHE

ROOT = Path(__file__).parents[2]

_TENSORFLOW_CLIENT = """
import sys
import grpc, numpy as np, tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
_, address, given, found = sys.argv[1:]
request = predict_pb2.PredictRequest()
request.model_spec.name = "movielens"
with np.load(given) as stored:
    for name, value in stored.items():
        value = value.astype(object) if value.dtype.kind == "S" else value
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
outputs = stub.Predict(request, 60).outputs
np.savez(found, **{name: tf.make_ndarray(tensor) for name, tensor in outputs.items()})
"""

_TRITON_CLIENT = """
import sys
import numpy as np
protocol, address, given, found = sys.argv[1:]
if protocol == "grpc":
    import tritonclient.grpc as triton
else:
    import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype
inputs = []
with np.load(given) as stored:
    for name, value in stored.items():
        value = value.astype(object) if value.dtype.kind == "S" else value
        inputs.append(triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
result = triton.InferenceServerClient(address).infer("movielens", inputs)
np.savez(found, **{name: result.as_numpy(name) for name in ("rating", "score")})
"""


@pytest.fixture(scope="module")
def demo(movielens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all that the demo made, and `stdout`."""
    assert movielens_dir.is_dir()
    work = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "examples.movielens.demo", "--quick"]
    command += ["--work", str(work), "--cache", str(CACHE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (work / "stdout").write_text(done.stdout)
    return work


@pytest.fixture(scope="module")
def server(demo: Path) -> Iterator[Server]:
    server = Server(ServerOptions(models=demo / "models", host="127.0.0.1", port=0, rest_port=0))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def example(demo: Path) -> Example:
    """The largest recorded request, with TensorFlow's scores."""
    return max(load_examples(demo / "models" / "movielens" / "1"), key=lambda e: e.rows)


def test_the_demo(demo: Path) -> None:
    stdout = (demo / "stdout").read_text()
    assert stdout.count("best of") == 3  # three users' top ten
    assert f"jaxrank serve {demo / 'models'}" in stdout
    figures = {f["name"]: f["value"] for f in json.loads((demo / "first_light.json").read_text())["figures"]}
    assert set(figures) == {
        "max_abs_error", "auc_difference", "served_p50_over_tf_p50", "convert_s", "compile_s",
    }  # fmt: skip
    assert figures["max_abs_error"] <= 1e-5 and figures["auc_difference"] <= 1e-4
    manifest = files.verify(demo / "models" / "movielens" / "1")
    assert {t.name for t in manifest.targets} == {"cpu", "cuda:sm_80", "vulkan"}


@pytest.mark.parametrize("client", ["tensorflow-serving-api", "tritonclient grpc", "tritonclient http"])
def test_the_real_clients(
    client: str, server: Server, example: Example, client_packages: Path, triton_packages: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Their own messages and tensors; scores within 1e-5 of TensorFlow's, as the certificate promises."""
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, **models.as_npz(dict(example.features)))
    triton, _, protocol = client.partition(" ")
    script, packages = (
        (_TRITON_CLIENT, triton_packages) if protocol else (_TENSORFLOW_CLIENT, client_packages)
    )
    address = server.rest_address if protocol == "http" else server.address
    subprocess.run(
        [sys.executable, "-c", script, protocol, str(address), str(given), str(found)],
        env={"PYTHONPATH": str(packages), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=120,
    )
    with np.load(found) as outputs:
        _assert_tensorflows(example, dict(outputs))


def test_curl(server: Server, example: Example, tmp_path: Path) -> None:
    """Column by column, as TensorFlow Serving's REST takes it."""
    columns = {name: _json(value) for name, value in example.features.items()}
    (tmp_path / "body.json").write_text(json.dumps({"inputs": columns}))
    url = f"http://{server.rest_address}/v1/models/movielens/versions/1:predict"
    command = ["curl", "-sS", "--fail-with-body", "--max-time", "60", "-d", f"@{tmp_path / 'body.json'}", url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    _assert_tensorflows(example, {name: np.array(value, np.float32) for name, value in outputs.items()})


def _json(value: np.ndarray) -> object:
    if value.dtype != object:
        return value.tolist()
    coded = np.empty(value.size, object)
    coded[:] = [{"b64": base64.b64encode(text).decode()} for text in value.ravel()]
    return coded.reshape(value.shape).tolist()


def _assert_tensorflows(example: Example, found: dict[str, np.ndarray]) -> None:
    assert set(found) == set(example.outputs)
    for name, expected in example.outputs.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
