"""Rollback, canary and shadow: real servers whose versions differ by their weights."""

import json
import os
import resource
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.errors import InvalidRequestError, ServingError
from serving.grpc_server import Server
from serving.lifecycle import LifecycleOptions, records
from serving.lifecycle.rollback import Outcomes, Probation, fault_in, fault_of
from serving.lifecycle.shadow import MAX_WAITING, Sample, Shadow
from serving.lifecycle.trials import ROUTING_KEY, ShareError, Trial, is_drawn, read_trials, split
from serving.model import Model
from serving.model_config import ConfigError, ModelConfig, read_model_config
from serving.repository import ModelRepository
from serving.state import Prepared
from serving.versions import files_of
from serving.wire import predict_pb2 as pb
from serving.wire import ranking_pb2
from serving.wire.codec import encode
from serving.wire.reflection import PREDICTION_SERVICE, RANKING_SERVICE
from tests import models
from tests.serving.lifecycle.versions import AddVersion, eventually

REQUEST = models.ranker_request(30, 0)
FIRST = 10
"""Requests that decide about a version."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, add_version: AddVersion) -> Path:
    path = tmp_path_factory.mktemp("models")
    for model in ("good", "bad", "worse", "canary", "shadow", "unprepared"):
        add_version(path, model, 1, float("nan") if model == "worse" else 1.0)
    add_version(path, "canary", 2, 1.01)
    add_version(path, "shadow", 2, 1.5)
    return path


@pytest.fixture(scope="module")
def server(directory: Path, start_server: Callable) -> Server:
    """The versions are not those of their certificates on purpose, so nothing checks them at first."""
    trials = {"canary": Trial(canary=0.3), "shadow": Trial(shadow=1.0)}
    options = LifecycleOptions(self_check=False, warmup=False, rollback_requests=FIRST, trials=trials)
    return start_server(directory, lifecycle=options, rest_port=0)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[PredictClient]:
    client = PredictClient(server.address)
    yield client
    client.close()


def _ask(
    client: PredictClient, model: str, features: dict = REQUEST, key: str | None = None, version: int = 0
) -> tuple[int, dict]:
    """The version that the response's metadata names, and the scores."""
    call = client.channel.unary_unary(
        f"/{PREDICTION_SERVICE}/Predict",
        pb.PredictRequest.SerializeToString,
        pb.PredictResponse.FromString,
    )
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model))
    for name in sorted(features):
        request.inputs[name].CopyFrom(encode(features[name]))
    if version:
        request.model_spec.version.value = version
    response, done = call.with_call(
        request, timeout=60, metadata=None if key is None else ((ROUTING_KEY, key),)
    )
    told = dict(done.trailing_metadata())["jaxrank-version"]
    assert int(told) == response.model_spec.version.value
    return int(told), {n: np.array(t.float_val, np.float32) for n, t in response.outputs.items()}


def _status(server: Server, model: str, version: int) -> tuple[str, str]:
    return {s.version: (s.state, s.error) for s in server.repository.statuses(model)}.get(version, ("", ""))


# --- rollback ---


def test_a_version_with_bad_scores_goes_and_the_one_before_comes_back(
    client: PredictClient, server: Server, directory: Path, add_version: AddVersion
) -> None:
    _, before = _ask(client, "bad")
    version = add_version(directory, "bad", 2, float("nan"))
    eventually(lambda: server.repository.loaded()["bad"] == 2)
    assert server.repository.served_versions("bad") == [1, 2]
    answered = [_ask(client, "bad")[0] for _ in range(4)]
    assert answered[0] == 2 and answered[-1] == 1
    np.testing.assert_array_equal(_ask(client, "bad")[1]["click"], before["click"])
    eventually(lambda: _status(server, "bad", 2)[0] == "END")
    error = _status(server, "bad", 2)[1]
    assert "rolled back to version 1: 1 of its first 1 requests had a fault" in error
    assert "output 'click' is not finite; more than 5% of 10 are not taken" in error
    server.repository.scan()
    assert server.repository.loaded()["bad"] == 1
    eventually((directory / "bad" / ".2.rolled-back").is_file)
    again = ModelRepository(directory, lifecycle=LifecycleOptions(self_check=False, warmup=False))
    again.scan()
    status = again.statuses("bad", 2)[0]
    assert again.loaded()["bad"] == 1 and status.state == "END"
    assert "rolled back to version 1" in status.error and "remove" in status.error
    again.close()
    (version / "a_new_file").touch()
    eventually(lambda: server.repository.loaded()["bad"] == 2)


def test_a_version_that_cannot_prepare_goes(
    client: PredictClient,
    server: Server,
    directory: Path,
    add_version: AddVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = {name: value for name, value in REQUEST.items() if name.startswith("user_")}
    add_version(directory, "unprepared", 2)
    eventually(lambda: server.repository.loaded()["unprepared"] == 2)
    assert [client.prepare("unprepared", user).version for _ in range(FIRST)] == [2] * FIRST
    assert server.repository.served_versions("unprepared") == [1, 2], "without scores it proves nothing"
    with pytest.raises(grpc.RpcError):
        client.prepare("unprepared", {})
    with server.repository.lend("unprepared", 2) as (broken, _):
        prepare = Model.prepare

        def prepared(self: Model, *arguments: Any) -> Prepared:
            if self is broken:
                raise RuntimeError("a fault of the new version's")
            return prepare(self, *arguments)

        monkeypatch.setattr(Model, "prepare", prepared)
        with pytest.raises(grpc.RpcError) as failed:
            client.prepare("unprepared", user)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert client.prepare("unprepared", user).version == 1
    eventually(lambda: "1 of its first 1 requests had a fault" in _status(server, "unprepared", 2)[1])


def test_a_scan_during_a_rollback_leaves_the_version_before(
    tmp_path: Path, add_version: AddVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that goes and the end of what was between them are one step for a scan."""
    options = LifecycleOptions(self_check=False, warmup=False, rollback_requests=FIRST)
    repository = ModelRepository(tmp_path, lifecycle=options)
    for version in (1, 2):
        add_version(tmp_path, "a", version)
        repository.scan()
    assert repository.served_versions("a") == [1, 2]
    give_up = repository._failed.give_up
    scans: list[threading.Thread] = []

    def give_up_and_scan(*args: Any) -> None:
        give_up(*args)
        scans.append(threading.Thread(target=repository.scan))
        scans[0].start()

    monkeypatch.setattr(repository._failed, "give_up", give_up_and_scan)
    monkeypatch.setattr(repository._aside, "do", lambda *_: scans[0].join())  # what comes after the lock
    for _ in range(FIRST):
        repository.judge("a", 2, "it is bad")
        if scans:
            break
    assert repository.served_versions("a") == [1]
    monkeypatch.undo()
    repository.close()


def test_who_asks_for_a_version_gets_it_again(tmp_path: Path, add_version: AddVersion) -> None:
    """RepositoryModelLoad tries again what was rolled back, and a server without rollback ignores it."""
    for version in (1, 2):
        path = add_version(tmp_path / "m", "a", version)
    records.remember(path, files_of(path), "it was bad")
    repository = ModelRepository(tmp_path / "m")
    repository.scan()
    assert repository.loaded() == {"a": 1}
    repository.load("a")
    assert repository.loaded() == {"a": 2}
    repository.close()
    records.remember(path, files_of(path), "it was bad")
    without = ModelRepository(tmp_path / "m", lifecycle=LifecycleOptions(rollback_requests=0))
    without.scan()
    assert without.loaded() == {"a": 2}
    without.close()


@pytest.mark.parametrize("why", ["gone", "a file", "full", "read-only"])
def test_a_directory_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """The log says so, nothing is left there, and a server that starts again tries the version again."""
    bundle = tmp_path / "model" / "2"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if why == "a file":
        bundle.parent.touch()
    elif why != "gone":
        bundle.mkdir(parents=True)
    try:
        if why == "full":  # holds for root, too
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        if why == "read-only":
            bundle.parent.chmod(0o500)
            if os.access(bundle.parent, os.W_OK):
                pytest.skip("root may write everywhere")
        records.remember(bundle, [], "it was bad")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if bundle.parent.is_dir():
            bundle.parent.chmod(0o700)
    assert "so remove that version" in caplog.text
    assert not bundle.parent.is_dir() or list(bundle.parent.iterdir()) == [bundle]
    if why != "a file":
        records.check(bundle, [])


def test_a_version_proves_itself(
    client: PredictClient, server: Server, directory: Path, add_version: AddVersion
) -> None:
    """The one before it stays for as many requests as decide, and goes then. Refusals are no faults, and
    prove nothing."""
    add_version(directory, "good", 2, 1.01)
    eventually(lambda: server.repository.loaded()["good"] == 2)
    for _ in range(FIRST):
        with pytest.raises(grpc.RpcError):
            client.predict("good", {**REQUEST, "item_id": REQUEST["item_id"][:3]})
    assert _status(server, "good", 1) == ("AVAILABLE", "")
    assert _ask(client, "good", version=1)[0] == 1
    assert [_ask(client, "good")[0] for _ in range(FIRST)] == [2] * FIRST
    eventually(lambda: _status(server, "good", 1) == ("END", ""))
    assert server.repository.served_versions("good") == [2]


def test_what_both_versions_do_is_no_reason(
    client: PredictClient, server: Server, directory: Path, add_version: AddVersion
) -> None:
    for _ in range(3):
        _ask(client, "worse")
    add_version(directory, "worse", 2, float("nan"))
    eventually(lambda: server.repository.loaded()["worse"] == 2)
    assert [_ask(client, "worse")[0] for _ in range(FIRST)] == [2] * FIRST
    eventually(lambda: server.repository.served_versions("worse") == [2])


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ("....x.x", "....", None),
        ("....x.x.x", "....", "out"),
        ("x" * 3, "x.x.", None),
        ("." * 20, "..", "in"),
        ("x" * 20, "x" * 20, "in"),
        ("x" * 9, "." * 17 + "xxx", "out"),
        (".x" * 10, ".x" * 10, "in"),
        (".xx" * 6 + ".x", ".x" * 10, "in"),
    ],
)
def test_verdicts(new: str, old: str, verdict: str | None) -> None:
    """Of 20 requests, 2 may fail: a third one decides, unless the other version fails about as often. That it
    fails now and then does not excuse one that always does."""
    outcomes = []
    for ends in (new, old):
        outcomes.append(Outcomes(20))
        for end in ends:
            outcomes[-1].add("it failed" if end == "x" else "")
    found = Probation(2, 1, 20, 0.1).verdict(*outcomes)
    assert found == {"in": "", None: None}.get(verdict, found)
    assert verdict != "out" or (found and f" of its first {len(new)} requests" in found)


def test_what_counts_as_a_fault() -> None:
    assert fault_of(RuntimeError("a bug")) == "internal error (RuntimeError)"
    assert fault_of(ServingError("a bug")) and not fault_of(InvalidRequestError("the client's"))
    assert fault_in({"a": np.array([1.0, np.inf])}) == "output 'a' is not finite"
    assert not fault_in({"a": np.array([1, 2]), "b": np.array([b"x"], object), "c": np.zeros(3)})


# --- canary ---


def test_a_trial_of_no_model_is_said_once(
    tmp_path: Path, add_version: AddVersion, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(tmp_path, "good", 1, 1.0)
    options = LifecycleOptions(self_check=False, trials={"goood": Trial(0.1), "good": Trial(0.1)})
    repository = ModelRepository(tmp_path, lifecycle=options)

    def said() -> list[str]:
        return [m for m in caplog.messages if "--canary" in m]

    repository.scan()
    repository.scan()
    (message,) = said()
    assert "names model goood" in message and "(good)" in message
    (tmp_path / "goood").mkdir()
    repository.scan()
    (tmp_path / "goood").rmdir()
    repository.scan()
    assert len(said()) == 2
    repository.close()


def test_a_canary_answers_its_share_of_keys(client: PredictClient, server: Server) -> None:
    assert server.repository.served_versions("canary") == [1, 2]
    found = {f"user {i}": _ask(client, "canary", key=f"user {i}")[0] for i in range(100)}
    assert 15 <= sum(v == 2 for v in found.values()) <= 45  # 30 of 100, 3.3 standard deviations
    for user, version in list(found.items())[:10]:
        assert _ask(client, "canary", models.ranker_request(3, 5), key=user)[0] == version
    assert [_ask(client, "canary", key="user 1", version=v)[0] for v in (1, 2)] == [1, 2]


def test_without_a_key_the_request_decides(client: PredictClient) -> None:
    requests = [models.ranker_request(2, seed) for seed in range(25)]
    found = [_ask(client, "canary", request)[0] for request in requests]
    assert set(found) == {1, 2}
    assert [_ask(client, "canary", request)[0] for request in requests] == found


def test_a_prepared_request_is_its_keys(client: PredictClient) -> None:
    """It is the version's that would rank it, and its slices go there as well."""
    user = {name: value for name, value in REQUEST.items() if name.startswith("user_")}
    items = {name: value for name, value in REQUEST.items() if name not in user}
    prepared = ranking_pb2.RequestFeatures(model_spec=pb.ModelSpec(name="canary"))
    for name, value in user.items():
        prepared.features[name].CopyFrom(encode(value))
    slices = ranking_pb2.RankRequest(model_spec=prepared.model_spec, request_features=prepared.features)
    for name, value in items.items():
        slices.candidates[name].CopyFrom(encode(value))
    later = ranking_pb2.RankRequest(candidates=slices.candidates)
    prepare = client.channel.unary_unary(f"/{RANKING_SERVICE}/PrepareRequest")
    rank = client.channel.stream_stream(f"/{RANKING_SERVICE}/RankSlices")
    versions = set()
    for number in range(8):
        metadata = ((ROUTING_KEY, f"user {number}"),)
        expected = 2 if is_drawn(f"user {number}".encode(), 0.3) else 1
        data = prepare(prepared.SerializeToString(), metadata=metadata, timeout=30)
        assert ranking_pb2.RequestState.FromString(data).model_spec.version.value == expected
        messages = (message.SerializeToString() for message in (slices, later))
        answers = [
            ranking_pb2.RankResponse.FromString(a) for a in rank(messages, metadata=metadata, timeout=30)
        ]
        assert [answer.model_spec.version.value for answer in answers] == [expected] * 2
        versions.add(expected)
    assert versions == {1, 2}


def test_over_rest(server: Server) -> None:
    def ask(key: str) -> str:
        strings = np.vectorize(bytes.decode, otypes=[object])
        features = {n: (strings(v) if v.dtype == object else v).tolist() for n, v in REQUEST.items()}
        body = json.dumps({"inputs": features}).encode()
        url = f"http://127.0.0.1:{server.rest_address.rpartition(':')[2]}/v1/models/canary:predict"
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {ROUTING_KEY: key}), timeout=60
        ) as done:
            return done.headers["jaxrank-version"]

    keys = [f"user {i}" for i in range(8)]
    assert [ask(key) for key in keys] == ["2" if is_drawn(key.encode(), 0.3) else "1" for key in keys]


def test_another_configuration_ends_a_trial(directory: Path, tmp_path: Path, start_server: Callable) -> None:
    """The canary is a field of the configuration; one without it promotes."""
    text = f'model_config_list {{ config {{ name: "canary" base_path: "{directory / "canary"}" %s }} }}'
    path = tmp_path / "models.config"
    path.write_text(text % "trial { canary: 1 }")
    options = LifecycleOptions(self_check=False, rollback_requests=0)
    server = start_server(read_model_config(path), lifecycle=options)
    client = PredictClient(server.address)
    assert {_ask(client, "canary", key=str(i))[0] for i in range(5)} == {2}
    path.write_text(text % "trial { canary: 0.001 version: 1 }")
    server.repository.reconfigure(read_model_config(path))
    assert {_ask(client, "canary", key=str(i))[0] for i in range(5)} == {2}
    path.write_text(text % "")
    server.repository.reconfigure(read_model_config(path))
    assert server.repository.served_versions("canary") == [2]
    client.close()
    server.stop()
    path.write_text(text % "trial { shadow: 1.5 }")
    with pytest.raises(ConfigError, match="trial of model 'canary': the shadow share is 1.5"):
        read_model_config(path)


def test_flags() -> None:
    assert read_trials(["a=0.05", "b=b=1"], ["a=1"]) == {"a": Trial(0.05, 1.0), "b=b": Trial(1.0)}
    for wrong in ("a", "a=", "a=x", "a=-1", "a=nan", "=1"):
        with pytest.raises(ShareError):
            read_trials([wrong], [])
    assert ModelConfig("a", Path("/"), trial=Trial()).policy_with_trial.latest == 2


def test_splitting() -> None:
    assert split([1, 2, 3], None) == (3, None)
    assert split([1, 2, 3], Trial()) == (2, 3)
    assert split([1, 2, 3], Trial(version=1)) == (3, 1)
    assert split([1, 2, 3], Trial(version=7)) == (3, None)
    assert split([3], Trial()) == (3, None)
    keys = [str(i).encode() for i in range(5000)]
    some, more = ({k for k in keys if is_drawn(k, share)} for share in (0.05, 0.2))
    assert some < more and abs(len(more) - 1000) < 120
    assert not any(is_drawn(k, 0.0) for k in keys) and all(is_drawn(k, 1.0) for k in keys)


# --- shadow ---


def _get(server: Server, path: str) -> dict:
    url = f"http://127.0.0.1:{server.rest_address.rpartition(':')[2]}/v1/models/{path}"  # type: ignore[union-attr]
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_a_shadow_scores_what_another_version_answered(client: PredictClient, server: Server) -> None:
    requests = [models.ranker_request(30, seed) for seed in range(4)]
    answers = []
    for number, request in enumerate(requests, start=1):
        version, scores = _ask(client, "shadow", request)
        answers.append(scores)
        assert version == 1
        eventually(lambda n=number: (_get(server, "shadow/shadow")["shadow"] or {}).get("compared") == n)
    report = _get(server, "shadow/shadow")["shadow"]
    assert (report["version"], report["other"], report["dropped"], report["failed"]) == (1, 2, 0, 0)
    others = [_ask(client, "shadow", request, version=2)[1] for request in requests]
    for name, found in report["outputs"].items():
        differences = np.abs([a[name] - o[name] for a, o in zip(answers, others, strict=True)])
        assert differences.max() > 1e-3
        assert found["max_abs"] == pytest.approx(differences.max(), rel=1e-4)
        assert found["mean_abs"] == pytest.approx(differences.mean(), rel=1e-4)
        assert 0 <= found["top10_overlap"] <= 1 and 0 < found["inversions"] < found["ordered_pairs"]
    # Requests that name a version are no part of it.
    assert _get(server, "shadow/shadow")["shadow"]["compared"] == 4
    assert _get(server, "good/shadow") == {"model": "good", "shadow": None}
    with pytest.raises(urllib.error.HTTPError) as caught:
        _get(server, "nobody/shadow")
    assert caught.value.code == 404


def test_a_shadow_scores_every_slice(client: PredictClient, server: Server) -> None:
    user = {name: value for name, value in REQUEST.items() if name.startswith("user_")}
    items = {name: value for name, value in REQUEST.items() if name not in user}
    before = _get(server, "shadow/shadow")["shadow"]
    known = 0 if before is None else before["compared"]
    handle = client.prepare("shadow", user)
    for number, request in enumerate((user, handle), start=1):
        assert len(list(client.rank_slices("shadow", request, [items] * 3, timeout=30))) == 3
        expected = known + 3 * number
        eventually(lambda n=expected: (_get(server, "shadow/shadow")["shadow"] or {}).get("compared") == n)
    report = _get(server, "shadow/shadow")["shadow"]
    assert report["failed"] == (0 if before is None else before["failed"])


def test_a_busy_shadow_drops_samples(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    @contextmanager
    def lend(name: str, version: int) -> Iterator[tuple[Model, int]]:
        go.wait()
        with server.repository.lend(name, version) as lent:
            yield lent

    shadow = Shadow(lend)
    sample = Sample("shadow", 1, 2, REQUEST, ["click"], {"click": np.zeros(30, np.float32)})
    shadow.offer(sample)
    eventually(shadow._samples.empty)  # it is being scored
    for _ in range(MAX_WAITING + 3):
        shadow.offer(sample)
    report = shadow.report("shadow")
    assert report is not None and (report.compared, report.dropped) == (0, 3)
    go.set()
    eventually(lambda: (shadow.report("shadow") or report).compared == MAX_WAITING + 1)
    wrong = Sample("shadow", 1, 2, {"no": np.zeros(1)}, None, {})
    shadow.offer(wrong)
    eventually(lambda: (shadow.report("shadow") or report).failed == 1)
    assert "missing features" in (shadow.report("shadow") or report).last_failure
    shadow.close()


def test_memory_over_http(server: Server) -> None:
    versions = _get(server, "canary/memory")["versions"]
    assert [v["version"] for v in versions] == [1, 2]
    for version in versions:
        assert version["expected"]["total"] > version["expected"]["tables"] > 0
        assert version["resident"] > 0 and "weights.irpa" in version["files"]
