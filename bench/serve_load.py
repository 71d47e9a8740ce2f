"""A client process that sends requests at times drawn beforehand: `python -m bench.serve_load`.

A request is a user and candidates. They come in turns of different lengths, which go on from one load to the
next, so that a user does not come back while a server still keeps what it made for the last one.

The schedule does not wait for answers, as users do not. A request's latency counts from the time at which it
was to be sent, so a server that stalls is charged for everything that arrived meanwhile, and so is a client
that falls behind ("coordinated omission", Tene, 2013). Refused and late requests count as infinitely late.

The process reads a line of JSON (`Load`) from its input and answers with one (`Sample`): it starts once, and
shares no interpreter with a server.
"""

import itertools
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import grpc
import msgspec
import numpy as np

from serving.wire.reflection import PREDICTION_SERVICE

_LEAD = 0.05
"""Seconds before the first arrival."""
_CONNECT_SECONDS = 20.0
"""A server that was there before accepts a connection within that time."""
_APART = 6_000
"""Requests between the first of a client and that of the one that takes its place: no user of the last
seconds comes again."""
_MAX_MESSAGE = 256 << 20


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send: requests at `times`, or as fast as `clients` get their answers."""

    address: str
    requests: str
    """File of `write_requests`."""
    seconds: float
    deadline: float
    """Seconds, as the gRPC timeout of each request."""
    times: list[float] = []
    """Seconds from the start, ascending, whatever the answers do (bench/workloads.py)."""
    clients: int = 0
    """Requests in flight, each sent when the one before it is answered."""
    settle: float = 0.0
    """Seconds at the start whose requests are sent and not counted."""
    from_first: bool = False
    """Whether to send the file's requests from the first one, as they were recorded."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Nothing was sent."""

    why: str


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What came back.

    Attributes:
        seconds: in which the counted requests were to be sent; of a closed loop, to its last answer.
        latencies_ms: of each answer since its intended time, ascending; others are not in it.
        sent: requests that were counted.
        statuses: how many had each gRPC status, by its name.
        behind_ms: the 99th percentile of the client's own delays, which are part of the latencies.
    """

    seconds: float
    latencies_ms: list[float]
    sent: int
    statuses: dict[str, int]
    behind_ms: float

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of all requests was answered; infinite where it was not."""
        rank = math.ceil(share * self.sent)
        return self.latencies_ms[rank - 1] if 0 < rank <= len(self.latencies_ms) else math.inf

    def in_time(self, slo_ms: float) -> float:
        """The share of all requests that was answered within these milliseconds."""
        return self._answered(slo_ms) / max(self.sent, 1)

    def goodput(self, slo_ms: float) -> float:
        """Answers per second that came in time."""
        return self._answered(slo_ms) / self.seconds

    def _answered(self, slo_ms: float) -> float:
        return float(np.searchsorted(self.latencies_ms, slo_ms, side="right"))


class Requests(msgspec.Struct, frozen=True):
    """Serialized PredictRequests in two parts: bytes of one behind the other are the message of both."""

    users: list[bytes]
    candidates: list[bytes]

    def message(self, number: int) -> bytes:
        """Of a request; after the last user comes the first one again."""
        return self.users[number % len(self.users)] + self.candidates[number % len(self.candidates)]


def write_requests(path: Path, requests: Requests) -> Path:
    """The file that `Load.requests` names."""
    path.write_bytes(msgspec.msgpack.encode(requests))
    return path


class LoadClient:
    """The process. A context. One that has died is started again for the next load."""

    def __init__(self) -> None:
        self._started = 0
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        first = self._started * _APART
        self._started += 1
        return subprocess.Popen(
            [sys.executable, "-m", "bench.serve_load", str(first)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def send(self, load: Load) -> Sample:
        """Blocks until every request has ended. Raises `RuntimeError` if the server accepts no connection, or
        the process died."""
        if self._process.poll() is not None:
            self._process = self._start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(msgspec.json.encode(load) + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"the load client ended with status {status}; its error is above")
        answer = msgspec.json.decode(line, type=Sample | Failed)
        if isinstance(answer, Failed):
            raise RuntimeError(answer.why)
        return answer

    def __enter__(self) -> "LoadClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # nobody waits for what it still sends
            self._process.kill()
        self._process.communicate()


class _Recorder:
    """Answers of one load, from gRPC's threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = 0.0
        """When the last counted request ended."""
        self.behind: list[float] = []
        """Seconds by which each request was sent after its time."""
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._left = 0
        self._changed = threading.Condition()

    def begin(self) -> None:
        with self._changed:
            self._left += 1

    def end(self, intended: float, counted: bool, call: grpc.Future) -> None:
        now = time.perf_counter()
        code = call.code()  # type: ignore[attr-defined]
        with self._changed:
            self._left -= 1
            self._changed.notify_all()
            if counted:
                self.last = now
                self._statuses[code.name] += 1
                if code == grpc.StatusCode.OK:
                    self._latencies.append((now - intended) * 1e3)

    def wait(self, left: int = 0) -> None:
        """Until at most so many are in flight. Each has a deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._left <= left)

    def sample(self) -> Sample:
        return Sample(
            seconds=self.seconds,
            latencies_ms=sorted(self._latencies),
            sent=sum(self._statuses.values()),
            statuses=dict(self._statuses),
            behind_ms=float(np.quantile(self.behind, 0.99, method="higher")) * 1e3 if self.behind else 0.0,
        )


def run(load: Load, numbers: Iterator[int] | None = None) -> Sample:
    """Sends a load from this process. `numbers` are those of the requests to send. Raises
    `grpc.FutureTimeoutError` where the server accepts no connection."""
    numbers = itertools.count() if numbers is None or load.from_first else numbers
    requests = msgspec.msgpack.decode(Path(load.requests).read_bytes(), type=Requests)
    limits = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
    ]
    with grpc.insecure_channel(load.address, options=limits) as channel:
        grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        predict = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
        recorder = _Recorder(load.seconds - load.settle)
        start = time.perf_counter() + _LEAD

        def send(intended: float) -> None:
            recorder.begin()
            counted = intended - start >= load.settle
            call = predict.future(requests.message(next(numbers)), timeout=load.deadline)
            call.add_done_callback(partial(recorder.end, intended, counted))

        if load.clients:
            while time.perf_counter() < start + load.seconds:
                recorder.wait(load.clients - 1)
                send(time.perf_counter())
        else:
            for at in load.times:
                intended = start + at
                if (early := intended - time.perf_counter()) > 0:
                    time.sleep(early)
                recorder.behind.append(time.perf_counter() - intended)
                send(intended)
        recorder.wait()
        if load.clients:
            # What was sent within the time is answered after it: as much again where an answer takes as long.
            recorder.seconds = max(recorder.seconds, recorder.last - start - load.settle)
    return recorder.sample()


def main() -> None:
    numbers = itertools.count(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        load = msgspec.json.decode(line, type=Load)
        try:
            answer: Sample | Failed = run(load, numbers)
        except grpc.FutureTimeoutError:
            answer = Failed(f"{load.address} accepted no connection within {_CONNECT_SECONDS:g} s")
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # of the terminal: the suite says what becomes of it
        main()
