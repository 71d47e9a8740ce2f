"""The suite `serve` runs, and its client counts from the time at which a request was to be sent."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import serve
from bench.dense_build import build
from bench.results import Figure, write_results
from bench.serve_load import Load, LoadClient, Requests, Sample, run
from bench.serve_overhead import Spent
from bench.serve_processes import Running, jaxrank_server
from bench.serve_report import figures
from bench.serve_search import Search
from bench.user_models import open_model
from bench.workloads import poisson
from jaxrank.tfrecord import framed
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.log_metadata_pb2 import LogMetadata
from serving.wire.prediction_log_pb2 import PredictionLog, PredictLog
from tests.bench.conftest import TINY


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers start for seconds."""
    monkeypatch.setattr(serve, "QUICK", replace(serve.QUICK, rounds=2))


def test_quick_run(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.json"
    names = ["--models", "tiny", "--overhead-model", "tiny", "--overload-model", "tiny"]
    # 2 s: the least that a test machine keeps whatever else runs on it.
    options = ["--quick", "--slo-ms", "2000", "--work", str(work), "--out", str(out)]
    soaked = [Figure(name=name, value=7.0, unit="") for name in ("soak_minutes", "soak_wrong_scores")]
    write_results(tmp_path / "soak.json", "soak", "soaked", soaked)
    serve.run(serve.parse([*names, *options]), {"tiny": TINY})
    found = json.loads(out.read_text())
    figures = {f["name"]: f["value"] for f in found["figures"]}
    assert figures["soak_minutes"] == figures["soak_wrong_scores"] == 7.0
    # Suites that have not run beside this one.
    assert [n["name"] for n in found["not_measured"]] == ["load_p99_ratio", "fuzzed_rpcs", "crashes"]
    # Both blocks and the scores are copied, features are not: they make blocks several times their size.
    assert 0 < figures["copies_per_byte"] < 20
    assert figures["throughput_at_slo_vs_tf"] > 0 and figures["goodput_at_2x"] > 0
    assert figures["goodput_at_2x_degraded"] > 0 and figures["overhead_us_per_request"] > 0
    assert figures["tiny/max_abs_error"] < 1e-5


def test_a_model_of_ones_own(work: Path, server: Running, tmp_path: Path) -> None:
    """Its SavedModel is not there, so TensorFlow is listed; a server of the protocol is measured beside ours,
    on requests that are drawn and on recorded ones."""
    bundle = shutil.copytree(work / "tiny" / "bundle", tmp_path / "models" / "tiny" / "1")
    records = []
    for seed in range(20):
        request = pb.PredictRequest(model_spec=pb.ModelSpec(name="somebody's"))
        for name, value in TINY.request(7, seed).items():
            request.inputs[name].CopyFrom(encode_content(value))
        metadata = LogMetadata(arrival_ns=10**18 + seed * 20_000_000).SerializeToString()
        log = PredictionLog(predict_log=PredictLog(request=request), log_metadata=metadata)
        records.append(framed(log.SerializeToString()))
    recorded = tmp_path / "recorded"
    recorded.write_bytes(b"".join(records))
    out = tmp_path / "serve.json"
    files = ["--work", str(tmp_path / "work"), "--out", str(out), "--replay", str(recorded)]
    options = ["--quick", "--slo-ms", "2000", "--tfs-address", server.address, "--arrivals", "bursty"]
    options += ["--parts", "throughput"]
    serve.main([str(bundle), *files, *options])
    found = json.loads(out.read_text())
    figures = {f["name"]: f["value"] for f in found["figures"]}
    for name in (serve.OURS, serve.TFS):
        assert figures[f"tiny/throughput/{name}"] > 0 and figures[f"tiny/replay_p50/{name}"] > 0
        assert figures[f"tiny/replay_goodput/{name}"] == 1.0
    assert figures["tiny/max_abs_error"] < 1e-5
    missing = {m["name"]: m["why"] for m in found["not_measured"]}
    assert "saved_model, which the bundle was made of, is not here" in missing["tiny/throughput/tensorflow"]
    assert missing["goodput_at_2x"] == "that part did not run"


def test_servers_are_compared_before_they_are_measured(work: Path, server: Running, tmp_path: Path) -> None:
    """One that is not reachable is listed; ours is refused where its scores are off by 1e-3."""
    model = open_model(work / "tiny" / "bundle", tmp_path, name="tiny")
    _, first = serve.requests(model, tmp_path)
    found, addresses = serve.Found(100.0, tmp_path), {serve.OURS: server.address, serve.TFS: "127.0.0.1:1"}
    serve._compare(found, serve.Measured("tiny", "iree"), model, model.built, addresses, first)
    assert list(addresses) == [serve.OURS]
    (missing,) = found.missing
    assert missing.name == f"tiny/throughput/{serve.TFS}" and missing.why.startswith("UNAVAILABLE: ")
    moved = [
        replace(e, outputs={n: v + np.float32(1e-3) for n, v in e.outputs.items()}) for e in model.examples
    ]
    model = replace(model, examples=tuple(moved))
    with pytest.raises(RuntimeError, match="tiny: scores differ from TensorFlow's by 1.0e-03"):
        serve._compare(found, serve.Measured("tiny", "iree"), model, model.built, addresses, first)


@pytest.fixture(scope="module")
def server(work: Path) -> Iterator[Running]:
    """Our server with the tiny model."""
    with jaxrank_server({"tiny": build(TINY, work).bundle}) as running:
        yield running


@pytest.fixture(scope="module")
def messages(work: Path) -> str:
    """Requests for it."""
    return str(serve.requests(TINY, work)[0])


def test_a_server_that_stalls_is_charged_for_what_arrives_meanwhile(server: Running, messages: str) -> None:
    """A third of all requests arrive while the server is stopped: they wait up to a second, and p99 says so.
    A client that waits for each answer would have sent one of them."""
    times = poisson(60.0, 3.0, seed=0)
    load = Load(address=server.address, requests=messages, seconds=3.0, deadline=30.0, times=times)
    stall = threading.Timer(1.0, _stall, (server.process, 1.0))
    with LoadClient() as client:
        stall.start()
        sample = client.send(load)
        stall.join()
    assert sample.statuses == {"OK": sample.sent}
    assert sample.percentile(0.99) > 700
    assert sample.percentile(0.85) > 200


def _stall(process: int, seconds: float) -> None:
    os.kill(process, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process, signal.SIGCONT)


def test_requests_that_are_refused_are_counted(server: Running, messages: str) -> None:
    """A deadline that no server keeps: nothing is good, and nothing is lost."""
    times = poisson(100.0, 0.5, seed=0)
    sample = run(Load(address=server.address, requests=messages, seconds=0.5, deadline=1e-6, times=times))
    assert sample.sent == sum(sample.statuses.values()) > 0
    assert set(sample.statuses) <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"} and not sample.goodput(1e9)


def test_no_user_comes_twice_in_a_turn(messages: str) -> None:
    """Of the requests that a server keeps state for at one time, none has the features of another."""
    requests = msgspec.msgpack.decode(Path(messages).read_bytes(), type=Requests)
    assert len(set(requests.users)) == len(requests.users) >= 4096
    found = pb.PredictRequest.FromString(requests.message(7 + len(requests.users)))
    assert found.model_spec.name == "tiny" and set(found.inputs) == set(TINY.inputs)
    assert requests.message(7).startswith(requests.users[7]) and requests.message(8) != requests.message(7)


def test_arrivals_are_poisson() -> None:
    times = poisson(200.0, 50.0, seed=1)
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 50
    # Of 10,000 exponential gaps: mean and standard deviation are 1 / rate, up to 4 standard errors.
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 200, rel=0.04)
    assert (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5 == pytest.approx(1 / 200, rel=0.06)


def test_what_is_not_answered_is_infinitely_late() -> None:
    sample = Sample(
        seconds=2.0, latencies_ms=[float(n) for n in range(1, 99)], sent=100,
        statuses={"OK": 98, "RESOURCE_EXHAUSTED": 2}, behind_ms=0.0,
    )  # fmt: skip
    assert sample.percentile(0.5) == 50 and sample.percentile(0.98) == 98
    assert sample.percentile(0.99) == float("inf")
    assert sample.goodput(50.0) == 25


def test_the_search_finds_the_largest_rate_that_keeps_the_promise() -> None:
    """Against a server whose p99 passes 100 ms at 70 requests per second."""
    search = Search(high=120.0, slo_ms=100.0)
    for _ in range(10):
        rate = search.next_rate()
        latency = 50.0 if rate <= 70 else 150.0
        search.record(
            Sample(seconds=1.0, latencies_ms=[latency] * int(rate), sent=int(rate), statuses={}, behind_ms=0)
        )
    assert search.low <= 70 <= search.high and search.high - search.low < 0.2
    assert search.throughput == int(search.low)


def _answered(count: int, late: int = 0) -> Sample:
    return Sample(
        seconds=1.0, latencies_ms=[10.0] * count + [900.0] * late, sent=count + late,
        statuses={"OK": count + late}, behind_ms=0.0,
    )  # fmt: skip


def test_figures_are_of_every_round() -> None:
    """The ratio is of servers of one round, which met the same machine: surer than either throughput."""
    searches: dict[str, list[Search]] = {serve.OURS: [], serve.TENSORFLOW: []}
    for speed in (50, 60, 80):
        for name, times in ((serve.OURS, 2), (serve.TENSORFLOW, 1)):
            searches[name].append(Search(high=4.0 * speed * times, slo_ms=100.0))
            searches[name][-1].record(_answered(speed * times))
    rounds = [{serve.PLAIN: {0.9: _answered(n), 2.0: _answered(n // 2, late=n)}} for n in (40, 50, 60)]
    spent = [Spent(1000.0 * n, 100.0, 200.0, 10, 50) for n in (1, 2, 4)]
    found = serve.Found(
        100.0, Path("absent"), [serve.Measured("m", "iree", searches=searches)],
        serve.Overhead("m", 7, 3, spent), serve.Overload("m", "iree", rounds),
    )  # fmt: skip
    made = {f.name: f for f in figures(found)[0]}
    ratio, ours = made["throughput_at_slo_vs_tf"], made["m/throughput/jaxrank"]
    assert ratio.lo == ratio.value == ratio.hi == pytest.approx(2.0) and ratio.runs == 3
    assert ours.lo is not None and ours.lo < 100 < ours.value == pytest.approx((100 * 120 * 160) ** (1 / 3))
    assert made["m/throughput_vs_tensorflow"].value == pytest.approx(2.0)
    assert made["goodput_at_2x"].value == pytest.approx(0.5)
    assert made["m/goodput/plain/2"].note.startswith("225 OK")
    assert "Student's over 3" in made["m/goodput/plain/0.9"].note
    assert made["overhead_us_per_request"].value == pytest.approx((70 * 170 * 370) ** (1 / 3))
    assert made["copies_per_byte"].value == 0.5


def test_a_promise_that_no_rate_keeps_says_what_the_least_rate_took() -> None:
    search = Search(high=64.0, slo_ms=100.0)
    for _ in range(3):
        rate = search.next_rate()
        sample = Sample(seconds=1.0, latencies_ms=[450.0] * 8, sent=8, statuses={"OK": 8}, behind_ms=0.0)
        search.record(sample)
    measured = serve.Measured("m", "iree", searches={serve.OURS: [search]})
    found = {f.name: f for f in figures(serve.Found(100.0, Path("absent"), [measured]))[0]}
    figure = found["m/throughput/jaxrank"]
    assert rate == 8.0 and figure.value == 0.0
    assert figure.note.startswith(
        "0 of 1 rounds had a rate that kept the promise; at 8.0/s the median was 450 ms"
    )
