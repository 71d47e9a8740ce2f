"""A real server at levels of degradation: what clients get, what they are told, and what it is worth under
overload."""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.degradation import DEGRADATION, DegradationError, Quality, load_degradation_config
from serving.grpc_server import Server, StartError
from serving.model import Model
from serving.scheduling import ANY_TIME
from serving.wire import predict_pb2 as pb
from serving.wire import ranking_pb2
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import PREDICTION_SERVICE, RANKING_SERVICE
from tests import models
from tests.serving.conftest import StartServer

FEWER = {"kind": "candidates", "exact": 10, "prior": "item_price"}
CONFIG = {
    "fewer": {"steps": [FEWER], "fixed_level": 1},
    "by_other": {"steps": [{**FEWER, "rest": "plain"}], "fixed_level": 1},
    "replaced": {"steps": [FEWER, {"kind": "model", "model": "other"}], "fixed_level": 2},
    "full": {"steps": [FEWER], "fixed_level": 0},
    "loaded": {"steps": [{**FEWER, "exact": 100}, FEWER]},
}
ROWS = 60
# Requests that share a call add their float32 products in another order.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def server(
    ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory, start_server: StartServer
) -> Server:
    """The ranker under the names of the config, and as `plain` and `other`."""
    path = tmp_path_factory.mktemp("degraded")
    shutil.copytree(ranker_bundle, path / "bundle")
    for name in (*CONFIG, "plain", "other"):
        (path / "models" / name).mkdir(parents=True)
        (path / "models" / name / "1").symlink_to(path / "bundle")
    config = path / "degradation.json"
    config.write_text(json.dumps({"models": CONFIG}))
    return start_server(path / "models", streams=1, workers=4, rest_port=0, degradation_config=config)


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def _ask(channel: grpc.Channel, model: str, rows: int = ROWS, timeout: float = 30) -> tuple[dict, str]:
    """Scores by output, and what the client is told."""
    call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
    answer, done = call.with_call(_request(model, rows), timeout=timeout)
    told = {k: v for k, v in done.trailing_metadata() or () if k == DEGRADATION}
    outputs = pb.PredictResponse.FromString(answer).outputs
    return {name: decode(name, tensor) for name, tensor in outputs.items()}, str(told.get(DEGRADATION, ""))


def _request(model: str, rows: int) -> bytes:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model))
    for name, value in models.ranker_request(rows, 9).items():
        request.inputs[name].CopyFrom(encode_content(value))
    return request.SerializeToString()


def _best(rows: int = ROWS) -> np.ndarray:
    chosen = np.zeros(rows, bool)
    chosen[np.argsort(-models.ranker_request(rows, 9)["item_price"], kind="stable")[:10]] = True
    return chosen


@pytest.mark.parametrize("name", ["fewer", "by_other"])
def test_the_best_candidates_are_scored_and_the_others_are_below(channel: grpc.Channel, name: str) -> None:
    full, _ = _ask(channel, "plain")
    found, told = _ask(channel, name)
    by_other = ";model=plain:1" if name == "by_other" else ""
    assert told == f"level=1{by_other};candidates=10/60"
    best = _best()
    for output, scores in found.items():
        np.testing.assert_allclose(scores[best], full[output][best], rtol=0, atol=TOLERANCE)
        assert scores[~best].max() < scores[best].min()
        order = models.ranker_request(ROWS, 9)["item_price"] if name == "fewer" else full[output]
        assert (np.argsort(-scores[~best]) == np.argsort(-order[~best])).all()


def test_the_steps_of_a_level_apply_together(channel: grpc.Channel) -> None:
    full, _ = _ask(channel, "plain")
    found, told = _ask(channel, "replaced")
    assert told == "level=2;model=other:1;candidates=10/60"
    np.testing.assert_allclose(found["click"][_best()], full["click"][_best()], rtol=0, atol=TOLERANCE)


def _ranked(channel: grpc.Channel, model: str) -> tuple[list[dict], str]:
    """Scores of a prepared request's two slices, half of the candidates each, and what the client is told."""
    features, spec = models.ranker_request(ROWS, 9), pb.ModelSpec(name=model)
    user = {name: value for name, value in features.items() if name.startswith("user_")}
    asked = ranking_pb2.RequestFeatures(model_spec=spec)
    for name, value in user.items():
        asked.features[name].CopyFrom(encode_content(value))
    prepare = channel.unary_unary(f"/{RANKING_SERVICE}/PrepareRequest")
    handle = ranking_pb2.RequestState.FromString(prepare(asked.SerializeToString(), timeout=30)).handle
    slices = [ranking_pb2.RankRequest(model_spec=spec, handle=handle), ranking_pb2.RankRequest()]
    for number, part in enumerate(slices):
        for name, value in features.items():
            if name not in user:
                half = value[number * ROWS // 2 : (number + 1) * ROWS // 2]
                part.candidates[name].CopyFrom(encode_content(half))
    messages = (part.SerializeToString() for part in slices)
    answers = channel.stream_stream(f"/{RANKING_SERVICE}/RankSlices")(messages, timeout=30)
    found = [ranking_pb2.RankResponse.FromString(answer).outputs for answer in answers]
    told = dict(answers.trailing_metadata() or ())
    return [{n: decode(n, t) for n, t in outputs.items()} for outputs in found], str(told.get(DEGRADATION))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fewer", "level=1;candidates=10/30"),
        ("by_other", "level=1;model=plain:1;candidates=10/30"),
        ("replaced", "level=2;model=other:1;candidates=10/30"),
    ],
)
def test_steps_apply_to_each_slice_of_a_handle(
    server: Server, channel: grpc.Channel, name: str, told: str
) -> None:
    assert server.degradation is not None
    before = server.degradation.qualities()[name]
    full, _ = _ask(channel, "plain")
    slices, found = _ranked(channel, name)
    assert found == told
    prices = models.ranker_request(ROWS, 9)["item_price"].reshape(2, -1)
    for number, (outputs, price) in enumerate(zip(slices, prices, strict=True)):
        best = np.zeros(len(price), bool)
        best[np.argsort(-price, kind="stable")[:10]] = True
        for output, scores in outputs.items():
            exact = full[output].reshape(2, -1)[number]
            np.testing.assert_allclose(scores[best], exact[best], rtol=0, atol=TOLERANCE)
            assert scores[~best].max() < scores[best].min()
    after, level = server.degradation.qualities()[name], int(told[6])
    assert after.answered[level] == before.answered.get(level, 0) + 2
    assert after.candidates_ranked_below == before.candidates_ranked_below + 40


def test_full_quality_says_nothing(channel: grpc.Channel) -> None:
    full, _ = _ask(channel, "plain")
    found, told = _ask(channel, "full")
    assert not told
    np.testing.assert_allclose(found["click"], full["click"], rtol=0, atol=TOLERANCE)


def test_few_candidates_are_all_scored(channel: grpc.Channel) -> None:
    full, _ = _ask(channel, "plain", rows=8)
    found, told = _ask(channel, "fewer", rows=8)
    assert told == "level=1"
    np.testing.assert_allclose(found["click"], full["click"], rtol=0, atol=TOLERANCE)


def test_http_has_it_as_a_header(server: Server) -> None:
    features = {
        name: [v.decode() if isinstance(v, bytes) else v for v in value.ravel().tolist()]
        if value.ndim == 1
        else [[v.decode() if isinstance(v, bytes) else v for v in row] for row in value.tolist()]
        for name, value in models.ranker_request(20, 9).items()
    }
    url = f"http://{server.rest_address}/v1/models/fewer:predict"
    asked = urllib.request.Request(url, json.dumps({"inputs": features}).encode())
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.headers[DEGRADATION] == "level=1;candidates=10/20"


def test_what_a_version_scored_itself_decides_about_it(
    server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer candidates, too; neither another model's scores nor its faults."""

    def outcomes(model: str) -> tuple[int, int]:
        found = server.repository._served[model][1].outcomes
        return found.requests, found.faults

    before = {name: outcomes(name) for name in ("fewer", "by_other", "replaced")}
    for name in before:
        _ask(channel, name)
    with server.repository.lend("other") as (other, _):
        predict = Model.predict

        def broken(self: Model, *arguments: Any) -> dict[str, np.ndarray]:
            if self is other:
                raise RuntimeError("a fault of the other model's")
            return predict(self, *arguments)

        monkeypatch.setattr(Model, "predict", broken)
        with pytest.raises(grpc.RpcError) as failed:
            _ask(channel, "replaced")
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    requests, faults = before["fewer"]
    assert outcomes("fewer") == (requests + 1, faults)
    assert {name: outcomes(name) for name in ("by_other", "replaced")} == {
        name: before[name] for name in ("by_other", "replaced")
    }


def test_a_request_without_a_turn_is_missed(server: Server, channel: grpc.Channel) -> None:
    assert server.degradation is not None
    before = server.degradation.qualities()["fewer"].missed
    with ExitStack() as turns:
        for _ in range(4):
            turns.enter_context(server._turns.turn(ANY_TIME))
        with pytest.raises(grpc.RpcError) as late:
            _ask(channel, "fewer", timeout=2)  # beside other tests, a call may take a second to be read
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    _wait(lambda: server.degradation.qualities()["fewer"].missed == before + 1)  # type: ignore[union-attr]


def test_a_model_that_is_gone_is_not_waited_for(server: Server, channel: grpc.Channel) -> None:
    """The step is skipped, and said to be."""
    before = server.degradation.qualities()["replaced"] if server.degradation else None
    server.repository.unload("other")
    try:
        found, told = _ask(channel, "replaced")
    finally:
        server.repository.load("other")
    assert told == "level=2;skipped=model:other;candidates=10/60" and len(found["click"]) == ROWS
    assert before is not None and server.degradation is not None
    after = server.degradation.qualities()["replaced"]
    assert after.skipped == {"model:other": 1} and not before.skipped
    assert after.answered[2] == before.answered.get(2, 0) + 1
    assert after.candidates_ranked_below == before.candidates_ranked_below + 50


def test_under_overload_more_is_answered_and_quality_comes_back(server: Server) -> None:
    """Requests of 4,000 candidates, more than one stream can score in time. In the first second they are
    scored in full; after a few seconds the level has risen (how far depends on the machine), and more of
    them are answered; when they end, the level falls again."""
    assert server.degradation is not None
    degradation, ended = server.degradation, threading.Event()
    request = _request("loaded", 4000)

    def use() -> None:
        client = PredictClient(server.address)
        call = client.channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
        while not ended.is_set():
            try:
                call(request, timeout=1.0)
            except grpc.RpcError as error:
                assert error.code() in (  # type: ignore[attr-defined]
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
        client.close()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        _wait(lambda: degradation.qualities()["loaded"].level > 0)
        full = degradation.qualities()["loaded"].answered.get(0, 0)
        _wait(lambda: _answered_with_less(degradation.qualities()["loaded"]) > 2 * full + 10)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    _wait(lambda: degradation.qualities()["loaded"].level == 0)
    assert degradation.qualities()["loaded"].level_changes <= 6


def _answered_with_less(quality: Quality) -> int:
    return sum(count for level, count in quality.answered.items() if level)


def _wait(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ({"steps": [{**FEWER, "prior": "item_tags"}]}, r"models.loaded.steps\[0\]: the prior 'item_tags' is"),
        (
            {"steps": [FEWER, {"kind": "history", "features": ["user_items"], "length": 3}]},
            r"steps\[1\]: feature 'user_items' has the fixed shape \[1, 6\]",
        ),
        ({"steps": [{"kind": "model", "model": "nobody"}]}, "nobody"),
    ],
)
def test_a_server_does_not_start_with_steps_that_do_not_fit(
    ranker_bundle: Path, tmp_path: Path, start_server: StartServer, steps: dict, text: str
) -> None:
    (tmp_path / "models" / "loaded").mkdir(parents=True)
    (tmp_path / "models" / "loaded" / "1").symlink_to(ranker_bundle)
    config = tmp_path / "degradation.json"
    config.write_text(json.dumps({"models": {"loaded": steps}}))
    with pytest.raises(StartError, match=text):
        start_server(tmp_path / "models", streams=1, degradation_config=config)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("{", "is not JSON"),
        ('{"models": {"m": {"steps": []}}}', r"models\[...\].steps"),
        ('{"models": {"m": {"steps": [{"kind": "sleep"}]}}}', "sleep"),
        ('{"models": {"m": {"steps": [{"kind": "model", "model": "m"}]}}}', "replaces the model by itself"),
        ('{"models": {"m": {"steps": [{"kind": "model", "model": "n"}], "fixed_level": 2}}}', "has 1 steps"),
        ('{"models": {"m": {"steps": [{"kind": "candidates", "exact": 0, "prior": "p"}]}}}', "exact"),
    ],
)
def test_a_config_that_is_wrong_names_the_field(tmp_path: Path, document: str, text: str) -> None:
    path = tmp_path / "degradation.json"
    path.write_text(document)
    with pytest.raises(DegradationError, match=text):
        load_degradation_config(path)
