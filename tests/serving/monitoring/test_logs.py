"""The log of a real process: JSON lines, a sample of requests, and nothing of what clients send."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.grpc_server import Server
from serving.monitoring.logs import AccessLog
from serving.monitoring.options import MonitoringOptions
from serving.monitoring.timeline import Timeline
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import PREDICTION_SERVICE
from tests import models
from tests.shared import killed

JAXRANK = str(Path(sys.executable).parent / "jaxrank")
SECRET = "a-secret-of-the-client"

ALLOCATED_PER_REQUEST = 300_000
"""Bytes that a request of 40 candidates may allocate; docs/monitoring.md states it."""


def _predict(channel: grpc.Channel, features: dict[str, np.ndarray], model: str = "ranker") -> None:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model))
    for name, value in features.items():
        request.inputs[name].CopyFrom(encode_content(value))
    call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict", pb.PredictRequest.SerializeToString)
    call(request, metadata=[("authorization", f"Bearer {SECRET}")], timeout=30)


def _address(log: Path, process: subprocess.Popen) -> str:
    """Where the process serves, as soon as it says so."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        if found := re.search(r"serving on (\S+): ranker", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server never said that it serves: {log.read_text()}")


def _metrics(port: int) -> dict[tuple[str, str], float]:
    """By name, and the status or kind."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/here", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("status", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_process_logs_json_and_stays_within_its_allocations(
    models_dir: Path, jemalloc: Path, tmp_path: Path
) -> None:
    config = tmp_path / "monitoring.txt"
    config.write_text('prometheus_config { enable: true, path: "/here" }')
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        rest_port = one.getsockname()[1]
    command = [JAXRANK, "serve", str(models_dir), "--host=127.0.0.1", "--port=0", f"--jemalloc={jemalloc}"]
    command += [f"--rest_api_port={rest_port}", f"--monitoring_config_file={config}"]
    command += ["--log-format=json", "--access-log-sample=1"]
    log = tmp_path / "log"
    with log.open("w") as stderr, killed(subprocess.Popen(command, stderr=stderr)) as process:
        try:
            address = _address(log, process)
            features = models.ranker_request(40, 1)
            features["user_device"] = np.array([SECRET.encode()], object)
            with grpc.insecure_channel(address) as channel:
                for _ in range(100):
                    _predict(channel, features)
                before = _metrics(rest_port)
                for _ in range(100):
                    _predict(channel, features)
                after = _metrics(rest_port)
                with pytest.raises(grpc.RpcError):
                    _predict(channel, {SECRET: features["user_device"]})
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    served = (":tensorflow:serving:request_count", "OK")
    assert after[served] - before[served] == 100
    allocated = after["jaxrank_allocated_bytes_total", ""] - before["jaxrank_allocated_bytes_total", ""]
    assert 0 < allocated / 100 < ALLOCATED_PER_REQUEST
    assert SECRET not in log.read_text()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
    requests = [event for event in events if event["logger"] == "jaxrank.access"]
    assert len(requests) == 201
    answered = [event for event in requests if event["status"] == "OK"]
    assert len(answered) == 200
    assert answered[0]["model"] == "ranker"
    assert (answered[0]["version"], answered[0]["candidates"]) == (3, 40)
    assert answered[0]["request_ms"] > answered[0]["compute_ms"] > 0
    (refused,) = (event for event in requests if event["status"] != "OK")
    assert (refused["status"], refused["reason"]) == ("INVALID_ARGUMENT", "invalid_request")


def test_a_line_of_text_says_the_same(
    example_models: Path, start_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(
        example_models / "models", workers=1, monitoring=MonitoringOptions(access_log_sample=1.0)
    )
    with caplog.at_level(logging.INFO), grpc.insecure_channel(server.address) as channel:
        _predict(channel, {"x": np.ones(4, np.float32)}, "half_plus_three")
    (line,) = (r.getMessage() for r in caplog.records if r.name == "jaxrank.access")
    assert re.fullmatch(
        r"GRPC Predict half_plus_three version 1: OK, 4 candidates in [\d.]+ ms \(decode [\d.e-]+, host .*\)",
        line,
    )


def test_a_sample_of_nothing_is_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            AccessLog(0.0).observe(Timeline("GRPC", "Predict"))
        AccessLog(1.0).observe(Timeline("GRPC", ""))  # no call that runs a model
    assert not caplog.records
