"""What happened to one request, when."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import numpy as np

from jaxrank.manifest import Signature

Span = tuple[float, float]
"""Begin and end, seconds on the clock of `time.monotonic`."""

PHASES = ("decode", "host", "queue", "transfer", "compute", "encode")

MODEL_CALLS = ("Predict", "Classify", "Regress", "MultiInference", "ModelInfer", "Rank", "RankSlices")
"""Names of the calls that run a model; the others are not counted."""

TRACEPARENT = "traceparent"
"""W3C's name of the gRPC metadata, and of the HTTP header, with a trace context."""

UNROUTED = "unrouted"
"""The call of a request that was refused before anything looked at it."""


@dataclass(slots=True)
class Moved:
    """What went between the host's arrays and the buffers of a device, and how often host arrays were copied
    to make one of several. On a CPU, a device's buffers are IREE's.

    Attributes:
        transfers: movements; the arguments of a call that go together are one, its results are one.
        seconds: that they took on their stream.
        joined_bytes: copied between host arrays: padding, tiles, the parts of a result.
    """

    transfers: int = 0
    argument_bytes: int = 0
    result_bytes: int = 0
    joined_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: "Moved") -> None:
        self.transfers += other.transfers
        self.argument_bytes += other.argument_bytes
        self.result_bytes += other.result_bytes
        self.joined_bytes += other.joined_bytes
        self.seconds += other.seconds


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a request asked and got, for whoever records it: checked features and outputs by name."""

    signature: Signature
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(slots=True)
class Timeline:
    """Each step sets its own fields; what stays None did not happen.

    Attributes:
        entrypoint: "GRPC" or "REST".
        api: the call, in TensorFlow Serving's spelling; empty for one that runs no model.
        traceparent: the W3C trace context that came with it.
        model, version: what answers it; empty until it is found, so that no client invents names.
        status: gRPC's name of what the client is told.
        reason: why it was refused, a word of `serving.errors`.
        turn: the wait for a turn, before anything is decoded.
        queue: the wait for a stream.
        compute: from the first call on a stream to the result.
        transfer: seconds of `compute` that went into moving data, in proportion to stream time.
        decoded_bytes, encoded_bytes: copied by decoding, where arrays are no views of the message, and by
            encoding.
        remarks: what the client is told beside the answer.
        default_rows: by table, rows that did not arrive from its store.
    """

    entrypoint: str = ""
    api: str = ""
    traceparent: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    model: str = ""
    version: int = 0
    status: str = "OK"
    reason: str = ""
    candidates: int = 0
    turn: Span | None = None
    decode: Span | None = None
    host: Span | None = None
    queue: Span | None = None
    compute: Span | None = None
    encode: Span | None = None
    transfer: float = 0.0
    moved: Moved | None = None
    decoded_bytes: int = 0
    encoded_bytes: int = 0
    remarks: Mapping[str, str] = field(default_factory=dict)
    default_rows: Mapping[str, int] = field(default_factory=dict)
    exchange: Exchange | None = None

    def decoded(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The request's arrays are there."""
        began = self.began if self.turn is None else self.turn[1]
        self.decode, self.decoded_bytes = (began, time.monotonic()), copied_bytes(arrays)

    def refused(self, code: grpc.StatusCode, reason: str) -> None:
        """Writes what the client is told instead of an answer."""
        self.status, self.reason = code.name, reason

    def phases(self) -> list[float | None]:
        """Seconds of each of `PHASES`; their sum is the request's time, but for the steps between them."""
        compute = _seconds(self.compute)
        waits = [seconds for seconds in map(_seconds, (self.turn, self.queue)) if seconds is not None]
        return [
            _seconds(self.decode),
            _seconds(self.host),
            sum(waits) if waits else None,
            None if self.moved is None else self.transfer,
            compute if compute is None else compute - self.transfer,
            _seconds(self.encode),
        ]


def copied_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the arrays that own their memory: the others are views of the message that they came in."""
    total = 0
    for array in arrays.values():
        base = array.base
        if base is None or (isinstance(base, np.ndarray) and base.base is None):
            total += array.nbytes
    return total


def _seconds(span: Span | None) -> float | None:
    return None if span is None else span[1] - span[0]
