"""When requests are sent, and recorded traffic.

An open-loop schedule is a plain function of a rate, a length and a seed: the times are known before the first
request is sent, and no answer changes them. A closed loop (`bench.serve_load.Load.clients`) has none: each
client waits for its answer. Times are seconds from the start, ascending.

| arrivals | intensity around the mean rate |
|---|---|
| `poisson` | constant: independent users |
| `bursty` | 4 times the rate in a fifth of the time, a quarter of it otherwise; a burst in each half second |
| `day` | a day's curve in the length of the load: quiet before dawn, twice the mean in the evening |

Recorded traffic (`read_traffic`) is replayed with the gaps that it had.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from jaxrank.errors import JaxrankError
from jaxrank.tfrecord import RecordError, looks_like_records, read_records
from serving.wire import predict_pb2 as pb
from serving.wire.log_metadata_pb2 import LogMetadata
from serving.wire.prediction_log_pb2 import PredictionLog

Arrivals = Callable[[float, float, int], list[float]]
"""`(requests per second on average, seconds, seed) -> times`."""

_BURST, _SHARE = 4.0, 0.2
"""Intensity of a burst over the mean rate, and the share of the time that bursts take."""
_PERIOD_SECONDS = 0.5
"""About as long is each period with one burst: the shortest loads have some."""
_HOURS = (
    0.8, 0.55, 0.4, 0.3, 0.25, 0.3, 0.45, 0.65, 0.8, 0.9, 0.95, 1.0,
    1.1, 1.1, 1.05, 1.05, 1.1, 1.2, 1.4, 1.65, 1.9, 2.0, 1.7, 1.2,
)  # fmt: skip
"""Of the mean rate by hour of the day; round numbers for a service that people use at home."""


class WorkloadError(JaxrankError):
    """A file of recorded traffic has nothing to send, or does not say when."""


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    rng = np.random.default_rng(seed)
    return _drawn(rng, np.array([0.0, seconds]), np.array([rate]))


def bursty(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process whose intensity is one of two. Each period has one burst, at a time of its
    own: the mean rate is that of every period, whatever the chance."""
    rng = np.random.default_rng(seed)
    periods = max(1, round(seconds / _PERIOD_SECONDS))
    length = seconds / periods
    calm = rate * (1 - _BURST * _SHARE) / (1 - _SHARE)
    begins = length * (np.arange(periods) + rng.uniform(0.0, 1 - _SHARE, periods))
    edges = np.stack([begins, begins + _SHARE * length], axis=1).ravel()
    intensities = [calm, *(_BURST * rate, calm) * periods]
    return _drawn(rng, np.concatenate([[0.0], edges, [seconds]]), np.array(intensities))


def day_curve(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process with a day's intensity, from midnight to midnight."""
    rng = np.random.default_rng(seed)
    hours = np.array(_HOURS)
    edges = np.linspace(0.0, seconds, len(hours) + 1)
    return _drawn(rng, edges, rate * hours / hours.mean())


ARRIVALS: Mapping[str, Arrivals] = {"poisson": poisson, "bursty": bursty, "day": day_curve}


def _drawn(rng: np.random.Generator, edges: np.ndarray, intensities: np.ndarray) -> list[float]:
    """A Poisson process with a constant intensity between each edge `[n + 1]` and the next: its number of
    points is Poisson, and each is independent of the others."""
    expected = np.concatenate([[0.0], np.cumsum(intensities * np.diff(edges))])
    drawn = rng.uniform(0.0, expected[-1], rng.poisson(expected[-1]))
    return np.sort(np.interp(drawn, expected, edges)).tolist()


@dataclass(frozen=True)
class Traffic:
    """Recorded calls in the order of their arrival.

    Attributes:
        times: seconds since the first of them; None where the file does not say.
        requests: what was asked, each of whatever version is served.
        skipped: records that are other calls.
    """

    times: list[float] | None
    requests: list[pb.PredictRequest]
    skipped: int

    @property
    def rate(self) -> float:
        """Requests per second over the recorded time; 0.0 where that is not known."""
        return len(self.requests) / self.times[-1] if self.times and self.times[-1] else 0.0

    def timed(self) -> list[float]:
        """The times. Raises `WorkloadError` where they are not known."""
        if self.times is None:
            raise WorkloadError(
                "the recorded calls have no times: nothing in their log_metadata says when they arrived"
            )
        return self.times


def read_traffic(path: Path, most: int | None = None) -> Traffic:
    """What `jaxrank serve --record` writes, or TensorFlow Serving's request logger: a TFRecord file of
    PredictionLog, the first `most` Predict calls of it.

    TensorFlow Serving's logs say only the second: calls of one second are spread evenly over it, in the
    file's order. Raises `WorkloadError`: the file is not there, is damaged, or has no Predict call.
    """
    found: list[tuple[int, bool, pb.PredictRequest]] = []
    skipped = 0
    if not path.is_file():
        raise WorkloadError(f"{path} is not a file of recorded calls")
    try:
        if not looks_like_records(path):
            raise WorkloadError(f"{path} is not a TFRecord file of PredictionLog (jaxrank serve --record)")
        for number, data in enumerate(read_records(path)):
            if len(found) == most:
                break
            log = PredictionLog.FromString(data)
            if log.WhichOneof("log_type") != "predict_log":
                skipped += 1
                continue
            found.append((*_arrived(log, f"{path}: record {number}"), _request(log)))
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except (RecordError, DecodeError) as error:
        raise WorkloadError(f"{path} is damaged: {error}") from error
    if not found:
        raise WorkloadError(f"{path} has no Predict calls, only {skipped} other records")
    known = all(ns for ns, _, _ in found)
    if known:
        found.sort(key=lambda f: f[0])  # stable: calls of one second stay in order
    requests = [request for _, _, request in found]
    return Traffic(_times([(ns, exact) for ns, exact, _ in found]) if known else None, requests, skipped)


def _request(log: PredictionLog) -> pb.PredictRequest:
    request = pb.PredictRequest()
    request.CopyFrom(log.predict_log.request)
    request.model_spec.ClearField("version")
    request.model_spec.ClearField("version_label")
    return request


def _arrived(log: PredictionLog, where: str) -> tuple[int, bool]:
    """Nanoseconds since the epoch, 0 where they are not known, and whether they are more than the second."""
    try:
        metadata = LogMetadata.FromString(log.log_metadata)
    except DecodeError as error:
        raise WorkloadError(f"{where}: its log_metadata is damaged: {error}") from error
    if metadata.arrival_ns:
        return metadata.arrival_ns, True
    return metadata.timestamp_secs * 1_000_000_000, False


def _times(arrived: list[tuple[int, bool]]) -> list[float]:
    """Seconds since the first."""
    seconds, start = [], 0
    while start < len(arrived):
        ns, exact = arrived[start]
        end = start + 1
        while not exact and end < len(arrived) and arrived[end] == (ns, False):
            end += 1
        seconds += [(ns - arrived[0][0]) / 1e9 + i / (end - start) for i in range(end - start)]
        start = end
    return sorted(seconds)
