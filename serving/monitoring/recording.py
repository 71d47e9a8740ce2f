"""Recorded traffic: a share of the answered requests with their scores, in a file that `jaxrank compile
--examples` and TensorFlow Serving's own tools read.

Requests only leave references on a bounded queue; a thread makes the messages and writes them. When the queue
is full, or the disk, records are dropped and counted.
"""

import fcntl
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client.core import CounterMetricFamily, Metric

from jaxrank.tfrecord import framed
from serving.monitoring.errors import MonitoringError
from serving.monitoring.timeline import Exchange, Timeline
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.log_metadata_pb2 import LogMetadata
from serving.wire.prediction_log_pb2 import PredictionLog, PredictLog

log = logging.getLogger("jaxrank")

_QUEUED = 256
_QUEUED_BYTES = 64 << 20
_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass(frozen=True)
class _Record:
    model: str
    version: int
    arrived_ns: int
    exchange: Exchange
    size: int


class Recorder:
    """Writes whole records to a file, which belongs to one process; at `max_bytes` the file becomes `FILE.1`,
    in place of an earlier one."""

    def __init__(self, path: Path, sample: float, max_bytes: int):
        """Begins a new file; one that is there becomes `FILE.1`. Raises `MonitoringError` where it cannot be
        written, or another process writes it."""
        self._path, self._sample, self._max_bytes = path, sample, max_bytes
        self._changed = threading.Condition()
        self._queue: deque[_Record] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._written = self._written_bytes = self._dropped = self._failed = 0
        self._warned = float("-inf")
        try:
            self._file = self._open()
        except BlockingIOError:
            raise MonitoringError(
                f"{path} is written by another server; give each its own file (--record)"
            ) from None
        except OSError as error:
            raise MonitoringError(f"{path} cannot be written: {error.strerror} (--record)") from error
        self._size = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def observe(self, timeline: Timeline) -> None:
        """Records the request, if it was answered and is one of the sample."""
        exchange = timeline.exchange
        if exchange is None or timeline.reason or random.random() >= self._sample:
            return
        arrived = time.time_ns() - round((time.monotonic() - timeline.began) * 1e9)
        size = _size(exchange.inputs) + _size(exchange.outputs)
        record = _Record(timeline.model, timeline.version, arrived, exchange, size)
        with self._changed:
            if self._closed or len(self._queue) >= _QUEUED or self._queued_bytes + size > _QUEUED_BYTES:
                self._dropped += 1
                return
            self._queue.append(record)
            self._queued_bytes += size
            self._changed.notify()

    def families(self) -> list[Metric]:
        """What became of the requests that were sampled."""
        records = CounterMetricFamily(
            "jaxrank_records",
            "Sampled requests: written, dropped by a full queue, failed.",
            labels=("outcome",),
        )
        for outcome, count in (
            ("written", self._written),
            ("dropped", self._dropped),
            ("failed", self._failed),
        ):
            records.add_metric((outcome,), count)
        size = CounterMetricFamily("jaxrank_recorded_bytes", "Bytes written.", value=self._written_bytes)
        return [records, size]

    def close(self) -> None:
        """Writes what is queued, and brings it to the disk."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    break
                record = self._queue.popleft()
                self._queued_bytes -= record.size
            try:
                self._write(framed(_log_of(record, self._sample)))
                self._written += 1
            except Exception as error:  # the recorder goes on, whatever a disk does
                self._failed += 1
                if time.monotonic() - self._warned > _SECONDS_BETWEEN_WARNINGS:
                    self._warned = time.monotonic()
                    log.error("%s: a request is not recorded: %r", self._path, error)
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        """Raises `OSError`; the file then ends with the last whole record."""
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)
        self._written_bytes += len(data)

    def _rotate(self) -> None:
        """The new file is there before the old one is let go of."""
        os.fsync(self._file)
        file = self._open()
        os.close(self._file)
        self._file, self._size = file, 0

    def _open(self) -> int:
        """An empty file under the path, locked; what was there is `FILE.1`."""
        if self._path.exists():
            with self._path.open("rb") as there:
                # Another process holds its file's lock; ours is held by ourselves, on another description.
                if not self._is_own(there.fileno()):
                    fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def _is_own(self, file: int) -> bool:
        own = getattr(self, "_file", None)
        return own is not None and os.path.samestat(os.fstat(own), os.fstat(file))


def _size(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(
        array.nbytes + (sum(map(len, array.ravel().tolist())) if array.dtype == object else 0)
        for array in arrays.values()
    )


def _log_of(record: _Record, sample: float) -> bytes:
    """The serialized PredictionLog. A feature of the request is there once, also where the client repeated it
    on every row."""
    spec = pb.ModelSpec(name=record.model, signature_name=record.exchange.signature.name)
    spec.version.value = record.version
    metadata = LogMetadata(
        model_spec=spec, timestamp_secs=record.arrived_ns // 1_000_000_000, arrival_ns=record.arrived_ns
    )
    metadata.sampling_config.sampling_rate = sample
    request, response = pb.PredictRequest(model_spec=spec), pb.PredictResponse(model_spec=spec)
    for name, value in record.exchange.inputs.items():
        request.inputs[name].CopyFrom(encode_content(value))
    for name, value in record.exchange.outputs.items():
        response.outputs[name].CopyFrom(encode_content(value))
    return PredictionLog(
        log_metadata=metadata.SerializeToString(),
        predict_log=PredictLog(request=request, response=response),
    ).SerializeToString()
