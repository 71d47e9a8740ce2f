"""Calls that only wait: they hold no thread that Predict needs, and end when their message does not come.
Those that ask how the server is are answered whatever else it does."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.admission import REFLECTIONS, WATCHES
from serving.client import PredictClient
from serving.grpc_server import Server
from serving.model_config import ModelConfig
from serving.scheduling import ANY_TIME
from serving.wire import kserve_pb2, model_service_pb2
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE
from tests.serving.scraping import get

IDLE = 12


@pytest.fixture(scope="module")
def models(example_models: Path) -> tuple[ModelConfig, ...]:
    return (ModelConfig("half_plus_three", example_models / "models" / "half_plus_three"),)


def _predict(address: str) -> float:
    client = PredictClient(address)
    inputs = {"x": np.array([1.0], np.float32)}
    scores = client.predict("half_plus_three", inputs, timeout=20)["outputs"]
    client.close()
    return float(scores[0])


@contextmanager
def _endless() -> Iterator[Iterator[bytes]]:
    """Messages that never come."""
    enough = threading.Event()

    def messages() -> Iterator[bytes]:
        enough.wait()
        yield from ()

    yield messages()
    enough.set()


def test_idle_calls_do_not_starve_predict(models: tuple, start_server: Callable) -> None:
    """A dozen of each kind, on a server of one thread: Predict, Watch with and without its message, health
    Check, reflection."""
    server: Server = start_server(models, workers=1)
    with grpc.insecure_channel(server.address) as channel, ExitStack() as stack:
        calls = []
        for _ in range(IDLE):
            for method in (f"{PREDICTION_SERVICE}/Predict", "grpc.health.v1.Health/Check"):
                messages = stack.enter_context(_endless())
                calls.append(channel.stream_unary(f"/{method}").future(messages, timeout=60))
            messages = stack.enter_context(_endless())
            calls.append(channel.stream_stream("/grpc.health.v1.Health/Watch")(messages, timeout=60))
            messages = stack.enter_context(_endless())
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            calls.append(reflection.ServerReflectionInfo(messages, timeout=60))
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            for _ in range(2 * IDLE)
        ]
        assert _predict(server.address) == 3.5
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
        assert _predict(server.address) == 3.5
        for call in (*calls, *watches):
            call.cancel()


def test_a_call_without_its_message_ends(models: tuple, start_server: Callable) -> None:
    server: Server = start_server(models, workers=1, message_seconds=0.3)
    with grpc.insecure_channel(server.address) as channel:
        for make in (
            lambda m: channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict").future(m, timeout=30).result(),
            lambda m: channel.stream_unary("/grpc.health.v1.Health/Check").future(m, timeout=30).result(),
            lambda m: next(channel.stream_stream("/grpc.health.v1.Health/Watch")(m, timeout=30)),
            lambda m: next(
                reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(m, timeout=30)
            ),
        ):
            with _endless() as messages, pytest.raises(grpc.RpcError) as ended:
                make(messages)
            assert ended.value.code() is grpc.StatusCode.CANCELLED


def test_streams_that_talk_go_on(models: tuple, start_server: Callable) -> None:
    """A Watch hears of the end though its message came long ago, and reflection answers every message."""
    server: Server = start_server(models, message_seconds=0.3)
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")] * 3
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        names = [{s.name for s in a.list_services_response.service} for a in answers]
        assert len(names) == 3 and all(PREDICTION_SERVICE in n for n in names)
        time.sleep(1.5)  # many times as long as a message may take, and the sweeper's second
        server._health.enter_graceful_shutdown()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


def test_watches_that_end_while_others_are_told(models: tuple, start_server: Callable) -> None:
    """gRPC's event thread ends them; it must not wait for whoever tells, who waits for it."""
    server: Server = start_server(models)
    serving = health_pb2.HealthCheckResponse.ServingStatus
    stop = threading.Event()

    def tell() -> None:
        while not stop.is_set():
            server._health.set("", serving.SERVING)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            for _ in range(10):
                health_stub = health_pb2_grpc.HealthStub(channel)
                watches = [health_stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(12)]
                for watch in watches:
                    assert next(watch).status == serving.SERVING
                for watch in watches:
                    watch.cancel()
            assert health_stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == serving.SERVING
    finally:
        stop.set()
        teller.join(20)
    assert not teller.is_alive()


def _answered(server: Server, method: str, request: Message) -> bytes:
    with grpc.insecure_channel(server.address) as channel:
        return channel.unary_unary(f"/{method}")(request.SerializeToString(), timeout=20)


def test_probes_and_administration_need_no_turn(models: tuple, start_server: Callable) -> None:
    """The only turn is held. Where a model is loaded, the turn is free meanwhile."""
    server: Server = start_server(models, workers=1, rest_port=0)
    model = "half_plus_three"
    with server._turns.turn(ANY_TIME):
        assert kserve_pb2.ServerLiveResponse.FromString(
            _answered(server, f"{INFERENCE_SERVICE}/ServerLive", kserve_pb2.ServerLiveRequest())
        ).live
        assert kserve_pb2.ServerReadyResponse.FromString(
            _answered(server, f"{INFERENCE_SERVICE}/ServerReady", kserve_pb2.ServerReadyRequest())
        ).ready
        assert kserve_pb2.ModelReadyResponse.FromString(
            _answered(server, f"{INFERENCE_SERVICE}/ModelReady", kserve_pb2.ModelReadyRequest(name=model))
        ).ready
        status = model_service_pb2.GetModelStatusRequest()
        status.model_spec.name = model
        assert _answered(server, f"{MODEL_SERVICE}/GetModelStatus", status)
        load = kserve_pb2.RepositoryModelLoadRequest(model_name=model)
        _answered(server, f"{INFERENCE_SERVICE}/RepositoryModelLoad", load)
        config = model_service_pb2.ReloadConfigRequest()
        config.config.model_config_list.config.add(name=model, base_path=str(models[0].base_path))
        _answered(server, f"{MODEL_SERVICE}/HandleReloadConfigRequest", config)
        with grpc.insecure_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
        for path in (
            "/v2/health/live",
            "/v2/health/ready",
            f"/v1/models/{model}",
            f"/v2/models/{model}/ready",
        ):
            assert get(server, path)[0] == 200
        client = PredictClient(server.address)
        with pytest.raises(grpc.RpcError) as late:
            client.predict(model, {"x": np.ones(1, np.float32)}, timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        client.close()
    assert _predict(server.address) == 3.5


@pytest.mark.parametrize(
    ("most", "method"),
    [
        (REFLECTIONS, "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
        (WATCHES, "grpc.health.v1.Health/Watch"),
    ],
)
def test_streams_are_bounded(most: int, method: str, models: tuple, start_server: Callable) -> None:
    """One more than may be open is told so, and there is room again when one ends."""
    server: Server = start_server(models, workers=1)
    with grpc.insecure_channel(server.address) as channel, ExitStack() as stack:
        opened = [
            channel.stream_stream(f"/{method}")(stack.enter_context(_endless()), timeout=60)
            for _ in range(most)
        ]
        room = server._admission._watches if "Watch" in method else server._admission._reflections
        _until(lambda: room._free._value == 0)
        with pytest.raises(grpc.RpcError, match=f"{most} .* are open") as refused:
            next(channel.stream_stream(f"/{method}")(iter([b""]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _predict(server.address) == 3.5
        opened[0].cancel()
        _until(lambda: room._free._value == 1)
        assert next(channel.stream_stream(f"/{method}")(iter([b""]), timeout=20)) is not None
        for call in opened:
            call.cancel()


def _until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_watch_that_does_not_read(models: tuple, start_server: Callable) -> None:
    """A client whose window has no room for an answer keeps nobody else from theirs."""
    server: Server = start_server(models)
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(_a_watch_without_window())
        while _read_frame(client) != _HEADERS:
            pass  # the answer itself cannot follow
        with grpc.insecure_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
            server._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            assert check(health_pb2.HealthCheckRequest(), timeout=20).status == 2
        assert server._admission._watches._free._value == WATCHES - 1
    _until(lambda: server._admission._watches._free._value == WATCHES)


_DATA, _HEADERS, _SETTINGS = 0, 1, 4


def _a_watch_without_window() -> bytes:
    """HTTP/2 of a client that takes no bytes of an answer (RFC 9113, RFC 7541 without indexes)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(text)]) + text.encode()
        for name, text in fields.items()
    )
    initial_window_size, end_headers, end_stream = 4, 4, 1
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, struct.pack(">HI", initial_window_size, 0))
        + _frame(_HEADERS, end_headers, 1, block)
        + _frame(_DATA, end_stream, 1, bytes(5))
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _read_frame(client: socket.socket) -> int:
    """The kind of the next frame."""
    with client.makefile("rb", buffering=0) as file:
        head = _exactly(file, 9)
        _exactly(file, int.from_bytes(head[:3]))
        return head[3]


def _exactly(file: IO[bytes], size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = file.read(size - len(found))
        assert part, "the server closed the connection"
        found += part
    return found


def test_a_call_that_ends_without_a_message(models: tuple, start_server: Callable) -> None:
    server: Server = start_server(models)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict")(iter(()), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "send exactly one" in (refused.value.details() or "")
