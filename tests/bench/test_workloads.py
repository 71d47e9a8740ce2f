"""Arrivals are what they say, and recorded traffic keeps its gaps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.profiles import PROFILES
from bench.workloads import ARRIVALS, WorkloadError, bursty, day_curve, poisson, read_traffic
from jaxrank.tfrecord import framed
from serving.wire import predict_pb2 as pb
from serving.wire.log_metadata_pb2 import LogMetadata
from serving.wire.prediction_log_pb2 import ClassifyLog, PredictionLog, PredictLog


@pytest.mark.parametrize("name", ARRIVALS)
def test_schedules_are_functions_of_a_seed(name: str) -> None:
    """Of 40,000 expected arrivals the number is within 4 standard deviations."""
    times = ARRIVALS[name](100.0, 400.0, 1)
    assert times == ARRIVALS[name](100.0, 400.0, 1) != ARRIVALS[name](100.0, 400.0, 2)
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 400
    assert len(times) == pytest.approx(40_000, rel=0.02)


def _dispersion(times: list[float]) -> float:
    """Variance over mean of the numbers of arrivals in tenths of a second: 1 for a Poisson process."""
    counts = np.histogram(times, bins=4000, range=(0.0, 400.0))[0]
    return float(counts.var() / counts.mean())


def test_bursts_are_bursts() -> None:
    assert _dispersion(poisson(100.0, 400.0, 3)) == pytest.approx(1.0, abs=0.1)
    assert _dispersion(bursty(100.0, 400.0, 3)) > 5


@pytest.mark.parametrize("seconds", [0.5, 2.0, 2.5])
def test_every_load_has_bursts(seconds: float) -> None:
    """Loads as short as the suite's: one burst in each half second, with four times the rate in a fifth."""
    for seed in range(50):
        times = np.array(bursty(4000.0, seconds, seed))
        counts = np.histogram(times, bins=round(seconds / 0.01), range=(0.0, seconds))[0]
        high = counts > 100  # of 160 in a burst and 10 otherwise
        assert np.mean(high) == pytest.approx(0.2, abs=0.04 + 0.02 / seconds)
        assert 1 <= np.count_nonzero(np.diff(high.astype(int), prepend=0) > 0) <= seconds / 0.5
        assert len(times) == pytest.approx(4000 * seconds, rel=0.1)


def test_a_day_has_a_night() -> None:
    """Four in the morning has an eighth of nine in the evening."""
    hours = np.histogram(day_curve(100.0, 480.0, 4), bins=24, range=(0.0, 480.0))[0]
    assert hours[4] / hours[21] == pytest.approx(0.25 / 2.0, rel=0.15)


def _log(name: str, **arrived: Any) -> bytes:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=name))
    request.model_spec.version.value = 7
    metadata = LogMetadata(**arrived)
    log = PredictionLog(predict_log=PredictLog(request=request), log_metadata=metadata.SerializeToString())
    return log.SerializeToString()


def _file(path: Path, *records: bytes) -> Path:
    path.write_bytes(b"".join(map(framed, records)))
    return path


def test_calls_are_replayed_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    """The file has them in the order of their answers; other calls are counted."""
    other = PredictionLog(classify_log=ClassifyLog()).SerializeToString()
    logs = (_log(name, arrival_ns=ns) for name, ns in (("b", 10**18 + 250_000_000), ("a", 10**18)))
    traffic = read_traffic(_file(tmp_path / "file", *logs, other))
    assert [r.model_spec.name for r in traffic.requests] == ["a", "b"]
    assert traffic.timed() == [0.0, 0.25] and traffic.skipped == 1
    assert not any(r.model_spec.HasField("version") for r in traffic.requests)
    assert len(read_traffic(tmp_path / "file", most=1).requests) == 1


def test_calls_of_one_second_are_spread_over_it(tmp_path: Path) -> None:
    """As TensorFlow Serving logs them."""
    logs = [_log(str(i), timestamp_secs=s) for i, s in enumerate((100, 100, 100, 100, 101, 103, 103))]
    traffic = read_traffic(_file(tmp_path / "file", *logs))
    assert traffic.timed() == [0.0, 0.25, 0.5, 0.75, 1.0, 3.0, 3.5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "is not a file of recorded calls", id="absent"),
        pytest.param(b"", "is not a TFRecord file", id="empty"),
        pytest.param(b"no records at all, but text", "is not a TFRecord file", id="text"),
        pytest.param(framed(b""), "has no Predict calls, only 1 other records", id="nothing"),
        pytest.param(framed(_log("a"))[:-6], "is damaged: .*cut off", id="cut off"),
    ],
)
def test_files_that_have_no_traffic(data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "file").write_bytes(data)
    with pytest.raises(WorkloadError, match=message):
        read_traffic(tmp_path / "file")


def test_traffic_without_times(tmp_path: Path) -> None:
    traffic = read_traffic(_file(tmp_path / "file", _log("a")))
    with pytest.raises(WorkloadError, match="have no times"):
        traffic.timed()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_profiles_are_what_they_say(profile) -> None:  # noqa: ANN001
    """The model's matrix products are those of its experts, gates, towers and heads."""
    model = profile.model()
    request = model.request(profile.candidates, seed=1)
    assert request["user_history"].shape == (1, profile.history)
    assert request["item_fields"].shape == (profile.candidates, profile.candidate_fields)
    module = model.build()
    module(request)
    stacked = [layer for stack in (*module.experts, *module.towers) for layer in stack.layers]
    layers = [*stacked, *module.gates, *module.heads]
    products = sum(2 * int(np.prod(layer.kernel.shape)) for layer in layers)
    assert products / 1e6 == pytest.approx(profile.mflop, rel=0.1)
    # The commonest of the ids comes far more often than one of 2,000 would by chance.
    counts = np.bincount(request["item_fields"].ravel())
    assert counts.max() > 20 * counts.sum() / 2000
