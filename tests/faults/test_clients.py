"""Clients that are slow, that are too many, and that ask for names which would be paths."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import grpc
import numpy as np
import pytest

from serving.protocols.kserve_tensors import datatype_of, to_raw
from serving.validation import MAX_STRING_BYTES
from serving.wire import kserve_pb2, model_service_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE
from tests.faults.requests import COLUMNS, FEATURES
from tests.faults.server import ServerProcess, eventually, serve

FILES = 100


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ServerProcess]:
    """It may open few files."""
    with serve(models_dir, "--threads", "2", before=["prlimit", f"--nofile={FILES}"]) as running:
        yield running


def _healthy(server: ServerProcess) -> None:
    client = server.client()
    assert len(client.predict("ranker", FEATURES, timeout=60)["click"]) == 6
    client.close()
    connection = http.client.HTTPConnection(*server.rest, timeout=60)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()


def test_slow_clients(server: ServerProcess) -> None:
    """Connections that say nothing, a preface, half of a header, or half of a body, on both ports."""
    _healthy(server)
    before = server.open_files()
    beginnings = (
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n{",
    )
    with ExitStack() as stack:
        for beginning in beginnings * 4:
            for port in (server.grpc, server.rest):
                raw = stack.enter_context(socket.create_connection(port, timeout=20))
                raw.sendall(beginning)
        _healthy(server)
        for _ in range(3):
            _healthy(server)
    eventually(lambda: server.open_files() <= before + 4)


def test_more_connections_than_files(server: ServerProcess) -> None:
    """A client that is connected goes on; when the others leave, new ones come in."""
    client = server.client()
    expected = client.predict("ranker", FEATURES)["click"]
    with ExitStack() as stack:
        for _ in range(FILES):
            for port in (server.grpc, server.rest):
                stack.enter_context(socket.create_connection(port, timeout=20))
        eventually(lambda: server.open_files() >= FILES - 2)
        for _ in range(20):
            assert np.array_equal(client.predict("ranker", FEATURES, timeout=30)["click"], expected)
    client.close()
    eventually(lambda: _answers(server))
    assert server.alive() and len(server.log) < 500


def _answers(server: ServerProcess) -> bool:
    try:
        _healthy(server)
    except (grpc.RpcError, OSError, http.client.HTTPException):
        return False
    return True


def test_a_string_that_is_too_long(server: ServerProcess) -> None:
    """In every protocol, with the feature and the limit; the longest one that is taken is."""
    client = server.client()
    user = {name: value for name, value in FEATURES.items() if len(value) == 1}
    infer = kserve_pb2.ModelInferRequest(model_name="ranker")
    for name, value in FEATURES.items():
        infer.inputs.add(name=name, datatype=datatype_of(value), shape=value.shape)

    def ask_kserve(features: dict) -> None:
        del infer.raw_input_contents[:]
        infer.raw_input_contents.extend(map(to_raw, features.values()))
        client.channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer")(infer.SerializeToString(), timeout=30)

    longest, longer = (np.array([b"x" * (MAX_STRING_BYTES + n)], object) for n in (0, 1))
    asks = (
        lambda city: client.predict("ranker", FEATURES | city, timeout=30),
        lambda city: ask_kserve(FEATURES | city),
        lambda city: client.prepare("ranker", user | city, timeout=30),
    )
    for ask in asks:
        ask({"user_city": longest})
        with pytest.raises(grpc.RpcError, match="'user_city' has a string of 1048577 bytes; at most 1048576"):
            ask({"user_city": longer})
    for length, status in ((MAX_STRING_BYTES, 200), (MAX_STRING_BYTES + 1, 400)):
        connection = http.client.HTTPConnection(*server.rest, timeout=30)
        body = json.dumps({"inputs": COLUMNS | {"user_city": ["x" * length]}})
        connection.request("POST", "/v1/models/ranker:predict", body)
        answer = connection.getresponse()
        assert answer.status == status and (b"string of 1048577" in answer.read()) == (status == 400)
        connection.close()
    client.close()


NAMES = (
    "..",
    ".",
    "../ranker",
    "ranker/3",
    "/etc/passwd",
    "ranker/../ranker",
    "..\\ranker",
    "ranker\0",
    "~",
    "%2e%2e",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_path(server: ServerProcess, name: str) -> None:
    """The ranker is below the directory of models, and none of these is it, in any protocol."""
    spec = pb.ModelSpec(name=name)
    calls = {
        f"{PREDICTION_SERVICE}/Predict": pb.PredictRequest(model_spec=spec),
        f"{PREDICTION_SERVICE}/GetModelMetadata": pb.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        ),
        f"{MODEL_SERVICE}/GetModelStatus": model_service_pb2.GetModelStatusRequest(model_spec=spec),
        f"{INFERENCE_SERVICE}/ModelInfer": kserve_pb2.ModelInferRequest(model_name=name),
        f"{INFERENCE_SERVICE}/RepositoryModelLoad": kserve_pb2.RepositoryModelLoadRequest(model_name=name),
        f"{INFERENCE_SERVICE}/RepositoryModelUnload": kserve_pb2.RepositoryModelUnloadRequest(
            model_name=name
        ),
    }
    with grpc.insecure_channel(server.address) as channel:
        for method, request in calls.items():
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{method}")(request.SerializeToString(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND, method
    paths = ("/v1/models/{}:predict", "/v2/models/{}/infer", "/v2/repository/models/{}/load")
    for path in paths:
        for spelled in {quote(name, safe=""), quote(name)}:
            connection = http.client.HTTPConnection(*server.rest, timeout=30)
            connection.request("POST", path.format(spelled), '{"inputs": []}')
            assert connection.getresponse().status in (400, 404), path.format(spelled)
            connection.close()
    assert not [line for line in server.log if re.search("Traceback|request failed", line)]
