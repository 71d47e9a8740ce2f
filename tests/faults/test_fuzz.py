"""Hostile requests over the wire to a real server: whatever comes, it answers with a refusal of its own, goes
on giving right scores, and keeps no memory.

`JAXRANK_FUZZED_RPCS` is how many are sent, `JAXRANK_FAULTS_RESULTS` the file of figures to write, if any;
`make faults` sends 50,000.
"""

import http.client
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.results import Figure, write_results
from serving.wire import inference_pb2, kserve_pb2, model_service_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode, encode_content
from serving.wire.example_pb2 import Example
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE
from tests import models
from tests.faults.mutations import MUTATIONS, Mutation, bytes_mutated, json_mutated, mutated
from tests.faults.server import ServerProcess, serve

RPCS = int(os.environ.get("JAXRANK_FUZZED_RPCS", "600"))
RESULTS = os.environ.get("JAXRANK_FAULTS_RESULTS")
GROWTH_MIB = 64
"""Of resident memory after the first requests: caches and arenas of threads."""

Code = grpc.StatusCode
REFUSALS = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION,
    Code.NOT_FOUND,
    Code.UNIMPLEMENTED,
    Code.RESOURCE_EXHAUSTED,
}
HTTP_REFUSALS = {200, 400, 404, 405, 411, 413, 429, 501}
FEATURES = models.ranker_request(6, 3)


def _predict() -> pb.PredictRequest:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="ranker"), output_filter=["click"])
    for i, (name, value) in enumerate(FEATURES.items()):
        request.inputs[name].CopyFrom((encode if i % 2 else encode_content)(value))
    return request


def _examples(kind: type) -> inference_pb2.ClassificationRequest:
    request = kind(model_spec=pb.ModelSpec(name="ranker"))
    for row in range(3):
        example = Example()
        for name, value in FEATURES.items():
            one = np.atleast_1d(value[row if len(value) > 1 else 0]).tolist()
            feature = example.features.feature.add(key=name.encode()).value
            if value.dtype == object:
                feature.bytes_list.value.extend(one)
            elif value.dtype.kind == "f":
                feature.float_list.value.extend(one)
            else:
                feature.int64_list.value.extend(one)
        request.input.example_list.examples.append(example.SerializeToString())
    return request


def _infer() -> kserve_pb2.ModelInferRequest:
    request = kserve_pb2.ModelInferRequest(model_name="ranker", id="7")
    kinds = {"O": "BYTES", "float32": "FP32", "int64": "INT64", "int32": "INT32"}
    fields = {"BYTES": "bytes", "FP32": "fp32", "INT64": "int64", "INT32": "int"}
    for name, value in FEATURES.items():
        datatype = kinds["O" if value.dtype == object else str(value.dtype)]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        getattr(tensor.contents, f"{fields[datatype]}_contents").extend(value.ravel().tolist())
    return request


CALLS = (
    (f"{PREDICTION_SERVICE}/Predict", _predict()),
    (f"{PREDICTION_SERVICE}/Predict", _predict()),
    (f"{PREDICTION_SERVICE}/Classify", _examples(inference_pb2.ClassificationRequest)),
    (f"{PREDICTION_SERVICE}/Regress", _examples(inference_pb2.RegressionRequest)),
    (
        f"{PREDICTION_SERVICE}/GetModelMetadata",
        pb.GetModelMetadataRequest(model_spec=pb.ModelSpec(name="ranker"), metadata_field=["signature_def"]),
    ),
    (
        f"{MODEL_SERVICE}/GetModelStatus",
        model_service_pb2.GetModelStatusRequest(model_spec=pb.ModelSpec(name="ranker")),
    ),
    (f"{INFERENCE_SERVICE}/ModelInfer", _infer()),
    (f"{INFERENCE_SERVICE}/ModelMetadata", kserve_pb2.ModelMetadataRequest(name="ranker", version="3")),
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
DOCUMENTS = (
    ("/v1/models/ranker:predict", {"inputs": COLUMNS}),
    ("/v1/models/ranker:predict", {"signature_name": "serving_default", "instances": [COLUMNS]}),
    ("/v1/models/ranker/versions/3:classify", {"examples": [{"user_age": 1.5, "item_id": 7}], "context": {}}),
    ("/v2/models/ranker/infer", {"id": "1", "inputs": TENSORS, "outputs": [{"name": "click"}]}),
    ("/v2/repository/index", {"ready": True}),
)
# A client's preface, an empty SETTINGS frame, and the HEADERS of nothing: https://www.rfc-editor.org/rfc/rfc9113.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\5\0\0\0\1\x82" + b"\0" * 40
HTTP1 = (
    b"POST /v1/models/ranker:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n"
    b'Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"in\r\n0\r\n\r\n'
)


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ServerProcess]:
    with serve(models_dir) as running:
        yield running


def _fuzz(share: float, strategy: st.SearchStrategy, send: Callable) -> None:
    @settings(
        max_examples=max(10, int(RPCS * share)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: tuple) -> None:
        send(*drawn)

    run()


def test_hostile_requests(server: ServerProcess) -> None:
    """Mutated gRPC and HTTP requests, bytes on both sockets, between requests whose scores are checked."""
    client = server.client()
    expected = client.predict("ranker", FEATURES)
    statuses: Counter = Counter()
    sent = 0

    def healthy() -> None:
        nonlocal sent
        sent += 1
        if sent % 25 == 0:
            found = client.predict("ranker", FEATURES, timeout=60)
            assert all(np.array_equal(found[name], value) for name, value in expected.items())

    def rpc(call: tuple, mutations: list[Mutation]) -> None:
        method, message = call
        try:
            client.channel.unary_unary(f"/{method}")(mutated(message, mutations), timeout=60)
            code = Code.OK
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
        statuses[code] += 1
        assert code in REFUSALS
        healthy()

    connection = http.client.HTTPConnection(*server.rest, timeout=60)

    def post(call: tuple, mutations: list[Mutation]) -> None:
        path, document = call
        connection.request("POST", path, json_mutated(document, mutations))
        answer = connection.getresponse()
        answer.read()
        statuses[answer.status] += 1
        assert answer.status in HTTP_REFUSALS
        healthy()

    def noise(port: str, start: bytes, mutations: list[Mutation], data: bytes) -> None:
        with socket.create_connection(getattr(server, port), timeout=0.02) as raw:
            try:
                raw.sendall(bytes_mutated(start, mutations) + data)
                while raw.recv(4096):
                    pass
            except OSError:
                pass  # it waits for more, or closed the connection
        healthy()

    def start() -> None:
        _fuzz(0.02, st.tuples(st.sampled_from(CALLS), MUTATIONS), rpc)
        _fuzz(0.02, st.tuples(st.sampled_from(DOCUMENTS), MUTATIONS), post)

    try:
        start()  # what every thread and buffer takes once
        before = server.rss_mib(), server.open_files()
        _fuzz(0.6, st.tuples(st.sampled_from(CALLS), MUTATIONS), rpc)
        connection.close()  # the server closes it when it is idle; the next request opens it again
        _fuzz(0.28, st.tuples(st.sampled_from(DOCUMENTS), MUTATIONS), post)
        raw = st.tuples(
            st.sampled_from(["grpc", "rest"]), st.sampled_from([HTTP2, HTTP1, b""]), MUTATIONS, st.binary()
        )
        _fuzz(0.08, raw, noise)
    finally:
        if RESULTS:
            _write_figures(Path(RESULTS), sent, server)
    assert server.alive() and not server.faults()
    assert statuses[Code.OK] and statuses[Code.INVALID_ARGUMENT] and statuses[200] and statuses[400]
    assert server.rss_mib() - before[0] < GROWTH_MIB
    assert server.open_files() - before[1] < 50
    client.close()
    connection.close()
    print(f"{sent} requests: {dict(statuses)}; {server.rss_mib() - before[0]:.1f} MiB more")


def _write_figures(path: Path, sent: int, server: ServerProcess) -> None:
    crashes, faults = int(not server.alive()), len(server.faults())
    figures = [
        Figure(name="fuzzed_rpcs", value=sent, unit="requests", note="gRPC, HTTP and bytes on both sockets"),
        Figure(name="crashes", value=crashes, unit="crashes", note=f"{faults} faults of ours in the log"),
    ]
    write_results(path, "faults", "make faults", figures)
