"""Recorded traffic, read by TensorFlow Serving's own messages and by `jaxrank compile --examples`' reader."""

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bench.workloads import read_traffic
from converters.examples import read_examples
from jaxrank.bundle import read_manifest
from jaxrank.manifest import Signature
from jaxrank.tfrecord import read_records
from serving.client import PredictClient
from serving.grpc_server import Server
from serving.monitoring.errors import MonitoringError
from serving.monitoring.options import MonitoringOptions
from serving.monitoring.recording import Recorder
from serving.monitoring.timeline import Exchange, Timeline
from serving.wire import predict_pb2 as pb
from serving.wire.codec import decode
from serving.wire.log_metadata_pb2 import LogMetadata
from serving.wire.prediction_log_pb2 import PredictionLog
from tests import models

_SIGNATURE = Signature(name="serving_default", method_name="", inputs=(), outputs=())


def test_what_was_answered_is_in_the_file(
    models_dir: Path,
    start_server: Callable[..., Server],
    client_packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "traffic.tfrecord"
    options = MonitoringOptions(record=file, record_sample=1.0)
    server = start_server(models_dir, monitoring=options)
    client, began = PredictClient(server.address), time.time_ns()
    requests = [models.ranker_request(rows, rows) for rows in (5, 40, 200)]
    answers = [client.predict("ranker", features) for features in requests]
    with pytest.raises(Exception, match="features"):
        client.predict("ranker", {})
    client.close()
    assert server.stop()
    ended = time.time_ns()

    arrivals = [
        LogMetadata.FromString(PredictionLog.FromString(data).log_metadata).arrival_ns
        for data in read_records(file)
    ]
    assert arrivals == sorted(arrivals)
    assert began <= arrivals[0] <= arrivals[-1] <= ended
    traffic = read_traffic(file)
    assert traffic.times == pytest.approx([(at - arrivals[0]) / 1e9 for at in arrivals])
    assert [r.model_spec for r in traffic.requests] == 3 * [
        pb.ModelSpec(name="ranker", signature_name="serving_default")
    ]
    signature = read_manifest(models_dir / "ranker" / "3").signature
    read = read_examples(file, signature)
    assert len(read) == len(requests)
    for found, features in zip(read, requests, strict=True):
        for name, value in features.items():
            np.testing.assert_array_equal(found[name], value)

    monkeypatch.syspath_prepend(client_packages)
    logging_pb2 = importlib.import_module("tensorflow_serving.apis.logging_pb2")
    prediction_log_pb2 = importlib.import_module("tensorflow_serving.apis.prediction_log_pb2")
    theirs = {(field.name, field.number) for field in logging_pb2.LogMetadata.DESCRIPTOR.fields}
    ours = {(f.name, f.number) for f in LogMetadata.DESCRIPTOR.fields if f.name != "arrival_ns"}
    assert ours <= theirs
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    for data, at, features, answer in zip(records, arrivals, requests, answers, strict=True):
        log = prediction_log_pb2.PredictionLog.FromString(data)
        spec, sampling = log.log_metadata.model_spec, log.log_metadata.sampling_config
        assert (spec.name, spec.version.value, sampling.sampling_rate) == ("ranker", 3, 1.0)
        assert log.log_metadata.timestamp_secs == at // 10**9
        items = tf.make_ndarray(log.predict_log.request.inputs["item_id"])
        np.testing.assert_array_equal(items, features["item_id"])
        for name, scores in answer.items():
            found = tf.make_ndarray(log.predict_log.response.outputs[name])
            np.testing.assert_array_equal(found, scores)


def test_a_request_by_handle_is_recorded_with_its_features(
    models_dir: Path, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "traffic.tfrecord"
    server = start_server(models_dir, monitoring=MonitoringOptions(record=file, record_sample=1.0))
    client, features = PredictClient(server.address), models.ranker_request(40, 40)
    user = {name: value for name, value in features.items() if name.startswith("user_")}
    items = {name: value for name, value in features.items() if name not in user}
    state = client.prepare("ranker", user)
    answers = [client.rank("ranker", state, items), *client.rank_slices("ranker", state, [items])]
    client.close()
    assert server.stop()
    found = read_examples(file, read_manifest(models_dir / "ranker" / "3").signature)
    logs = [PredictionLog.FromString(data).predict_log for data in read_records(file)]
    assert len(found) == len(logs) == 2
    for request, log, answer in zip(found, logs, answers, strict=True):
        for name, value in features.items():
            np.testing.assert_array_equal(request[name], value)
        for name, scores in answer.items():
            np.testing.assert_array_equal(decode(name, log.response.outputs[name]), scores)


def _timeline(number: int, size: int = 100) -> Timeline:
    timeline = Timeline("GRPC", "Predict", model="m", version=1)
    inputs = {"x": np.full(size, number, np.float32)}
    timeline.exchange = Exchange(_SIGNATURE, inputs, {"y": np.array([number], np.float32)})
    return timeline


def _numbers(file: Path) -> list[int]:
    logs = [PredictionLog.FromString(data) for data in read_records(file)]
    return [int(decode("y", log.predict_log.response.outputs["y"])[0]) for log in logs]


def _counts(recorder: Recorder) -> dict[str, float]:
    records = recorder.families()[0]
    return {sample.labels["outcome"]: sample.value for sample in records.samples}


def test_files_rotate_between_records(tmp_path: Path) -> None:
    file = tmp_path / "traffic"
    file.write_bytes(b"what an earlier server left")
    recorder = Recorder(file, 1.0, 5000)
    assert (tmp_path / "traffic.1").read_bytes() == b"what an earlier server left"
    for number in range(50):
        recorder.observe(_timeline(number))
    recorder.close()
    assert _counts(recorder) == {"written": 50, "dropped": 0, "failed": 0}
    last, before = _numbers(file), _numbers(tmp_path / "traffic.1")
    assert [*before, *last] == list(range(50 - len(before) - len(last), 50))
    assert len(before) > 1
    assert max(file.stat().st_size, (tmp_path / "traffic.1").stat().st_size) <= 5000


def test_a_sample_is_a_share(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "traffic", 0.25, 1 << 30)
    for number in range(2000):
        recorder.observe(_timeline(number, size=1))
    recorder.close()
    counts = _counts(recorder)
    assert counts["written"] == len(_numbers(tmp_path / "traffic"))
    assert 400 <= counts["written"] + counts["dropped"] <= 600  # 500 +- 5 standard deviations


def test_a_full_queue_drops(tmp_path: Path) -> None:
    """The writer waits for the lock of its own queue, which this test holds."""
    recorder = Recorder(tmp_path / "traffic", 1.0, 1 << 30)
    with recorder._changed:
        for number in range(300):
            recorder.observe(_timeline(number))
    recorder.close()
    counts = _counts(recorder)
    assert counts["written"] == 256
    assert counts["dropped"] == 44


def test_a_full_disk_loses_records_but_never_half_writes_one(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write stops in the middle of a record."""
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from jaxrank.manifest import Signature
from serving.monitoring.recording import Recorder
from serving.monitoring.timeline import Exchange, Timeline

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
recorder = Recorder(Path(sys.argv[1]), 1.0, 1 << 30)
signature = Signature(name="serving_default", method_name="", inputs=(), outputs=())
for number in range(20):
    timeline = Timeline("GRPC", "Predict", model="m", version=1)
    arrays = {"x": np.zeros(100, np.float32)}, {"y": np.array([number], np.float32)}
    timeline.exchange = Exchange(signature, *arrays)
    recorder.observe(timeline)
recorder.close()
print(*(sample.value for sample in recorder.families()[0].samples))
"""
    file = tmp_path / "traffic"
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, check=True, timeout=120
    )
    written, dropped, failed = (int(float(count)) for count in done.stdout.split())
    assert (written + failed, dropped) == (20, 0)
    assert failed > 0
    assert _numbers(file) == list(range(written))
    assert done.stderr.count("is not recorded") <= 1


def test_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(MonitoringError, match="cannot be written"):
        Recorder(tmp_path / "nowhere" / "traffic", 1.0, 1)
    recorder = Recorder(tmp_path / "traffic", 1.0, 1 << 30)
    with pytest.raises(MonitoringError, match="written by another server"):
        Recorder(tmp_path / "traffic", 1.0, 1)
    recorder.close()
