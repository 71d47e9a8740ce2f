"""Memory of messages is bounded, whatever their number: real clients whose messages do not fit together."""

import gc
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.grpc_server import Server, StartError
from serving.model_config import ModelConfig
from serving.scheduling import ANY_TIME, PRIORITY
from serving.wire import predict_pb2, ranking_pb2
from serving.wire.codec import encode_content
from serving.wire.reflection import PREDICTION_SERVICE, RANKING_SERVICE
from tests.serving.lifecycle.versions import eventually
from tests.serving.scraping import get, scraped, value

MIB = 1 << 20
LARGE = 5 * MIB
"""Two of them are more than the server holds."""
MODEL = "half_plus_three"
PREDICT, SLICES = f"/{PREDICTION_SERVICE}/Predict", f"/{RANKING_SERVICE}/RankSlices"


@pytest.fixture(scope="module")
def models(example_models: Path) -> tuple[ModelConfig, ...]:
    return (ModelConfig(MODEL, example_models / "models" / MODEL),)


@pytest.fixture(scope="module")
def server(models: tuple, start_server: Callable) -> Server:
    return start_server(models, workers=2, rest_port=0, max_message_mib=8, max_in_flight_mib=8)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel
    eventually(lambda: _held(server) == 0)


def _held(server: Server) -> float:
    return value(scraped(server), "jaxrank_message_bytes")


def _refused(server: Server) -> float:
    labels = {"model": "", "version": "0", "reason": "message_bytes"}
    return value(scraped(server), "jaxrank_refusals_total", **labels)


def _padded(message: bytes, size: int) -> bytes:
    """With a field that no reader knows: number 99, a string of so many bytes (2**21 and more)."""
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    return message + b"\x9a\x06" + length + bytes(size)


def _predict(size: int = 0) -> bytes:
    request = predict_pb2.PredictRequest(model_spec=predict_pb2.ModelSpec(name=MODEL))
    request.inputs["x"].CopyFrom(encode_content(np.ones(1, np.float32)))
    return _padded(request.SerializeToString(), size) if size else request.SerializeToString()


def _score(answer: bytes) -> float:
    (output,) = predict_pb2.PredictResponse.FromString(answer).outputs.values()
    return output.float_val[0]


def test_what_does_not_fit_is_refused_at_once(server: Server, channel: grpc.Channel) -> None:
    """Every turn is held, so the first request waits with its message; a small one waits beside it."""
    call, before = channel.unary_unary(PREDICT), _refused(server)
    with ExitStack() as turns:
        for _ in range(2):
            turns.enter_context(server._turns.turn(ANY_TIME))
        waits = call.future(_predict(LARGE), timeout=60)
        eventually(lambda: _held(server) >= LARGE)
        with pytest.raises(grpc.RpcError, match="more do not fit .--max-in-flight-mib") as refused:
            call(_predict(LARGE), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status, text = get(server, f"/v1/models/{MODEL}:predict", {"instances": [1.0], "no": "x" * LARGE})
        assert status == 429 and "--max-in-flight-mib" in json.loads(text)["error"]
        eventually(lambda: _refused(server) == before + 2)
        small = call.future(_predict(), timeout=60)
    assert _score(waits.result()) == _score(small.result()) == 3.5
    eventually(lambda: _held(server) == 0)
    assert _score(call(_predict(LARGE), timeout=60)) == 3.5
    body = b" " * LARGE + json.dumps({"instances": [1.0]}).encode()
    asked = urllib.request.Request(f"http://{server.rest_address}/v1/models/{MODEL}:predict", body)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert json.load(answer) == {"predictions": [3.5]}


def test_the_first_slice_counts_until_its_stream_ends(server: Server, channel: grpc.Channel) -> None:
    slices = SimpleQueue[bytes | None]()
    first = ranking_pb2.RankRequest(model_spec=predict_pb2.ModelSpec(name=MODEL))
    first.candidates["x"].CopyFrom(encode_content(np.ones(1, np.float32)))
    next_one = ranking_pb2.RankRequest(candidates=first.candidates).SerializeToString()
    stream = channel.stream_stream(SLICES)(iter(slices.get, None), timeout=30)
    slices.put(_padded(first.SerializeToString(), LARGE))
    assert next(stream)
    for size in (MIB, 2 * MIB):  # together they would not fit
        slices.put(_padded(next_one, size))
        assert next(stream)
    with pytest.raises(grpc.RpcError, match="more do not fit"):
        channel.unary_unary(PREDICT)(_predict(LARGE), timeout=60)
    slices.put(_padded(next_one, LARGE))
    with pytest.raises(grpc.RpcError, match="more do not fit") as refused:
        next(stream)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    slices.put(None)


def test_a_watch_counts_until_its_client_leaves(server: Server, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    large = health_pb2.HealthCheckRequest(service="x" * LARGE)
    watch = health.Watch(large, timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError, match="more do not fit"):
        health.Check(large, timeout=60)
    eventually(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1)
    watch.cancel()
    eventually(lambda: _held(server) == 0)
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(large, timeout=60)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_body_counts_as_it_comes(server: Server, channel: grpc.Channel) -> None:
    """Of two halves that do not fit together the second one is refused; a client that leaves gives its room
    back."""
    host, _, port = (server.rest_address or "").rpartition(":")
    head = (
        f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
    )
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head + b" " * LARGE)
        eventually(lambda: _held(server) == LARGE)
        with pytest.raises(grpc.RpcError, match="more do not fit"):
            channel.unary_unary(PREDICT)(_predict(LARGE), timeout=60)
    eventually(lambda: _held(server) == 0)


def test_a_body_that_no_worker_gets_gives_its_room_back(server: Server) -> None:
    url = f"http://{server.rest_address}/v1/models/{MODEL}:predict"
    wrong = urllib.request.Request(url, b" " * MIB, {PRIORITY: "urgent"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(wrong, timeout=60)
    eventually(lambda: _held(server) == 0)


def test_a_slice_that_is_refused_gives_its_room_back(server: Server, channel: grpc.Channel) -> None:
    """At once: not when the garbage collector comes to its error's frames."""
    gc.disable()
    try:
        with pytest.raises(grpc.RpcError) as refused:
            next(channel.stream_stream(SLICES)(iter([b"\xff" * MIB]), timeout=60))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        eventually(lambda: _held(server) == 0)
    finally:
        gc.enable()


def test_the_largest_message_must_fit(models: tuple, start_server: Callable) -> None:
    with pytest.raises(StartError, match="--max-in-flight-mib 63 is less than --max-message-mib 64"):
        start_server(models, max_in_flight_mib=63)
