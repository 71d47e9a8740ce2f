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

from bench import serve, serve_found
from bench.dense_build import build
from bench.profiles import PROFILES
from bench.results import Figure, write_results
from bench.serve_found import Found, Measured, Overhead, Overload
from bench.serve_load import Load, LoadClient, Requests, Sample, run
from bench.serve_overhead import Spent
from bench.serve_processes import Running, jaxrank_server
from bench.serve_report import figures, of_model
from bench.serve_requests import requests
from bench.serve_scores import compare
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
    options += ["--candidates", "300"]
    soaked = [Figure(name=name, value=7.0, unit="") for name in ("soak_minutes", "soak_wrong_scores")]
    write_results(tmp_path / "soak.json", "soak", "soaked", soaked)
    serve.run(serve.parse([*names, *options]), {"tiny": TINY})
    found = json.loads(out.read_text())
    figures = {f["name"]: f["value"] for f in found["figures"]}
    assert figures["soak_minutes"] == figures["soak_wrong_scores"] == 7.0
    # Servers that are not here, and suites that have not run beside this one.
    missing = {n["name"]: n["why"] for n in found["not_measured"]}
    others = ["tiny/throughput/tensorflow_serving", "tiny/throughput/triton"]
    assert [*missing] == [*others, "load_p99_ratio", "fuzzed_rpcs", "damaged_bundles", "crashes"]
    assert missing[others[0]].startswith("no --tfs-address") and "pytriton" in missing[others[1]]
    # Both blocks and the scores are copied, features are not: they make blocks several times their size.
    assert 0 < figures["copies_per_byte"] < 20
    assert figures["throughput_at_slo_vs_tf"] > 0 and figures["goodput_at_2x"] > 0
    assert figures["goodput_at_2x_degraded"] > 0 and figures["overhead_us_per_request"] > 0
    assert figures["tiny/max_abs_error"] < 1e-5
    for name in (serve_found.OURS, serve_found.TENSORFLOW):
        assert 50 < figures[f"tiny/memory_mib/{name}"] < 5000
        assert figures[f"tiny/client_behind_ms/{name}"] > 0
    notes = {f["name"]: f["note"] for f in found["figures"]}
    sizes = {"tiny/throughput/jaxrank": 300, "goodput_at_2x": 300, "overhead_us_per_request": 200}
    for name, candidates in sizes.items():
        assert f"{candidates} candidates, " in notes[name]


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
    for name in (serve_found.OURS, serve_found.TFS):
        assert figures[f"tiny/throughput/{name}"] > 0 and figures[f"tiny/replay_p50/{name}"] > 0
        assert figures[f"tiny/replay_goodput/{name}"] == 1.0
    assert figures["tiny/max_abs_error"] < 1e-5
    missing = {m["name"]: m["why"] for m in found["not_measured"]}
    assert "saved_model, which the bundle was made of, is not here" in missing["tiny/throughput/tensorflow"]
    assert missing["goodput_at_2x"] == "that part did not run"


def test_servers_are_compared_before_they_are_measured(work: Path, server: Running, tmp_path: Path) -> None:
    """One that is not reachable is listed; ours is refused where its scores are off by 1e-3."""
    model = open_model(work / "tiny" / "bundle", tmp_path, name="tiny")
    _, first = requests(model, tmp_path)
    found, addresses = (
        Found(100.0, tmp_path),
        {serve_found.OURS: server.address, serve_found.TFS: "127.0.0.1:1"},
    )
    compare(found, Measured("tiny", "iree"), model, model.built, addresses, first)
    assert list(addresses) == [serve_found.OURS]
    (missing,) = found.missing
    assert missing.name == f"tiny/throughput/{serve_found.TFS}" and missing.why.startswith("UNAVAILABLE: ")
    moved = [
        replace(e, outputs={n: v + np.float32(1e-3) for n, v in e.outputs.items()}) for e in model.examples
    ]
    model = replace(model, examples=tuple(moved))
    measured = Measured("tiny", "iree")
    with pytest.raises(RuntimeError, match="tiny: scores differ from TensorFlow's by 1.0e-03"):
        compare(found, measured, model, model.built, addresses, first)
    assert 9e-4 < measured.error < 1.1e-3


@pytest.mark.parametrize("part", ["overhead", "overload"])
def test_no_part_times_wrong_scores(part: str, work: Path, tmp_path: Path) -> None:
    """A model whose certificate has scores off by 1e-3 has no figure of either part, and the reason."""
    model = open_model(work / "tiny" / "bundle", tmp_path, name="tiny")
    moved = [
        replace(e, outputs={n: v + np.float32(1e-3) for n, v in e.outputs.items()}) for e in model.examples
    ]
    out = tmp_path / "serve.json"
    options = ["--quick", "--parts", part, f"--{part}-model", "tiny", "--models", "tiny"]
    arguments = serve.parse([*options, "--work", str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit):
        serve.run(arguments, {"tiny": replace(model, examples=tuple(moved))})
    found = json.loads(out.read_text())
    missing = {n["name"]: n["why"] for n in found["not_measured"]}
    why = "WrongScoresError: tiny: scores differ from TensorFlow's by 1.0e-03"
    name = {"overhead": "overhead_us_per_request", "overload": "goodput_at_2x"}[part]
    assert missing[part] == missing[name] == why
    assert [f["name"] for f in found["figures"]] == ["slo_ms"]


@pytest.fixture(scope="module")
def server(work: Path) -> Iterator[Running]:
    """Our server with the tiny model."""
    with jaxrank_server({"tiny": build(TINY, work).bundle}) as running:
        yield running


@pytest.fixture(scope="module")
def messages(work: Path) -> str:
    """Requests for it."""
    return str(requests(TINY, work)[0])


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


def _kept(rate: float, kept: bool = True) -> Sample:
    """What came of a load, all of it within 50 ms or all of it late."""
    count = max(1, int(rate))
    if not kept:
        return Sample(
            seconds=1.0, latencies_ms=[], sent=count, statuses={"DEADLINE_EXCEEDED": count}, behind_ms=0.0
        )
    return Sample(seconds=1.0, latencies_ms=[50.0] * count, sent=count, statuses={"OK": count}, behind_ms=0.5)


def test_the_search_finds_the_largest_rate_that_keeps_the_promise() -> None:
    """Against a server whose p99 passes 100 ms at 70 requests per second. What is found is the rate, not the
    number that happened to arrive."""
    search = Search(high=120.0, slo_ms=100.0)
    for _ in range(10):
        rate = search.next_rate()
        search.record(_kept(rate, kept=rate <= 70))
    assert search.low <= 70 <= search.high and search.high - search.low < 0.2
    assert search.throughput == search.low and not search.unbounded


def test_a_ceiling_that_is_too_low_moves_up() -> None:
    """The closed loop had a slow moment: the server keeps up with half as many again as was expected."""
    search = Search(high=80.0, slo_ms=100.0)
    for _ in range(9):
        rate = search.next_rate()
        search.record(_kept(rate, kept=rate <= 120))
    assert 115 < search.throughput <= 120 < search.high
    search = Search(high=80.0, slo_ms=100.0)
    for _ in range(5):
        search.record(_kept(search.next_rate()))
    assert search.unbounded and search.throughput > 80


def _searched(speed: float, kept: bool = True) -> Search:
    """One rate, and what came of it."""
    search = Search(high=2 * speed, slo_ms=100.0)
    search.record(_kept(speed, kept))
    return search


def _answered(count: int, late: int = 0) -> Sample:
    return Sample(
        seconds=1.0, latencies_ms=[10.0] * count + [900.0] * late, sent=count + late,
        statuses={"OK": count + late}, behind_ms=0.0,
    )  # fmt: skip


def _measured(name: str, ours: dict[int, Search], theirs: dict[int, Search]) -> Measured:
    return Measured(
        name, "iree", searches={serve_found.OURS: ours, serve_found.TENSORFLOW: theirs}, candidates=500
    )


def test_figures_are_of_every_round() -> None:
    """The ratio is of servers of one round, which met the same machine: surer than either throughput."""
    speeds = dict(enumerate((50, 60, 80)))
    searches = [{round: _searched(n * times) for round, n in speeds.items()} for times in (2, 1)]
    rounds = [{serve_found.PLAIN: {0.9: _answered(n), 2.0: _answered(n // 2, late=n)}} for n in (40, 50, 60)]
    spent = [Spent(1000.0 * n, 100.0, 200.0, 10, 50) for n in (1, 2, 4)]
    found = Found(
        100.0, Path("absent"), [_measured("m", *searches)],
        Overhead("m", 7, 3, spent), Overload("m", "iree", rounds),
    )  # fmt: skip
    made = {f.name: f for f in figures(found)[0]}
    ratio, ours = made["throughput_at_slo_vs_tf"], made["m/throughput/jaxrank"]
    assert ratio.lo == ratio.value == ratio.hi == pytest.approx(2.0) and ratio.runs == 3
    assert ours.lo is not None and ours.lo < 100 < ours.value == pytest.approx((100 * 120 * 160) ** (1 / 3))
    assert "500 candidates, the engine iree" in ours.note and "the client itself" not in ours.note
    assert "loads of as few as" not in ours.note
    note = made["m/throughput/tensorflow"].note
    assert "loads of as few as 50 requests, of which p99 is the slowest" in note
    assert made["m/throughput_vs_tensorflow"].value == pytest.approx(2.0)
    assert made["goodput_at_2x"].value == pytest.approx(0.5)
    assert made["m/goodput/plain/2"].note.startswith("225 OK")
    assert "Student's over 3" in made["m/goodput/plain/0.9"].note
    assert made["overhead_us_per_request"].value == pytest.approx((70 * 170 * 370) ** (1 / 3))
    assert made["copies_per_byte"].value == 0.5


def test_rounds_are_paired_by_their_number() -> None:
    """Where TensorFlow's first round is missing, its second is held against ours of the second."""
    ours = {0: _searched(10), 1: _searched(40), 2: _searched(40)}
    theirs = {1: _searched(20), 2: _searched(20)}
    made = {f.name: f for f in figures(Found(100.0, Path("absent"), [_measured("m", ours, theirs)]))[0]}
    for name in ("m/throughput_vs_tensorflow", "throughput_at_slo_vs_tf"):
        assert made[name].value == pytest.approx(2.0) and made[name].runs == 2


def test_a_model_whose_promise_is_not_kept_counts() -> None:
    """Ours at no rate is a ratio of 0, in the mean, too. A model of which there is no ratio is named."""
    good = _measured("good", {0: _searched(40)}, {0: _searched(20)})
    ours_late = _measured("late", {0: _searched(8, kept=False)}, {0: _searched(20)})
    theirs_late = _measured("slow", {0: _searched(8)}, {0: _searched(8, kept=False)})
    found = Found(100.0, Path("absent"), [good, ours_late], asked=("good", "late"))
    made, missing = figures(found)
    figure = {f.name: f for f in made}
    assert figure["late/throughput_vs_tensorflow"].value == figure["throughput_at_slo_vs_tf"].value == 0.0
    assert (
        "0 as ours did not keep the promise in every round of late" in figure["throughput_at_slo_vs_tf"].note
    )
    why = {m.name: m.why for m in missing}["late/throughput/jaxrank"]
    assert why.startswith("0 of 1 rounds had a rate that kept the promise; at 8.0/s 0% of 8 requests were")
    found = Found(100.0, Path("absent"), [good, theirs_late], asked=("good", "slow", "gone"))
    made, missing = figures(found)
    figure, why = {f.name: f for f in made}, {m.name: m.why for m in missing}
    assert figure["throughput_at_slo_vs_tf"].value == pytest.approx(2.0)
    assert "; without slow, gone, for the reasons" in figure["throughput_at_slo_vs_tf"].note
    assert "slow/throughput_vs_tensorflow" not in figure
    assert why["slow/throughput_vs_tensorflow"].startswith("slow/throughput/tensorflow: 0 of 1 rounds had")
    assert why["gone/throughput_vs_tensorflow"] == "no round was finished"


def test_a_client_that_falls_behind_is_told() -> None:
    """Over 2% of the promise."""
    search = Search(high=80.0, slo_ms=100.0)
    search.record(msgspec.structs.replace(_kept(40.0), behind_ms=2.5))
    made = {f.name: f for f in of_model(_measured("m", {0: search}, {}))}
    assert made["m/client_behind_ms/jaxrank"].value == 2.5
    assert "the client itself sent up to 2.5 ms late (p99), over 2 ms" in made["m/throughput/jaxrank"].note


def test_a_promise_that_no_rate_keeps_says_what_the_least_rate_took() -> None:
    """Late answers have no latency: the deadline is the promise."""
    search = Search(high=64.0, slo_ms=100.0)
    for _ in range(3):
        rate = search.next_rate()
        statuses = {"OK": 6, "DEADLINE_EXCEEDED": 2}
        search.record(Sample(seconds=1.0, latencies_ms=[80.0] * 6, sent=8, statuses=statuses, behind_ms=0.0))
    measured = Measured("m", "iree", searches={serve_found.OURS: {0: search}})
    found = {f.name: f for f in figures(Found(100.0, Path("absent"), [measured]))[0]}
    figure = found["m/throughput/jaxrank"]
    assert rate == 8.0 and figure.value == 0.0
    assert figure.note.startswith(
        "0 of 1 rounds had a rate that kept the promise; at 8.0/s 75% of 8 requests were answered within "
        "100 ms (2 DEADLINE_EXCEEDED, 6 OK)"
    )


def test_a_closed_loop_of_a_slow_server_lasts_to_its_last_answer(server: Running, messages: str) -> None:
    """Stopped for a second in the middle of a load of a fifth of it, it is not five times as fast."""
    load = Load(address=server.address, requests=messages, seconds=0.2, deadline=30.0, clients=4)
    stall = threading.Timer(0.15, _stall, (server.process, 1.0))
    stall.start()
    sample = run(load)
    stall.join()
    assert sample.seconds > 0.9 and sample.sent == len(sample.latencies_ms)


def test_a_client_that_died_is_started_again(server: Running, messages: str) -> None:
    """The next part has one; a server that is gone costs nothing but its own load."""
    load = Load(address=server.address, requests=messages, seconds=1.0, deadline=30.0, clients=1)
    with LoadClient() as client:
        killed = threading.Timer(0.2, os.kill, (client._process.pid, signal.SIGKILL))
        killed.start()
        with pytest.raises(RuntimeError, match="the load client ended with status -9"):
            client.send(load)
        assert client.send(load).latencies_ms


def test_a_load_that_fails_once_is_sent_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails twice is a round less, which is told; others keep it. The client fails at a load of each
    round, and in the second round at the next one, too."""
    sent = LoadClient.send
    open_loops = 0

    def send(client: LoadClient, load: Load) -> Sample:
        nonlocal open_loops
        open_loops += not load.clients
        if not load.clients and open_loops in (2, 6, 7):
            raise RuntimeError("the load client ended")
        return sent(client, load)

    monkeypatch.setattr(LoadClient, "send", send)
    monkeypatch.setattr(serve, "QUICK", replace(serve.QUICK, rounds=2, steps=2))
    out = tmp_path / "serve.json"
    options = ["--quick", "--slo-ms", "2000", "--parts", "throughput", "--models", "tiny"]
    serve.run(serve.parse([*options, "--work", str(work), "--out", str(out)]), {"tiny": TINY})
    found = json.loads(out.read_text())
    runs = {f["name"]: f["runs"] for f in found["figures"]}
    # Loads are: ours, theirs, theirs again, ours, theirs; then ours twice, which leaves theirs.
    assert runs["tiny/throughput/jaxrank"] == 1 and runs["tiny/throughput/tensorflow"] == 2
    assert runs["tiny/throughput_vs_tensorflow"] == 1
    missing = {n["name"]: n["why"] for n in found["not_measured"]}
    why = "round 2 of 2 is left out, it failed twice: the load client ended"
    assert missing["tiny/throughput/jaxrank"] == why


def test_interrupted_in_a_round(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds before it are written, and the exit code is a shell's."""
    sent = LoadClient.send

    def send(client: LoadClient, load: Load) -> Sample:
        if out.exists() and not load.clients:  # the first round was written
            raise KeyboardInterrupt
        return sent(client, load)

    monkeypatch.setattr(LoadClient, "send", send)
    out = tmp_path / "serve.json"
    options = ["--quick", "--slo-ms", "2000", "--parts", "throughput", "--models", "tiny"]
    with pytest.raises(SystemExit) as ended:
        serve.run(serve.parse([*options, "--work", str(work), "--out", str(out)]), {"tiny": TINY})
    assert ended.value.code == 130
    runs = {f["name"]: f["runs"] for f in json.loads(out.read_text())["figures"]}
    assert runs["tiny/throughput/jaxrank"] == runs["tiny/throughput_vs_tensorflow"] == 1


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ([], "bench/results/serve.json"),
        (["--work", "elsewhere"], "bench/results/serve.json"),
        (["--arrivals", "bursty"], "serve.json"),
        (["--slo-ms", "50"], "serve.json"),
        (["--cores", "1"], "serve.json"),
        (["--candidates", "200"], "serve.json"),
        (["--overload-model", "din"], "serve.json"),
        (["--parts", "overhead"], "serve.json"),
        (["--quick"], "serve.json"),
    ],
)
def test_only_the_whole_suite_takes_the_place_of_its_results(options: list[str], out: str) -> None:
    assert serve.parse(options).out == Path(out)


def test_requests_have_as_many_candidates_as_production_sends() -> None:
    """500 to our models, a profile's own, and what is asked for."""
    (feed,) = (p.model() for p in PROFILES if p.name == "feed")
    assert serve._sized(TINY, None).candidates == 500 and serve._sized(feed, None).candidates == 1000
    assert serve._sized(TINY, 300).candidates == serve._sized(feed, 300).candidates == 300


@pytest.mark.parametrize("candidates", ["0", "5001", "many"])
def test_candidates_that_no_bundle_takes(candidates: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.parse(["--candidates", candidates])
    assert "is not a number from 1 to 5000" in capsys.readouterr().err
