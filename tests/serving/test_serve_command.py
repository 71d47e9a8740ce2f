"""`jaxrank serve` as a process: ready line, Ctrl-C that drains and exits 0, and refusals to start."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxrank.tfrecord import framed
from serving.client import PredictClient
from serving.lifecycle import LifecycleOptions
from serving.lifecycle.warmup import FILE as WARMUP
from serving.wire.codec import encode
from serving.wire.prediction_log_pb2 import PredictionLog
from serving.wire.reflection import PREDICTION_SERVICE
from tests import models
from tests.shared import killed

UNCHECKED = LifecycleOptions(self_check=False, warmup=False)
"""Versions that score nothing before the test's own request."""

JAXRANK = str(Path(sys.executable).parent / "jaxrank")


@pytest.fixture
def process(models_dir: Path) -> Iterator[subprocess.Popen]:
    command = [JAXRANK, "serve", str(models_dir), "--host", "127.0.0.1", "--port", "0"]
    with killed(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        yield process


def _address(process: subprocess.Popen) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving on (\S+): ranker version 3", line):
            return found.group(1)
    raise AssertionError("the server never said that it serves")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_exits_0(process: subprocess.Popen, number: signal.Signals) -> None:
    """A request that is running when the signal comes is answered."""
    client = PredictClient(_address(process))
    answers: list[dict] = []
    features = models.ranker_request(5000, 1)
    client.predict("ranker", features)
    thread = threading.Thread(target=lambda: answers.append(client.predict("ranker", features)))
    thread.start()
    process.send_signal(number)
    thread.join(20)
    assert process.wait(20) == 0
    assert [len(a["click"]) for a in answers] == [5000]


def _serve(models_dir: Path, grace_seconds: float) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", "0", "--grace-seconds", str(grace_seconds)]
    return [JAXRANK, "serve", str(models_dir), *options]


def test_a_watch_of_health_does_not_hold_the_end(models_dir: Path) -> None:
    with (
        subprocess.Popen(_serve(models_dir, 60), stderr=subprocess.PIPE, text=True) as process,
        grpc.insecure_channel(_address(process)) as channel,
    ):
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGINT)
        assert next(stream).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.wait(10) == 0


@contextmanager
def _half_a_request(address: str) -> Iterator[None]:
    """A call that has begun, and whose message never comes."""
    enough = threading.Event()

    def messages() -> Iterator[bytes]:
        enough.wait()
        yield b""

    with grpc.insecure_channel(address) as channel:
        call = channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict").future(messages())
        time.sleep(0.5)
        yield
        enough.set()
        call.cancel()


def test_a_second_signal_does_not_wait(models_dir: Path) -> None:
    """A request that does not finish would hold the first one for its whole grace period."""
    with (
        subprocess.Popen(_serve(models_dir, 60), stderr=subprocess.PIPE, text=True) as process,
        _half_a_request(_address(process)),
    ):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


def test_the_grace_period_is_a_limit(models_dir: Path) -> None:
    with (
        subprocess.Popen(_serve(models_dir, 0.5), stderr=subprocess.PIPE, text=True) as process,
        _half_a_request(_address(process)),
    ):
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 1)


def test_a_stuck_model_does_not_hold_the_end(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` says that a request did not finish, and does not close the model under it."""
    from serving.grpc_server import Server, ServerOptions
    from serving.model import Model

    inside, go_on = threading.Event(), threading.Event()
    closed: list[Model] = []

    def stuck(self: Model, *arguments: object) -> dict:
        inside.set()
        assert go_on.wait(20)
        return {}

    monkeypatch.setattr(Model, "predict", stuck)
    monkeypatch.setattr(Model, "close", lambda self: closed.append(self))
    server = Server(
        ServerOptions(models=models_dir, host="127.0.0.1", port=0, grace_seconds=0.5, lifecycle=UNCHECKED)
    )
    client = PredictClient(server.address)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(client.predict, "ranker", models.ranker_request(9, 1))
        assert inside.wait(20)
        began = time.monotonic()
        assert not server.stop()
        assert time.monotonic() - began < 5 and not closed
        go_on.set()
        assert request.exception(20) is not None
    client.close()


def test_a_request_on_its_way_is_answered(models_dir: Path) -> None:
    """It arrives after the stop began, when gRPC alone would answer UNAVAILABLE or CANCELLED."""
    from serving.grpc_server import Server, ServerOptions

    server = Server(ServerOptions(models=models_dir, host="127.0.0.1", port=0))
    client = PredictClient(server.address)
    client.predict("ranker", models.ranker_request(9, 1))
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(server.stop)
        time.sleep(0.02)
        assert len(client.predict("ranker", models.ranker_request(9, 1))["click"]) == 9
        stopped.result(20)
    client.close()


def test_requests_in_flight_are_answered(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` while a request is inside the model: it is answered in full before the server is gone."""
    from serving.grpc_server import Server, ServerOptions
    from serving.model import Model

    inside, go_on = threading.Event(), threading.Event()
    predict = Model.predict

    def slow(self: Model, *arguments: object) -> dict:
        inside.set()
        assert go_on.wait(20)
        return predict(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "predict", slow)
    server = Server(ServerOptions(models=models_dir, host="127.0.0.1", port=0, lifecycle=UNCHECKED))
    client = PredictClient(server.address)
    answers: list[dict] = []
    request = threading.Thread(
        target=lambda: answers.append(client.predict("ranker", models.ranker_request(9, 1), timeout=30))
    )
    request.start()
    assert inside.wait(20)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    go_on.set()
    stopping.join(20)
    request.join(20)
    assert len(answers) == 1 and len(answers[0]["click"]) == 9


def test_a_port_in_use(models_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [JAXRANK, "serve", str(models_dir), "--host", "127.0.0.1", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_models_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [JAXRANK, "serve", str(tmp_path / "no")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "is not a directory; it must hold <model>/<version>/ bundles" in done.stderr


@pytest.fixture(scope="module")
def endless(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration: a model that loads, and after it one whose warm-up request is answered again and
    again."""
    path = tmp_path_factory.mktemp("endless")
    shutil.copytree(models_dir / "ranker" / "3", path / "warms_up" / "1")
    file = path / "warms_up" / "1" / WARMUP
    file.parent.mkdir()
    log = PredictionLog()
    for name, value in models.ranker_request(2, 1).items():
        log.predict_log.request.inputs[name].CopyFrom(encode(value))
    file.write_bytes(framed(log.SerializeToString()))
    bundles = {"loads": models_dir / "ranker", "warms_up": path / "warms_up"}
    config = " ".join(f'config {{ name: "{name}" base_path: "{base}" }}' for name, base in bundles.items())
    (path / "models.config").write_text(f"model_config_list {{ {config} }}")
    return path


@pytest.mark.parametrize(
    ("options", "number"), [((), signal.SIGTERM), (("--workers", "2"), signal.SIGINT)], ids=["one", "workers"]
)
def test_a_signal_ends_the_first_load(endless: Path, options: tuple, number: signal.Signals) -> None:
    """Which would never end. What is loaded answers until then, and nothing is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [JAXRANK, "serve", "--model_config_file", str(endless / "models.config"), "--port", port]
    command += ["--host", "127.0.0.1", "--num_request_iterations_for_warmup", "1000000000"]
    files = {p: p.stat().st_mtime_ns for p in endless.rglob("*")}
    with killed(subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "warms_up/1 runs its target" in line:
                break
        if not options:  # workers answer together, when all of them can
            client = PredictClient(f"127.0.0.1:{port}")
            assert len(client.predict("loads", models.ranker_request(9, 1))["click"]) == 9
            client.close()
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(30) == 0, said
    assert "stopped" in said and "Traceback" not in said and "does not load" not in said
    assert {p: p.stat().st_mtime_ns for p in endless.rglob("*")} == files
