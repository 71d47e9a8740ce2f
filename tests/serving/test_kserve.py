"""KServe v2 with its real clients, `tritonclient` for gRPC and HTTP, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.data_plane import DataPlane
from serving.errors import InvalidRequestError
from serving.grpc_server import Server
from serving.monitoring.counts import RequestCounts
from serving.monitoring.timeline import Timeline
from serving.protocols.kserve import KServe
from serving.protocols.kserve_tensors import from_raw, to_raw
from serving.wire import kserve_pb2 as pb
from serving.wire.reflection import INFERENCE_SERVICE

_CLIENT = """
import sys
import numpy as np
protocol, address, given, expected = sys.argv[1:]
if protocol == "grpc":
    import tritonclient.grpc as triton
else:
    import tritonclient.http as triton
client = triton.InferenceServerClient(address)
http = protocol == "http"
plain = lambda message: message if http else client_json(message)
def client_json(message):
    from google.protobuf.json_format import MessageToDict
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("regressor") and client.is_model_ready("regressor", "1")
assert not client.is_model_ready("regressor", "7") and not client.is_model_ready("nothing")
assert plain(client.get_server_metadata())["name"] == "jaxrank"
metadata = plain(client.get_model_metadata("regressor"))
assert metadata["versions"] == ["1"]
shapes = {t["name"]: (t["datatype"], [int(d) for d in t["shape"]]) for t in metadata["inputs"]}
assert shapes["item_price"] == ("FP32", [-1, 2]) and shapes["item_color"] == ("BYTES", [-1])

with np.load(given) as stored:
    features = {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in stored.items()}
wanted = np.load(expected)
def ask(binary, **options):
    inputs = []
    for name, value in features.items():
        tensor = triton.InferInput(name, list(value.shape), shapes[name][0])
        if http:
            tensor.set_data_from_numpy(value, binary_data=binary)
        else:
            tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("outputs", binary_data=binary) if http else
               triton.InferRequestedOutput("outputs")]
    return client.infer("regressor", inputs, outputs=outputs, request_id="a7", **options)
compressions = ("gzip", "deflate")
for binary in (True, False):
    result = ask(binary)
    np.testing.assert_array_equal(result.as_numpy("outputs"), wanted)
    response = result.get_response()
    assert (response["id"] if http else response.id) == "a7"
for algorithm in compressions:
    name = "request_compression_algorithm" if http else "compression_algorithm"
    np.testing.assert_array_equal(ask(True, **{name: algorithm}).as_numpy("outputs"), wanted)

(stats,) = plain(client.get_inference_statistics("regressor"))["model_stats"]
assert int(stats["execution_count"]) >= 4 and int(stats["inference_stats"]["compute_infer"]["ns"]) > 0
assert int(stats["inference_count"]) >= 4 * len(wanted)
assert len(plain(client.get_inference_statistics())["model_stats"]) >= 1

def index():
    found = plain(client.get_model_repository_index())
    return {m["name"]: m["state"] for m in (found if http else found["models"])}
assert index()["regressor"] == "READY"
client.unload_model("regressor")
assert index()["regressor"] == "UNAVAILABLE" and not client.is_model_ready("regressor")
try:
    ask(True)
    raise AssertionError("an unloaded model answered")
except triton.InferenceServerException as error:
    assert "unloaded" in str(error)
client.load_model("regressor")
np.testing.assert_array_equal(ask(True).as_numpy("outputs"), wanted)
"""


@pytest.fixture(scope="module")
def server(example_models: Path, start_server: Callable) -> Server:
    return start_server(example_models / "models", rest_port=0)


FEATURES = {
    "user_age": np.array([33], np.float32),
    "item_id": np.array([1, 2, 3], np.int32),
    "item_price": np.array([[1, 2], [0.5, -1], [2.5, 3.5]], np.float32),
    "item_color": np.array([b"red", b"\xff", b""], object),
}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_real_client(server: Server, triton_packages: Path, tmp_path: Path, protocol: str) -> None:
    """The scores are the ones that Predict gives, bit by bit. Strings travel as JSON, too, hence UTF-8."""
    features = {**FEATURES, "item_color": np.array([b"red", "ja ✓".encode(), b"blue"], object)}
    client = PredictClient(server.address)
    np.save(tmp_path / "expected.npy", client.predict("regressor", features)["outputs"])
    client.close()
    np.savez(
        tmp_path / "in.npz", **{k: v.astype("S") if v.dtype == object else v for k, v in features.items()}
    )
    address = server.address if protocol == "grpc" else server.rest_address
    arguments = [protocol, str(address), str(tmp_path / "in.npz"), str(tmp_path / "expected.npy")]
    environment = {"PYTHONPATH": str(triton_packages), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", _CLIENT, *arguments], env=environment, check=True, timeout=120)


_FIELDS = """
import json
from tritonclient.grpc import service_pb2 as s
def fields(d):
    found = {d.full_name: {f.name: [f.number, f.type] for f in d.fields}}
    for nested in d.nested_types:
        found |= fields(nested)
    return found
print(json.dumps({k: v for d in s.DESCRIPTOR.message_types_by_name.values() for k, v in fields(d).items()}))
"""


def test_field_numbers_are_the_official_ones(triton_packages: Path) -> None:
    environment = {"PYTHONPATH": str(triton_packages), "PATH": "/usr/bin:/bin"}
    found = subprocess.run(
        [sys.executable, "-c", _FIELDS], env=environment, check=True, stdout=subprocess.PIPE
    )
    official = json.loads(found.stdout)
    messages = list(pb.DESCRIPTOR.message_types_by_name.values())
    messages += [nested for message in messages for nested in message.nested_types]
    for message in messages:
        for field in message.fields:
            assert [field.number, field.type] == official[message.full_name.removeprefix("jaxrank.")][
                field.name
            ]


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def _infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    call = channel.unary_unary(
        f"/{INFERENCE_SERVICE}/ModelInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelInferResponse.FromString,
    )
    return call(request, timeout=30)


def _typed(**changes: object) -> pb.ModelInferRequest:
    """A request with typed contents."""
    request = pb.ModelInferRequest(model_name="regressor")
    for name, datatype, shape, field, values in (
        ("user_age", "FP32", [1], "fp32_contents", [33.0]),
        ("item_id", "INT32", [3], "int_contents", [1, 2, 3]),
        ("item_price", "FP32", [3, 2], "fp32_contents", [1, 2, 0.5, -1, 2.5, 3.5]),
        ("item_color", "BYTES", [3], "bytes_contents", [b"red", b"\xff", b""]),
    ):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        getattr(tensor.contents, field).extend(values)
    for key, value in changes.items():
        setattr(request, key, value)
    return request


def test_typed_contents(channel: grpc.Channel, server: Server) -> None:
    client = PredictClient(server.address)
    response = _infer(channel, _typed(model_version="1", id="x"))
    (output,) = response.outputs
    found = from_raw("outputs", output.datatype, output.shape, response.raw_output_contents[0])
    np.testing.assert_array_equal(found, client.predict("regressor", FEATURES)["outputs"])
    assert (response.model_name, response.model_version, response.id) == ("regressor", "1", "x")
    client.close()


def _change(edit: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    request = _typed()
    edit(request)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (_typed(model_name=""), "INVALID_ARGUMENT", "name the model"),
        (_typed(model_name="no"), "NOT_FOUND", "no model 'no'"),
        (_typed(model_version="9"), "NOT_FOUND", "no version 9"),
        (_typed(model_version="x"), "INVALID_ARGUMENT", "version label: x"),
        (_change(lambda r: r.inputs.pop()), "INVALID_ARGUMENT", "missing features: 'item_color'"),
        (
            _change(lambda r: r.inputs.append(r.inputs[0])),
            "INVALID_ARGUMENT",
            "'user_age' is given more than",
        ),
        (_change(lambda r: r.inputs[0].shape.append(2)), "INVALID_ARGUMENT", r"1 values.*\[1, 2\] needs 2"),
        (_change(lambda r: r.inputs[0].shape.append(-2)), "INVALID_ARGUMENT", "has shape"),
        (_change(lambda r: r.inputs[0].shape.extend([2**40, 0])), "INVALID_ARGUMENT", "has shape"),
        # The product of these would take a minute, in which nobody else had Python's lock.
        (_change(lambda r: r.inputs[0].shape.extend([2**63 - 1] * 100_000)), "INVALID_ARGUMENT", "has shape"),
        (_change(lambda r: setattr(r.inputs[0], "datatype", "FP8")), "INVALID_ARGUMENT", "datatype 'FP8'"),
        (
            _change(lambda r: setattr(r.inputs[0], "datatype", "FP16")),
            "INVALID_ARGUMENT",
            "raw_input_contents",
        ),
        (
            _change(lambda r: r.raw_input_contents.append(b"")),
            "INVALID_ARGUMENT",
            "1 raw_input_contents for 4",
        ),
        (_change(lambda r: r.raw_input_contents.extend([b""] * 4)), "INVALID_ARGUMENT", "one of them"),
        (_change(lambda r: r.outputs.add(name="no")), "INVALID_ARGUMENT", "output 'no'"),
        (_change(lambda r: r.parameters["sequence_id"].SetInParent()), "UNIMPLEMENTED", "sequence"),
        (
            _change(lambda r: r.inputs[0].parameters["shared_memory_region"].SetInParent()),
            "UNIMPLEMENTED",
            "shared_memory_region",
        ),
    ],
)
def test_refused(channel: grpc.Channel, request_: pb.ModelInferRequest, code: str, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _infer(channel, request_)
    assert caught.value.code().name == code


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v2/models/regressor/infer", "{", 400, "JSON Parse error"),
        ("POST", "/v2/models/regressor/infer", '{"inputs": 5}', 400, "'inputs' is 5"),
        ("POST", "/v2/models/regressor/infer", '{"inputs": [{"name": "x"}]}', 400, "'datatype' is null"),
        (
            "POST",
            "/v2/models/regressor/infer",
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}]}',
            400,
            "1 values",
        ),
        (
            "POST",
            "/v2/models/regressor/infer",
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": '
            '{"binary_data_size": 4}}]}',
            400,
            "0 bytes are left",
        ),
        ("POST", "/v2/models/regressor/infer", '{"id": 5, "inputs": []}', 400, "'id' is 5"),
        ("POST", "/v2/models/regressor/infer", '{"id": "\\ud800", "inputs": []}', 400, "'id' is"),
        ("POST", "/v2/models/no/infer", '{"inputs": []}', 404, "no model 'no'"),
        ("GET", "/v2/models/no", "", 404, "no model 'no'"),
        ("POST", "/v2/repository/models/no/load", "", 404, "no model 'no'"),
        ("POST", "/v2/repository/models/regressor/load", '{"parameters": {"config": "{}"}}', 501, "config"),
        ("GET", "/v2/models/regressor/infer", "", 404, "Not Found"),
        ("DELETE", "/v2", "", 404, "Not Found"),
    ],
)
def test_refused_over_http(
    server: Server, method: str, path: str, body: str, status: int, words: str
) -> None:
    command = ["curl", "-s", "--max-time", "60", "-w", "\n%{http_code}", "-X", method, "-d", body]
    done = subprocess.run([*command, f"http://{server.rest_address}{path}"], capture_output=True, check=True)
    text, _, found = done.stdout.decode().rpartition("\n")
    assert int(found) == status, text
    assert words in json.loads(text)["error"]


def test_health_over_http(server: Server, tmp_path: Path, start_server: Callable) -> None:
    (tmp_path / "none").mkdir()
    empty = start_server(tmp_path / "none", rest_port=0)
    for address, path, status in (
        (server.rest_address, "/v2/health/live", "200"),
        (server.rest_address, "/v2/health/ready", "200"),
        (empty.rest_address, "/v2/health/live", "200"),
        (empty.rest_address, "/v2/health/ready", "503"),
        (server.rest_address, "/v2/models/regressor/ready", "200"),
        (server.rest_address, "/v2/models/no/ready", "503"),
    ):
        curl = [
            "curl",
            "-s",
            "--max-time",
            "60",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"http://{address}{path}",
        ]
        assert subprocess.run(curl, capture_output=True, text=True).stdout == status, path


def test_a_model_that_stays_unloaded(example_models: Path, start_server: Callable, tmp_path: Path) -> None:
    """Looking for new versions does not bring it back."""
    shutil.copytree(example_models / "models" / "half_plus_three", tmp_path / "m")
    server = start_server(tmp_path)
    server.repository.unload("m")
    server.repository.scan()
    assert server.repository.loaded() == {}
    server.repository.load("m")
    assert server.repository.loaded() == {"m": 1}


@pytest.mark.parametrize("seed", range(3))
def test_raw_contents_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for datatype, dtype in (("FP16", "f2"), ("FP64", "f8"), ("INT8", "i1"), ("UINT64", "u8"), ("BOOL", "?")):
        value = rng.integers(0, 2, (3, 2)).astype(dtype)
        np.testing.assert_array_equal(from_raw("x", datatype, (3, 2), to_raw(value)), value)
    texts = np.array([rng.bytes(int(n)) for n in rng.integers(0, 9, 6)], object)
    assert from_raw("x", "BYTES", (6,), to_raw(texts)).tolist() == texts.tolist()


def test_statistics_count_what_went_through_a_phase(server: Server) -> None:
    """A refused request that was decoded has time in that phase, and so a count."""
    counts = RequestCounts()
    for reason in ("", "deadline"):
        timeline = Timeline("GRPC", "Predict", model="regressor", version=1, began=10.0, decode=(10.0, 10.5))
        timeline.ended = 11.0
        if reason:
            timeline.refused(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        counts.observe(timeline)
    (stats,) = KServe(DataPlane(server.repository, counts=counts)).statistics("regressor", "1")
    found = stats["inference_stats"]
    assert found["success"] == found["fail"] == {"count": 1, "ns": 1_000_000_000}
    assert found["compute_input"] == {"count": 2, "ns": 1_000_000_000}


def test_statistics_of_a_version_need_its_model(server: Server) -> None:
    kserve = KServe(DataPlane(server.repository))
    with pytest.raises(InvalidRequestError, match="version 1 is of no model"):
        kserve.statistics("", "1")
    assert {(s["name"], s["version"]) for s in kserve.statistics("", "")} == {
        (name, "1") for name in server.repository.loaded()
    }
