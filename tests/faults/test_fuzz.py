"""Hostile requests over the wire to a real server: whatever comes, it answers with a refusal of its own, goes
on giving right scores, and keeps no memory.

`JAXRANK_FUZZED_RPCS` is how many are sent; `make faults` sends 50,000.
"""

import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.mutations import (
    MUTATIONS,
    Mutation,
    bytes_mutated,
    floodable,
    json_mutated,
    lists,
    mutated,
)
from tests.faults.requests import (
    BINARY,
    CALLS,
    DOCUMENTS,
    FEATURES,
    HTTP1,
    HTTP2,
    INFER,
    LENGTHS,
    RAW,
    USER,
    Call,
    administration,
    reload_of,
)
from tests.faults.server import ServerProcess, serve

RPCS = int(os.environ.get("JAXRANK_FUZZED_RPCS", "600"))
GROWTH_MIB = 64
"""Of resident memory after the first requests: caches and arenas of threads."""
FLOOD_GROWTH_MIB = 512
"""The same after floods, of which one takes up to 50 MiB while it is read, on any thread."""
FLOOD_SECONDS = 5.0
"""In which another request is answered while the server reads hundreds of thousands of numbers."""
HANDLE_SECONDS = 2.0
"""A handle lives for at least half of 5 s."""

Code = grpc.StatusCode
REFUSALS = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION,
    Code.NOT_FOUND,
    Code.UNIMPLEMENTED,
    Code.RESOURCE_EXHAUSTED,
}
HTTP_REFUSALS = {200, 400, 404, 405, 411, 413, 429, 501}
ABSENT = "did not become available"
"""Of a configuration whose models do not load, to which TensorFlow Serving's status is UNKNOWN."""
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(models_dir: Path, example_models: Path) -> Iterator[ServerProcess]:
    for name in ("classifier", "regressor"):
        (models_dir / name).symlink_to(example_models / "models" / name)
    with serve(models_dir) as running:
        yield running


def _fuzz(share: float, strategy: st.SearchStrategy, send: Callable) -> None:
    @settings(
        max_examples=max(10, int(RPCS * share)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: tuple) -> None:
        send(*drawn)

    run()


class _Attack:
    """Sends requests, and between them healthy ones whose scores are compared."""

    def __init__(self, server: ServerProcess, tally: Counter[str]):
        self.server, self.client, self.statuses, self._tally = server, server.client(), Counter(), tally
        self.connection = http.client.HTTPConnection(*server.rest, timeout=60)
        self._expected = self.client.predict("ranker", FEATURES)
        self._handle, self._prepared_at = "", 0.0
        self.before = server.rss_mib(), server.open_files()

    def warmed(self) -> None:
        """What every thread and buffer takes once was taken."""
        self.before = self.server.rss_mib(), self.server.open_files()

    def healthy(self, every: int = 25) -> None:
        """A request was sent."""
        self._tally["fuzzed_rpcs"] += 1
        if self._tally["fuzzed_rpcs"] % every == 0:
            found = self.client.predict("ranker", FEATURES, timeout=60)
            assert all(np.array_equal(found[name], value) for name, value in self._expected.items())

    def rpc(self, call: Call, mutations: list[Mutation]) -> None:
        """A mutated call."""
        self.statuses[self.answer(call, mutations).name] += 1
        self.healthy()

    def answer(self, call: Call, mutations: list[Mutation]) -> grpc.StatusCode:
        """The status of a mutated call, which is a score or a refusal of ours; OK without mutations."""
        first, *others = call.messages
        if call.prepared:
            first = type(first)(handle=self._handle_now())  # type: ignore[call-arg]
            first.MergeFrom(call.messages[0])
        data = [mutated(message, mutations) for message in (first, *others)]
        channel, method = self.client.channel, f"/{call.method}"
        try:
            match call.kind:
                case "unary":
                    channel.unary_unary(method)(data[0], timeout=60)
                case "stream":
                    list(channel.stream_stream(method)(iter(data), timeout=30))
                case "watch":
                    answers = channel.unary_stream(method)(data[0], timeout=60)
                    next(answers)
                    answers.cancel()
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""  # type: ignore[attr-defined]
            refused = code in REFUSALS or (code is Code.UNKNOWN and ABSENT in details)
            assert refused and (mutations or code is Code.OK), (call.method, error)
            return code
        return Code.OK

    def _handle_now(self) -> str:
        if time.monotonic() - self._prepared_at > HANDLE_SECONDS:
            self._prepared_at = time.monotonic()
            self._handle = self.client.prepare("ranker", USER, timeout=60).handle
        return self._handle

    def post(self, document: tuple, mutations: list[Mutation]) -> None:
        """A mutated document."""
        path, body = document
        self._post(path, json_mutated(body, mutations), {})

    def binary(self, of_json: list[Mutation], of_tensors: list[Mutation], length: int | str) -> None:
        """KServe's REST form with tensors behind the JSON, and with a wrong length of that."""
        text = json_mutated(BINARY, of_json)
        told = str(len(text) + length) if isinstance(length, int) else length
        self._post(INFER, text + bytes_mutated(RAW, of_tensors), {HEADER: told.encode()}, "binary ")

    def _post(self, path: str, body: bytes, headers: dict, kind: str = "") -> None:
        self.connection.request("POST", path, body, headers)
        answer = self.connection.getresponse()
        answer.read()
        self.statuses[f"{kind}{answer.status}"] += 1
        assert answer.status in HTTP_REFUSALS
        self.healthy()

    def noise(self, port: str, start: bytes, mutations: list[Mutation], data: bytes) -> None:
        """Bytes on a socket."""
        with socket.create_connection(getattr(self.server, port), timeout=0.02) as raw:
            try:
                raw.sendall(bytes_mutated(start, mutations) + data)
                while raw.recv(4096):
                    pass
            except OSError:
                pass  # it waits for more, or closed the connection
        self.healthy()

    def end(self) -> None:
        """Closes connections, and counts what the server came to."""
        self.client.close()
        self.connection.close()
        self._tally["crashes"] += not self.server.alive()
        self._tally["faults"] += len(self.server.faults())

    def check(self, growth_mib: float = GROWTH_MIB) -> None:
        """Raises where the server ended, told of a fault, or keeps more than it had when it was `warmed`."""
        assert self.server.alive() and not self.server.faults()
        assert self.server.rss_mib() - self.before[0] < growth_mib
        assert self.server.open_files() - self.before[1] < 50
        print(f"{dict(self.statuses)}; {self.server.rss_mib() - self.before[0]:.1f} MiB more")


_BINARY = st.tuples(
    st.one_of(st.just([]), MUTATIONS),
    st.one_of(st.just([]), MUTATIONS),
    st.one_of(st.just(0), st.integers(-99, 99), st.sampled_from(LENGTHS)),
)


def test_hostile_requests(server: ServerProcess, tally: Counter[str]) -> None:
    """Mutated gRPC and HTTP requests, bytes on both sockets, between requests whose scores are checked."""
    attack = _Attack(server, tally)
    calls = st.tuples(st.sampled_from(CALLS), MUTATIONS)
    documents = st.tuples(st.sampled_from(DOCUMENTS), MUTATIONS)
    noise = st.tuples(
        st.sampled_from(["grpc", "rest"]), st.sampled_from([HTTP2, HTTP1, b""]), MUTATIONS, st.binary()
    )
    try:
        _fuzz(0.02, calls, attack.rpc)
        _fuzz(0.02, documents, attack.post)
        for call in CALLS:
            attack.answer(call, [])
        attack.binary([], [], 0)
        attack.warmed()
        _fuzz(0.56, calls, attack.rpc)
        attack.connection.close()  # the server closes it when it is idle; the next request opens it again
        _fuzz(0.24, documents, attack.post)
        _fuzz(0.08, _BINARY, attack.binary)
        attack.connection.close()
        _fuzz(0.08, noise, attack.noise)
    finally:
        attack.end()
    attack.check()
    for status in ("OK", "INVALID_ARGUMENT", "200", "400", "binary 200", "binary 400"):
        assert attack.statuses[status], status


def test_hostile_administration(ranker_bundle: Path, tmp_path: Path, tally: Counter[str]) -> None:
    """Calls that load, unload and reconfigure. One that is taken may leave nothing served: the configuration
    of before is given again, and the ranker's scores are as they were."""
    models = tmp_path / "models"
    for name in ("ranker", "spare"):
        (models / name).mkdir(parents=True)
        (models / name / "3").symlink_to(ranker_bundle)
    calls = administration(models)
    restore = Call(calls[0].method, (reload_of(models),))
    with serve(models, "--max-num-load-retries", "0") as server:
        attack = _Attack(server, tally)

        def send(call: Call, mutations: list[Mutation]) -> None:
            attack.statuses[attack.answer(call, mutations).name] += 1
            attack.answer(restore, [])
            attack.healthy(1)

        try:
            for call in calls:
                send(call, [])
            attack.warmed()
            _fuzz(0.02, st.tuples(st.sampled_from(calls), MUTATIONS), send)
        finally:
            attack.end()
        attack.check()


class _Meanwhile(threading.Thread):
    """Asks a model again and again: how long the slowest answer took, and what was wrong."""

    def __init__(self, server: ServerProcess):
        super().__init__()
        self._client, self._enough = server.client(), threading.Event()
        self.slowest, self.wrong = 0.0, list[grpc.RpcError]()

    def run(self) -> None:
        while not self._enough.wait(0.01):
            began = time.monotonic()
            try:
                self._client.predict("ranker", FEATURES, timeout=60)
            except grpc.RpcError as error:
                self.wrong.append(error)
            self.slowest = max(self.slowest, time.monotonic() - began)

    def end(self) -> None:
        self._enough.set()
        self.join()
        self._client.close()


def test_floods(server: ServerProcess, tally: Counter[str]) -> None:
    """Each repeated field of a message and each list of a document with 10,000 to 200,000 more elements: a
    shape of so many dimensions, so many inputs. Others are answered meanwhile."""
    attack = _Attack(server, tally)
    meanwhile = _Meanwhile(server)
    meanwhile.start()
    numbers = range(0, 2**16, 2**16 // 7)

    def floods(count: int, turn: int) -> Iterator[list[Mutation]]:
        for i in range(count):
            yield [Mutation("flood", (i + 0.5) / count, numbers[(turn + i) % len(numbers)])]

    try:
        for turn, call in enumerate(CALLS):
            for mutations in floods(len(floodable(call.messages[0])), turn):
                attack.rpc(call, mutations)
        for turn, (path, document) in enumerate(DOCUMENTS):
            for mutations in floods(len(lists(document)), turn):
                attack.post((path, document), mutations)
        for mutations in floods(len(lists(BINARY)), 0):
            attack.binary(mutations, [], 0)
    finally:
        meanwhile.end()
        attack.end()
    attack.check(FLOOD_GROWTH_MIB)
    print(f"the slowest answer meanwhile took {meanwhile.slowest:.2f} s")
    assert not meanwhile.wrong and meanwhile.slowest < FLOOD_SECONDS
