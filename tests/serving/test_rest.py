"""TensorFlow Serving's REST API with curl: its documented examples, and every kind of bad request."""

import base64
import gzip
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import tensorflow as tf

from serving.data_plane import DataPlane
from serving.grpc_server import Server, ServerOptions
from serving.message_bytes import MessageBytes
from serving.model_config import ModelConfig
from serving.monitoring.ended import Ended
from serving.protocols.rest_tensorflow import TensorFlowRest
from serving.rest_server import RestOptions, RestServer
from serving.workers import Workers


@pytest.fixture(scope="module")
def server(example_models: Path, start_server: Callable) -> Server:
    configs = [
        ModelConfig(name, example_models / "models" / name, labels={"stable": 1})
        for name in ("classifier", "regressor", "half_plus_three")
    ]
    return start_server(configs, rest_port=0, max_message_mib=1, cors=True)


def _curl(server: Server, path: str, body: object = None, *options: str) -> tuple[int, str]:
    """Status and body; `body` None is a GET."""
    command = ["curl", "-s", "-w", "\n%{http_code}", "--max-time", "30", *options]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    if body is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(
        [*command, f"http://{server.rest_address}{path}"],
        input=data if body is not None else None,
        capture_output=True,
        check=True,
    )
    text, _, status = done.stdout.decode().rpartition("\n")
    return int(status), text


def _json(server: Server, path: str, body: object = None, *options: str) -> object:
    status, text = _curl(server, path, body, *options)
    assert status == 200, text
    return json.loads(text)


MODEL = "/v1/models/half_plus_three"


def test_the_documented_examples(server: Server) -> None:
    """https://www.tensorflow.org/tfx/serving/api_rest, "Example"."""
    assert _json(server, MODEL) == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert _curl(server, MODEL + ":predict", b'{"instances": [1.0,2.0,5.0]}') == (
        200,
        '{"predictions":[3.5,4.0,5.5]}',
    )
    assert _json(server, MODEL + ":regress", {"examples": [{"x": 1.0}, {"x": 2.0}]}) == {
        "results": [3.5, 4.0]
    }


def test_requests_that_never_pause_do_not_hold_the_end(example_models: Path) -> None:
    """Four clients, each on a connection that it keeps: every answer is the last of its connection, and a new
    one is refused."""
    config = ModelConfig("half_plus_three", example_models / "models" / "half_plus_three")
    server = Server(ServerOptions(models=[config], host="127.0.0.1", port=0, rest_port=0, grace_seconds=60))
    assert server.rest_address is not None
    address, answers, body = server.rest_address, SimpleQueue[bytes](), b'{"instances": [1.0]}'

    def ask() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        with suppress(OSError):
            while True:
                connection.request("POST", MODEL + ":predict", body)
                answers.put(connection.getresponse().read())

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        for _ in range(20):
            answers.get(timeout=30)
        began = time.monotonic()
        assert server.stop() and time.monotonic() - began < 30
        for client in asking:
            client.result(timeout=30)
    assert {answers.get() for _ in range(answers.qsize())} == {b'{"predictions":[3.5]}'}


@pytest.mark.parametrize("which", ["/versions/1", "/labels/stable", ""])
def test_versions_and_labels(server: Server, which: str) -> None:
    assert _json(server, f"{MODEL}{which}:predict", {"inputs": [1.0]}) == {"outputs": [3.5]}
    status = _json(server, f"{MODEL}{which}")
    assert status["model_version_status"][0]["version"] == "1"  # type: ignore[index]
    metadata = _json(server, f"{MODEL}{which}/metadata")
    assert metadata["model_spec"] == {  # type: ignore[index]
        "name": "half_plus_three",
        "signature_name": "",
        "version": "1",
    }
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]  # type: ignore[index]
    assert signature["method_name"] == "tensorflow/serving/predict"
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    for info in (signature["inputs"]["x"], signature["outputs"]["outputs"]):
        assert info == {"name": info["name"], "dtype": "DT_FLOAT", "tensor_shape": shape}


def test_many_inputs_in_columns(server: Server, example_models: Path) -> None:
    """1e-5: values up to 10, sums of float32 in another order."""
    features = {
        "user_age": [33.0],
        "item_id": [1, 2, 3],
        "item_price": [[1, 0.25], [0.5, -1.0], [2.5, 3.5]],
        "item_color": ["red", {"b64": base64.b64encode(b"\xff").decode()}, ""],
    }
    found = _json(server, "/v1/models/regressor:predict", {"inputs": features})
    loaded = tf.saved_model.load(str(example_models / "regressor"))
    colors = tf.constant([b"red", b"\xff", b""])
    expected = loaded.signatures["serving_default"](
        user_age=tf.constant([33.0]),
        item_id=tf.constant([1, 2, 3]),
        item_price=tf.constant(features["item_price"], tf.float32),
        item_color=colors,
    )
    np.testing.assert_allclose(found["outputs"], expected["outputs"], rtol=0, atol=1e-5)  # type: ignore[index]
    context = {"user_age": 33.0}
    examples = [
        {name: features[name][i] for name in ("item_id", "item_color")}
        | {"item_price": [float(v) for v in features["item_price"][i]]}
        for i in range(3)
    ]
    regressed = _json(server, "/v1/models/regressor:regress", {"context": context, "examples": examples})
    assert regressed == {"results": found["outputs"]}  # type: ignore[index]


def test_classify_and_rows_of_named_outputs(server: Server, example_models: Path) -> None:
    """Predict with serialized examples in base64, Classify with JSON ones."""
    examples = [{"price": [1.5, 0.5], "id": 3}, {"price": [-1.5, 2.5], "id": 4}]
    serialized = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "price": tf.train.Feature(float_list=tf.train.FloatList(value=e["price"])),
                    "id": tf.train.Feature(int64_list=tf.train.Int64List(value=[e["id"]])),
                }
            )
        ).SerializeToString()
        for e in examples
    ]
    instances = [{"b64": base64.b64encode(s).decode()} for s in serialized]
    by_row = _json(server, "/v1/models/classifier:predict", {"instances": instances})["predictions"]  # type: ignore[index]
    named = [{"inputs": i} for i in instances]
    assert _json(server, "/v1/models/classifier:predict", {"instances": named}) == {"predictions": by_row}
    loaded = tf.saved_model.load(str(example_models / "classifier"))
    expected = loaded.signatures["serving_default"](tf.constant(serialized))
    # 1e-6: a softmax of sums of three float32 numbers, in another order.
    np.testing.assert_allclose([r["scores"] for r in by_row], expected["scores"], rtol=0, atol=1e-6)
    assert by_row[0]["classes"] == ["no", "maybe", "ja ✓"]
    results = _json(server, "/v1/models/classifier:classify", {"examples": examples})["results"]  # type: ignore[index]
    assert results == [[list(p) for p in zip(r["classes"], r["scores"], strict=True)] for r in by_row]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (":predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (":predict", {"instances": [1], "inputs": [1]}, 400, "only one of"),
        (":predict", {"instances": []}, 400, "No values in 'instances'"),
        (":predict", {"instances": 5}, 400, "to be a list"),
        (":predict", {"instances": ["a"]}, 400, "not of expected type: float32"),
        (":predict", {"instances": [1.0], "signature_name": 5}, 400, "must be a string value"),
        (":predict", {"instances": [1.0], "signature_name": "no"}, 400, "no signature 'no'"),
        (":predict", {"instances": [{"y": 1.0}]}, 400, "keys must be equal to: x"),
        (":predict", {"instances": [{"\ud800": 1.0}]}, 400, "keys must be equal to: x"),
        (":predict", {"instances": [{"x": 1.0}, 2.0]}, 400, "at item 1 of input list"),
        (":predict", {"inputs": {"y": [1.0]}}, 400, "Missing named input: x"),
        (":predict", {"instances": [[1.0, 2.0]]}, 400, "'x' has 2 dimensions"),
        (":predict", {"instances": [1.0] * 6000}, 400, "at most 5000"),
        (":predict", b"{", 400, "JSON Parse error"),
        (":predict", b'{"instances":' + b"[" * 100_000, 400, "nested too deeply"),
        (":predict", b" " * (2 << 20), 413, "larger than 1 MiB"),
        (":classify", {"examples": [{"x": 1.0}]}, 400, "Expected classification signature outputs"),
        (":regress", {"examples": []}, 400, "'examples' must be a list"),
        (":regress", {"examples": [{"x": 1}]}, 400, "is a int64_list, expected float32"),
        (":regress", {"examples": [{"x": [1, 1.5]}]}, 400, "types float and int64"),
        (":regress", {"examples": [{"x": 1e39}]}, 400, "1e+39 to float without loss"),
        (":regress", {"examples": [5]}, 400, "Example must be JSON object"),
        ("/versions/7:predict", {"instances": [1.0]}, 404, "no version 7"),
        ("/versions/99999999999999999999:predict", {"instances": [1.0]}, 400, "Failed to convert version"),
        ("/labels/x:predict", {"instances": [1.0]}, 400, "Unrecognized servable version label: x"),
        ("x:predict", {"instances": [1.0]}, 404, "no model 'half_plus_threex'"),
        (":explain", {"instances": [1.0]}, 400, "Malformed request: POST"),
        (":predict", None, 400, "Malformed request: GET"),
        ("/versions/7", None, 404, "Could not find version 7 of model half_plus_three"),
    ],
)
def test_bad_requests(server: Server, path: str, body: object, status: int, words: str) -> None:
    """The status of TensorFlow Serving's table, and the reason as `{"error": ...}`."""
    found, text = _curl(server, MODEL + path, body)
    assert found == status, text
    document = json.loads(text)
    assert document.keys() == {"error"} and words in document["error"]


def test_paths_of_nobody(server: Server) -> None:
    assert _curl(server, "/nobody")[0] == 404
    assert _curl(server, "/v1/models") == (400, '{"error":"Missing model name in request."}')


def test_compression_both_ways(server: Server) -> None:
    """A body is bounded after decompression."""
    body = gzip.compress(json.dumps({"instances": [1.0] * 2000}).encode())
    found = _json(server, MODEL + ":predict", body, "-H", "Content-Encoding: gzip", "--compressed")
    assert found == {"predictions": [3.5] * 2000}
    headers = _curl(server, MODEL + ":predict", {"instances": [1.0] * 2000}, "-i", "--compressed", "-o-")[1]
    assert "content-encoding: gzip" in headers.lower()
    bomb = gzip.compress(b" " * (64 << 20))
    assert _curl(server, MODEL + ":predict", bomb, "-H", "Content-Encoding: gzip")[0] == 413
    assert _curl(server, MODEL + ":predict", b"no gzip", "-H", "Content-Encoding: gzip")[0] == 400


def test_one_connection_serves_many_requests(server: Server) -> None:
    url = f"http://{server.rest_address}{MODEL}"
    done = subprocess.run(
        ["curl", "-sv", "--max-time", "60", url, url, url], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("Re-using existing") + done.stderr.count("Re-using existing connection") >= 2


def test_cross_origin_requests(server: Server) -> None:
    text = _curl(server, MODEL + ":predict", None, "-i", "-X", "OPTIONS", "-H", "Origin: http://a.example")[1]
    assert "Access-Control-Allow-Origin: *" in text


def test_a_slow_client_is_cut_off(example_models: Path, server: Server) -> None:
    """Headers that do not come, and a body that does not."""
    options = RestOptions(
        host="127.0.0.1", port=0, timeout_seconds=0.5, header_seconds=0.5, max_connections=2
    )
    routes = [TensorFlowRest(DataPlane(server.repository)).routes]
    rest = RestServer(options, routes, Workers(1), Ended(), MessageBytes(1 << 20))
    with (
        socket.create_connection(("127.0.0.1", rest.port)) as headers,
        socket.create_connection(("127.0.0.1", rest.port)) as body,
    ):
        began = time.monotonic()
        headers.sendall(b"GET / HTTP/1.1\r\nHost: ")
        body.sendall(
            b"POST " + MODEL.encode() + b":predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        body.settimeout(10)
        headers.settimeout(10)
        with socket.create_connection(("127.0.0.1", rest.port)) as third:  # one more than are taken
            assert _ended(third)
        assert b"504" in body.recv(4096)
        assert _ended(headers)
        assert time.monotonic() - began < 5
    rest.stop(1)


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n"], ids=["later", "behind the first one"])
def test_headers_of_a_later_request_have_as_long_as_those_of_the_first(first: bytes) -> None:
    """A connection may rest for longer than its headers may take; once they begin they must come."""
    options = RestOptions(host="127.0.0.1", port=0, header_seconds=0.3, idle_seconds=2.0)
    rest = RestServer(options, [], Workers(1), Ended(), MessageBytes(1 << 20))
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", rest.port), timeout=20) as slow:
        slow.sendall(request + first)
        assert b"404" in slow.recv(4096)
        if not first:
            time.sleep(0.5)
            slow.sendall(request)
            assert b"404" in slow.recv(4096)
        began = time.monotonic()
        slow.settimeout(0.05)
        for byte in b"GET / HTTP/1.1\r\n"[len(first) :] + b"X: " + b"x" * 100:
            try:
                slow.sendall(bytes([byte]))
                assert slow.recv(10) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert time.monotonic() - began < 1.7
    with socket.create_connection(("127.0.0.1", rest.port), timeout=20) as silent:
        silent.sendall(request)
        assert b"404" in silent.recv(4096)
        began = time.monotonic()
        assert _ended(silent)
        assert 1.8 < time.monotonic() - began < 10
    rest.stop(1)


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True
