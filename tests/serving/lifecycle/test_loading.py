"""What a version must do before it is served: real servers, real bundles, some of them broken."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tensorflow as tf

from serving import sha256_process
from serving.background import NICENESS, BackgroundDigests, in_background
from serving.client import PredictClient
from serving.engines import StreamSchedulers
from serving.errors import OverloadedError
from serving.grpc_server import Server
from serving.lifecycle import LifecycleOptions
from serving.lifecycle.warmup import FILE, warm_up
from serving.model import Model
from serving.repository import ModelRepository
from serving.versions import retry_after
from serving.wire import inference_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode
from serving.wire.prediction_log_pb2 import ClassifyLog, PredictionLog, PredictLog, RegressLog
from tests import models
from tests.serving.lifecycle.versions import AddVersion, eventually, scale_weights

REQUEST = models.ranker_request(5, 0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, add_version: AddVersion) -> Path:
    path = tmp_path_factory.mktemp("models")
    add_version(path, "ranker", 1)
    return path


@pytest.fixture(scope="module")
def server(directory: Path, start_server: Callable) -> Server:
    return start_server(directory)


def _status(server: Server, model: str, version: int) -> tuple[str, str]:
    known = {s.version: (s.state, s.error) for s in server.repository.statuses(model)}
    return known.get(version, ("", ""))


def test_scores_that_are_not_the_recorded_ones(
    server: Server, directory: Path, add_version: AddVersion
) -> None:
    """The version ends with what was wrong, is not tried again, and is once its files change."""
    client = PredictClient(server.address)
    before = client.predict("ranker", REQUEST)
    version = add_version(directory, "ranker", 2, factor=1.1)
    eventually(lambda: _status(server, "ranker", 2)[0] == "END")
    error = _status(server, "ranker", 2)[1]
    assert "self-check on cpu: output 'click' differs from TensorFlow's by" in error
    assert "the tolerance is 1e-05" in error
    assert server.repository.loaded()["ranker"] == 1
    assert (client.predict("ranker", REQUEST)["click"] == before["click"]).all()
    scale_weights(version, 1 / 1.1)  # a last bit may differ, the tolerance is for that
    eventually(lambda: server.repository.loaded()["ranker"] == 2)
    assert _status(server, "ranker", 2) == ("AVAILABLE", "")
    client.close()


def test_warm_up_requests(
    directory: Path, tmp_path: Path, add_version: AddVersion, caplog: pytest.LogCaptureFixture
) -> None:
    good = pb.PredictRequest(inputs={name: encode(value) for name, value in REQUEST.items()})
    other = pb.PredictRequest(model_spec=pb.ModelSpec(signature_name="training"))
    logs = [PredictionLog(predict_log=PredictLog(request=r)) for r in (good, good, other)]
    version = add_version(tmp_path / "m", "warm", 1)
    _write(version, logs)
    caplog.set_level("INFO")
    repository = ModelRepository(tmp_path / "m")
    repository.scan()
    assert repository.loaded() == {"warm": 1}
    assert "recorded requests compared, warmed up with 2 requests of assets.extra" in caplog.text
    assert "1 records are no calls of this model's signature" in caplog.text

    del good.inputs["item_id"]
    version = add_version(tmp_path / "m", "warm", 2)
    _write(version, [*logs[:2], PredictionLog(predict_log=PredictLog(request=good))])
    damaged = add_version(tmp_path / "m", "warm", 3)
    _write(damaged, logs)
    (damaged / FILE).write_bytes((damaged / FILE).read_bytes()[:-3])
    repository.scan()
    assert repository.loaded() == {"warm": 1}
    state = {s.version: s for s in repository.statuses("warm")}
    assert state[2].state == "END" and "record 2: missing features: 'item_id'" in state[2].error
    assert state[3].state == "END" and "record 2 is cut off" in state[3].error
    repository.close()

    cold = ModelRepository(tmp_path / "m", lifecycle=LifecycleOptions(warmup=False))
    cold.scan()
    assert cold.loaded() == {"warm": 3}
    cold.close()


def test_warm_up_with_examples(
    example_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other two calls that TensorFlow Serving warms up with."""

    def example(**features: object) -> bytes:
        kinds = {int: ("int64_list", tf.train.Int64List), float: ("float_list", tf.train.FloatList)}
        kinds |= {bytes: ("bytes_list", tf.train.BytesList)}
        made = {}
        for name, values in features.items():
            field, kind = kinds[type(values[0])]  # type: ignore[index]
            made[name] = tf.train.Feature(**{field: kind(value=values)})
        return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()

    def given(text: bytes) -> inference_pb2.Input:
        return inference_pb2.Input(example_list=inference_pb2.ExampleList(examples=[text, text]))

    classify = inference_pb2.ClassificationRequest(input=given(example(price=[1.0, 2.0], id=[3])))
    item = example(user_age=[30.0], item_id=[7], item_price=[1.0, 2.0], item_color=[b"red"])
    regress = inference_pb2.RegressionRequest(input=given(item))
    for name, record in (
        ("classifier", PredictionLog(classify_log=ClassifyLog(request=classify))),
        ("regressor", PredictionLog(regress_log=RegressLog(request=regress))),
    ):
        shutil.copytree(example_models / "models" / name, tmp_path / name)
        _write(tmp_path / name / "1", [record])
    caplog.set_level("INFO")
    repository = ModelRepository(tmp_path, lifecycle=LifecycleOptions(warmup_iterations=2))
    repository.scan()
    assert sorted(repository.loaded()) == ["classifier", "regressor"], caplog.text
    assert caplog.text.count("warmed up with 1 requests of assets.extra") == 2
    repository.close()


def _write(version: Path, logs: list[PredictionLog]) -> None:
    (version / FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(version / FILE)) as writer:
        for record in logs:
            writer.write(record.SerializeToString())


def test_a_busy_server_says_nothing_of_a_versions_warm_up(
    tmp_path: Path, add_version: AddVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests are not answered, and the version is tried again: it is not the one that is wrong."""
    monkeypatch.setattr("serving.lifecycle.scoring.PATIENCE_SECONDS", 0.05)
    version = add_version(tmp_path / "m", "warm", 1)
    request = pb.PredictRequest(inputs={name: encode(value) for name, value in REQUEST.items()})
    _write(version, [PredictionLog(predict_log=PredictLog(request=request))])
    schedulers = StreamSchedulers(1)
    model = Model.load(version, schedulers=schedulers)
    schedulers.close(10)  # as refuses a device whose queue is full
    with pytest.raises(OverloadedError) as busy:
        warm_up(version, model)
    model.close()
    assert retry_after(busy.value, 1, 5, 60.0) == 60.0


def test_a_version_beyond_the_memory_limit(tmp_path: Path, add_version: AddVersion) -> None:
    """It is refused with numbers and before it is loaded; the others go on, and it comes when there is
    room."""
    add_version(tmp_path / "m", "a", 1)
    whole = ModelRepository(tmp_path / "m")
    whole.scan()
    use, files = whole.memory("a")[1]
    whole.close()
    assert use.total == use.tables + use.vocabularies + use.weights + use.packed + use.modules
    tables = {name: resident for name, resident in files.items() if name.startswith("tables/")}
    assert sum(resident.mapped for resident in tables.values()) >= use.tables
    assert 0 < sum(r.resident for r in tables.values()) <= sum(r.mapped for r in tables.values())

    copied = ModelRepository(tmp_path / "m", lifecycle=LifecycleOptions(table_memory="huge"))
    copied.scan()
    assert copied.loaded() == {"a": 1}
    assert not [name for name in copied.memory("a")[1][1] if name.startswith("tables/")]
    copied.close()

    add_version(tmp_path / "m", "b", 1)
    limited = ModelRepository(tmp_path / "m", lifecycle=LifecycleOptions(memory_limit=use.total * 3 // 2))
    limited.scan()
    assert len(limited.loaded()) == 1
    (served,) = limited.loaded()
    (refused,) = {"a", "b"} - {served}
    (status,) = limited.statuses(refused)
    mib = f"{use.total / (1 << 20):.1f}"
    assert f"it would take {mib} MiB (" in status.error and f"what is loaded takes {mib} MiB" in status.error
    limited.unload(served)
    limited.load(refused)
    assert limited.loaded() == {refused: 1}
    limited.close()


def test_large_files_are_hashed_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lower priority, which ends with its parent; what it cannot read is an error that says why."""
    file, niceness = tmp_path / "large", os.getpriority(os.PRIO_PROCESS, 0)
    file.write_bytes(os.urandom(5 << 20))
    monkeypatch.setattr(hashlib, "file_digest", None)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert BackgroundDigests().of(file) == expected
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness

    def ran(parent: int, path: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-S", sha256_process.__file__, str(parent), "19", str(path)]
        return subprocess.run(command, capture_output=True, text=True)

    assert ran(os.getpid(), file).stdout.strip() == expected
    with monkeypatch.context() as patched:  # others want the cores all the time
        pauses: list[float] = []
        waited = itertools.count()
        patched.setattr(sha256_process, "_waited", lambda: float(next(waited)))
        patched.setattr(time, "sleep", pauses.append)
        assert sha256_process.main(os.getppid(), niceness, str(file)) == 0
        assert len(pauses) == file.stat().st_size // sha256_process._PIECE
    orphan, unread = ran(os.getpid() + 1, file), ran(os.getpid(), tmp_path)
    assert orphan.returncode and not orphan.stdout
    assert unread.returncode and "Is a directory" in unread.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads have no niceness of their own here")
def test_loading_gives_way_and_serving_does_not(tmp_path: Path, add_version: AddVersion) -> None:
    def niceness(thread: int | None = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())

    own = niceness()
    assert in_background(niceness) == min(own + NICENESS, 19)
    add_version(tmp_path / "m", "a", 1)
    repository = ModelRepository(tmp_path / "m")
    before = set(os.listdir("/proc/self/task"))

    def staying() -> set[int]:
        found = set()
        for thread in set(os.listdir("/proc/self/task")) - before:
            with suppress(ProcessLookupError):
                found.add(niceness(int(thread)))
        return found

    repository.scan()
    with repository.lend("a") as (model, _):
        # Threads that only loaded it end a moment after they were joined.
        eventually(lambda: staying() == {own})
        scheduler = next(iter(repository._schedulers._schedulers.values()))
        # What it proved itself with does not say what clients' requests cost.
        assert scheduler._costs.seconds(model._engine._key, 5000) == 0.0
        model.predict(REQUEST)
        assert scheduler._costs.seconds(model._engine._key, 5000) > 0.0
        low = scheduler.on_each(lambda _: niceness(), in_background=True)
        assert set(low) == {min(own + NICENESS, 19)}
    repository.close()
