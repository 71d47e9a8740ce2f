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
from functools import partial
from pathlib import Path
from types import TracebackType

import grpc
import msgspec
import numpy as np

from serving.wire.reflection import PREDICTION_SERVICE

_LEAD = 0.05
"""Seconds before the first arrival."""
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


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What came back.

    Attributes:
        seconds: in which the counted requests were to be sent.
        latencies_ms: of each answer since its intended time, ascending; others are not in it.
        sent: requests that were counted.
        statuses: how many had each gRPC status, by its name.
        behind_ms: the client's own largest delay, which is part of the latencies.
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

    def goodput(self, slo_ms: float) -> float:
        """Answers per second that came in time."""
        return float(np.searchsorted(self.latencies_ms, slo_ms, side="right")) / self.seconds


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
    """The process. A context."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serve_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, load: Load) -> Sample:
        """Blocks until every request has ended. Raises `RuntimeError` if the process died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(msgspec.json.encode(load) + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(
                f"the load client ended with status {self._process.wait()}; its error is above"
            )
        return msgspec.json.decode(line, type=Sample)

    def __enter__(self) -> "LoadClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


class _Recorder:
    """Answers of one load, from gRPC's threads."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._left = 0
        self._changed = threading.Condition()
        self.behind = 0.0

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
                self._statuses[code.name] += 1
                if code == grpc.StatusCode.OK:
                    self._latencies.append((now - intended) * 1e3)

    def wait(self, left: int = 0) -> None:
        """Until at most so many are in flight. Each has a deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._left <= left)

    def sample(self) -> Sample:
        return Sample(
            seconds=self._seconds,
            latencies_ms=sorted(self._latencies),
            sent=sum(self._statuses.values()),
            statuses=dict(self._statuses),
            behind_ms=self.behind * 1e3,
        )


def run(load: Load, numbers: Iterator[int] | None = None) -> Sample:
    """Sends a load from this process. `numbers` are those of the requests to send."""
    numbers = itertools.count() if numbers is None or load.from_first else numbers
    requests = msgspec.msgpack.decode(Path(load.requests).read_bytes(), type=Requests)
    limits = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
    ]
    with grpc.insecure_channel(load.address, options=limits) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
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
                recorder.behind = max(recorder.behind, time.perf_counter() - intended)
                send(intended)
        recorder.wait()
    return recorder.sample()


def main() -> None:
    numbers = itertools.count()
    for line in sys.stdin.buffer:
        sample = run(msgspec.json.decode(line, type=Load), numbers)
        sys.stdout.buffer.write(msgspec.json.encode(sample) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
