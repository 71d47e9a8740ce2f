"""Calls that only wait: they hold no thread that Predict needs, and end when their message does not come."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.client import PredictClient
from serving.grpc_server import Server
from serving.model_config import ModelConfig
from serving.wire.reflection import PREDICTION_SERVICE

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
    """gRPC's event thread ends them; were it to wait for whoever sends, both would wait for ever."""
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


def test_a_call_that_ends_without_a_message(models: tuple, start_server: Callable) -> None:
    server: Server = start_server(models)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict")(iter(()), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "send exactly one" in (refused.value.details() or "")
