"""RankingService and slices through every protocol, against a server that keeps no request sides."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
import pytest

from serving.client import PredictClient, RequestState
from serving.grpc_server import Server
from serving.protocols.kserve_tensors import datatype_of, to_raw
from serving.scheduling import ANY_TIME, PRIORITY
from serving.state import StateCounts
from serving.state.request_states import RequestStates
from serving.wire import kserve_pb2, predict_pb2, ranking_pb2
from serving.wire.codec import encode_content
from serving.wire.reflection import INFERENCE_SERVICE, RANKING_SERVICE
from tests import models
from tests.serving.conftest import StartServer
from tests.serving.lifecycle.versions import eventually

Features = dict[str, np.ndarray]
CANDIDATES, SLICES = 200, 10


@pytest.fixture(scope="module")
def server(models_dir: Path, start_server: StartServer) -> Server:
    """With room for one stream of slices."""
    return start_server(models_dir, rest_port=0, workers=3)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[PredictClient]:
    client = PredictClient(server.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def plain(models_dir: Path, start_server: StartServer) -> Iterator[PredictClient]:
    """A client of a server that computes every request on its own."""
    client = PredictClient(start_server(models_dir, state_cache_mb=0).address)
    yield client
    client.close()


def _scopes(features: Features) -> tuple[Features, Features]:
    """The request's own features, and its candidates'."""
    user = {name: value for name, value in features.items() if name.startswith("user_")}
    return user, {name: value for name, value in features.items() if name not in user}


def _slices(candidates: Features, count: int = SLICES) -> list[Features]:
    rows = CANDIDATES // count
    return [{n: v[i * rows : (i + 1) * rows] for n, v in candidates.items()} for i in range(count)]


def _counts(server: Server) -> StateCounts:
    with server.repository.lend("ranker") as (model, _):
        counts = model.state_counts
    assert counts is not None
    return counts


def _assert_same(found: Features, expected: Features) -> None:
    """Bit for bit: a state is what the same program made of the same block."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _in_slices(plain: PredictClient, user: Features, slices: list[Features]) -> Features:
    """Of the same calls: a matrix product of other sizes may round otherwise."""
    return _joined([plain.predict("ranker", {**user, **part}) for part in slices])


def _joined(answers: list[Features]) -> Features:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def test_a_prepared_request_has_predicts_scores(
    server: Server, client: PredictClient, plain: PredictClient
) -> None:
    features = models.ranker_request(CANDIDATES, 1)
    user, candidates = _scopes(features)
    expected = plain.predict("ranker", features)
    before = _counts(server)
    state = client.prepare("ranker", user)
    assert state.version == 3 and 2.0 < state.seconds <= 5.0
    _assert_same(client.rank("ranker", state, candidates), expected)
    _assert_same(client.rank("ranker", user, candidates), expected)
    _assert_same(client.predict("ranker", features), expected)
    _assert_same(client.rank("ranker", state, candidates, outputs=["watch"]), {"watch": expected["watch"]})
    slices = _slices(candidates)
    ranked = _joined(list(client.rank_slices("ranker", state, slices)))
    _assert_same(ranked, _in_slices(plain, user, slices))
    for name, value in expected.items():
        np.testing.assert_allclose(ranked[name], value, rtol=0, atol=1e-6)
    after = _counts(server)
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4 + SLICES)


def _first_waits(monkeypatch: pytest.MonkeyPatch, computes: threading.Event, go_on: threading.Event) -> None:
    """The first request side that is computed says so, and takes until `go_on`."""
    made = RequestStates._made

    def slowly(self: RequestStates, *arguments: object) -> object:
        if not computes.is_set():
            computes.set()
            assert go_on.wait(60)
        return made(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RequestStates, "_made", slowly)


def test_a_handle_made_beside_one_of_lower_priority_holds(
    server: Server, client: PredictClient, plain: PredictClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = models.ranker_request(CANDIDATES, 10)
    user, candidates = _scopes(features)
    expected, computes, go_on = plain.predict("ranker", features), threading.Event(), threading.Event()
    _first_waits(monkeypatch, computes, go_on)
    asked = ranking_pb2.RequestFeatures(model_spec=predict_pb2.ModelSpec(name="ranker"))
    for name, value in user.items():
        asked.features[name].CopyFrom(encode_content(value))
    prepare = client.channel.unary_unary(f"/{RANKING_SERVICE}/PrepareRequest")
    low = prepare.future(asked.SerializeToString(), timeout=60, metadata=((PRIORITY, "low"),))
    try:
        assert computes.wait(60)
        state = client.prepare("ranker", user)
        assert 2.0 < state.seconds <= 5.0
        _assert_same(client.rank("ranker", state, candidates), expected)
    finally:
        go_on.set()
    assert ranking_pb2.RequestState.FromString(low.result()).handle == state.handle


def _infer(server: Server, features: Features) -> Features:
    request = kserve_pb2.ModelInferRequest(model_name="ranker")
    for name, value in features.items():
        request.inputs.add(name=name, datatype=datatype_of(value), shape=value.shape)
        request.raw_input_contents.append(to_raw(value))
    with grpc.insecure_channel(server.address) as channel:
        data = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer")(
            request.SerializeToString(), timeout=30
        )
    response = kserve_pb2.ModelInferResponse.FromString(data)
    raw = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: np.frombuffer(content, np.float32) for output, content in raw}


def _rest(server: Server, features: Features) -> Features:
    inputs = {n: json.loads(json.dumps(v.tolist(), default=bytes.decode)) for n, v in features.items()}
    url = f"http://{server.rest_address}/v1/models/ranker:predict"
    with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode(), timeout=30) as response:
        outputs = json.load(response)["outputs"]
    return {name: np.array(value, np.float32) for name, value in outputs.items()}


def test_slices_through_every_protocol_compute_the_request_side_once(
    server: Server, client: PredictClient, plain: PredictClient
) -> None:
    """They arrive at once: those that come second wait for the first."""
    features = models.ranker_request(CANDIDATES, 2)
    user, candidates = _scopes(features)
    slices = _slices(candidates)
    expected, before = _in_slices(plain, user, slices), _counts(server)
    calls: list[Callable[[Features], Features]] = [
        lambda f: client.predict("ranker", f),
        lambda f: _infer(server, f),
        lambda f: _rest(server, f),
    ]
    with ThreadPoolExecutor(SLICES) as pool:
        asked = [pool.submit(calls[i % len(calls)], {**user, **part}) for i, part in enumerate(slices)]
        _assert_same(_joined([future.result() for future in asked]), expected)
    after = _counts(server)
    assert (after.misses - before.misses, after.hits - before.hits) == (1, SLICES - 1)


def test_slices_that_wait_leave_their_turns_to_others(
    server: Server, client: PredictClient, plain: PredictClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of one request are all that there may be at once; while one of them computes the request side,
    which takes long, another request is answered."""
    features, other = (models.ranker_request(CANDIDATES, seed) for seed in (8, 9))
    user, candidates = _scopes(features)
    slices = _slices(candidates, server._turns._turns)
    before, computes, go_on = _counts(server), threading.Event(), threading.Event()
    _first_waits(monkeypatch, computes, go_on)
    with ThreadPoolExecutor(len(slices)) as pool:
        asked = [pool.submit(client.predict, "ranker", {**user, **part}) for part in slices]
        try:
            assert computes.wait(60)
            eventually(lambda: server._turns._inside == len(slices))
            _assert_same(client.predict("ranker", other, timeout=20), plain.predict("ranker", other))
        finally:
            go_on.set()
        _assert_same(_joined([future.result() for future in asked]), _in_slices(plain, user, slices))
    after = _counts(server)
    assert (after.misses - before.misses, after.hits - before.hits) == (2, len(slices) - 1)


def test_a_stream_answers_each_slice_as_it_comes(client: PredictClient, plain: PredictClient) -> None:
    """The next slice is sent after the last one's answer; all are of one request."""
    features = models.ranker_request(CANDIDATES, 3)
    user, candidates = _scopes(features)
    sent: SimpleQueue[Features | None] = SimpleQueue()
    answers = client.rank_slices("ranker", user, iter(sent.get, None))
    found = []
    for part in _slices(candidates):
        sent.put(part)
        found.append(next(answers))
    sent.put(None)
    assert list(answers) == []
    _assert_same(_joined(found), _in_slices(plain, user, _slices(candidates)))


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        pytest.param(
            lambda c, state, user, items: c.prepare("ranker", {**user, "item_id": items["item_id"]}),
            "INVALID_ARGUMENT",
            "'item_id' belongs to the candidate; send it with candidates",
            id="candidates prepared",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", state, {**user, **items}),
            "INVALID_ARGUMENT",
            "'user_age' belongs to the request; send it with the request's features",
            id="request features as candidates",
        ),
        pytest.param(
            lambda c, state, user, items: c.prepare("ranker", {"user_age": user["user_age"]}),
            "INVALID_ARGUMENT",
            "missing features: 'user_city', 'user_device', 'user_items'; the signature takes: user_age",
            id="not all features",
        ),
        pytest.param(
            lambda c, state, user, items: c.prepare("ranker", {**user, "user_age": np.zeros(2, np.float32)}),
            "INVALID_ARGUMENT",
            "'user_age' has 2 rows; it is the same for all candidates: send one row\"",
            id="two users",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", {}, items),
            "INVALID_ARGUMENT",
            "missing features",
            id="neither handle nor features",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", state, {n: v[:0] for n, v in items.items()}),
            "INVALID_ARGUMENT",
            "at least one candidate",
            id="no candidates",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", RequestState("7", 3, 1.0), items),
            "INVALID_ARGUMENT",
            "'7' is not a state handle",
            id="no handle",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", RequestState(f"3-{'0' * 32}", 3, 1.0), items),
            "NOT_FOUND",
            "send request_features, or call PrepareRequest again",
            id="unknown handle",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", RequestState(f"2-{'0' * 32}", 2, 1.0), items),
            "FAILED_PRECONDITION",
            "is of version 2 of model 'ranker', and version 3 answers; .* PrepareRequest again",
            id="another version",
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("no", state, items), "NOT_FOUND", "no model 'no'", id="model"
        ),
        pytest.param(
            lambda c, state, user, items: c.rank("ranker", state, items, outputs=["score"]),
            "INVALID_ARGUMENT",
            "output_filter names 'score'",
            id="output",
        ),
        pytest.param(
            lambda c, state, user, items: list(c.rank_slices("ranker", state, [items], timeout=61.0)),
            "INVALID_ARGUMENT",
            "needs a deadline of at most 60 s",
            id="a long stream",
        ),
    ],
)
def test_refused(client: PredictClient, call: Callable, code: str, words: str) -> None:
    user, candidates = _scopes(models.ranker_request(5, 4))
    with pytest.raises(grpc.RpcError, match=words) as caught:
        call(client, client.prepare("ranker", user), user, candidates)
    assert caught.value.code().name == code


def test_streams_leave_workers_to_others(client: PredictClient) -> None:
    """With three turns, one stream may be open."""
    features = models.ranker_request(CANDIDATES, 5)
    user, candidates = _scopes(features)
    sent: SimpleQueue[Features | None] = SimpleQueue()
    open_stream = client.rank_slices("ranker", user, iter(sent.get, None))
    sent.put(candidates)
    next(open_stream)
    with pytest.raises(grpc.RpcError, match="1 streams of RankSlices are open") as refused:
        next(client.rank_slices("ranker", user, [candidates]))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(client.predict("ranker", features)["click"]) == CANDIDATES
    sent.put({**candidates, **user})
    with pytest.raises(grpc.RpcError, match="'user_age' belongs to the request"):
        next(open_stream)
    # A stream that was refused, or whose time has passed, is closed.
    with pytest.raises(grpc.RpcError) as late:
        for _ in client.rank_slices("ranker", user, iter(SimpleQueue().get, None), timeout=0.2):
            pass
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_may_think_between_slices(models_dir: Path, start_server: StartServer) -> None:
    """For longer than the first message of a call may take to come."""
    client = PredictClient(start_server(models_dir, message_seconds=0.3).address)
    user, candidates = _scopes(models.ranker_request(CANDIDATES, 11))
    sent: SimpleQueue[Features | None] = SimpleQueue()
    answers = client.rank_slices("ranker", user, iter(sent.get, None), timeout=30)
    sent.put(candidates)
    first = next(answers)
    time.sleep(1.5)
    sent.put(candidates)
    _assert_same(next(answers), first)
    sent.put(None)
    assert list(answers) == []
    with pytest.raises(grpc.RpcError) as ended:
        next(client.rank_slices("ranker", user, iter(sent.get, None), timeout=30))
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    sent.put(None)
    client.close()


def test_each_slice_is_a_request(server: Server, client: PredictClient) -> None:
    """It is counted, and waits for a turn of its own."""
    user, candidates = _scopes(models.ranker_request(CANDIDATES, 7))

    def counted() -> int:
        found = server._monitor.counts.read()
        return sum(counts.success for key, counts in found.items() if key.api == "RankSlices")

    before, sent = counted(), SimpleQueue[Features | None]()
    answers = client.rank_slices("ranker", user, iter(sent.get, None), timeout=20)
    for number, part in enumerate(_slices(candidates, 3), 1):
        sent.put(part)
        next(answers)
        assert counted() == before + number
    sent.put(None)
    assert list(answers) == []
    with ExitStack() as turns:
        for _ in range(3):
            turns.enter_context(server._turns.turn(ANY_TIME))
        with pytest.raises(grpc.RpcError) as late:
            next(client.rank_slices("ranker", user, [candidates], timeout=0.2))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_server_that_keeps_nothing_says_so(plain: PredictClient) -> None:
    features = models.ranker_request(5, 6)
    user, candidates = _scopes(features)
    with pytest.raises(grpc.RpcError, match="keeps no request state; .*--state-cache-mb") as refused:
        plain.prepare("ranker", user)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    _assert_same(plain.rank("ranker", user, candidates), plain.predict("ranker", features))
    slices = plain.rank_slices("ranker", user, [candidates])
    _assert_same(next(slices), plain.predict("ranker", features))
