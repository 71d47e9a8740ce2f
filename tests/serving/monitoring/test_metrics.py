"""Metrics of a real server, read with Prometheus' own parser."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from serving.client import PredictClient
from serving.engines.plan import Planner
from serving.grpc_server import Server
from serving.model_config import ConfigError
from serving.monitoring.buckets import SECONDS, percentile
from serving.monitoring.counts import RequestCounts
from serving.monitoring.history import History
from serving.monitoring.options import MonitoringOptions, read_metrics_path
from serving.monitoring.timeline import PHASES, Timeline
from serving.scheduling import ANY_TIME, SchedulingOptions
from serving.versions import VersionStatus
from serving.wire import predict_pb2 as pb
from serving.wire.codec import Content, decode, encode_content
from serving.wire.predict_messages import read_request
from serving.wire.reflection import PREDICTION_SERVICE
from tests import models
from tests.serving.lifecycle.versions import eventually
from tests.serving.scraping import get, scraped, value


@pytest.fixture(scope="module")
def server(models_dir: Path, start_server: Callable, example_models: Path) -> Server:
    for name in ("half_plus_three", "classifier"):
        (models_dir / name).symlink_to(example_models / "models" / name)
    return start_server(models_dir, rest_port=0)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[PredictClient]:
    client = PredictClient(server.address)
    yield client
    client.close()


def test_requests_are_counted_by_tensorflow_servings_names(server: Server, client: PredictClient) -> None:
    before = scraped(server)
    features = {"x": np.ones(4, np.float32)}
    for _ in range(5):
        client.predict("half_plus_three", features)
    for _ in range(3):
        assert get(server, "/v1/models/half_plus_three:predict", {"inputs": [1.0]})[0] == 200
    for _ in range(2):
        assert get(server, "/v1/models/half_plus_three:regress", {"examples": [{"x": 1.0}] * 3})[0] == 200
    for wrong in ({"y": features["x"]}, {"x": np.ones((2, 2), np.float32)}):
        with pytest.raises(grpc.RpcError):
            client.predict("half_plus_three", wrong)
    with pytest.raises(grpc.RpcError):
        client.predict("a name of the client's", features)
    after = scraped(server)

    def difference(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    model = {"model_name": "half_plus_three"}
    assert difference(":tensorflow:serving:request_count", **model, status="OK") == 10
    assert difference(":tensorflow:serving:request_count", **model, status="INVALID_ARGUMENT") == 2
    assert difference(":tensorflow:serving:request_count", model_name="", status="NOT_FOUND") == 1
    for api, entrypoint, count in (("Predict", "GRPC", 5), ("predict", "REST", 3), ("regress", "REST", 2)):
        labels = {**model, "API": api, "entrypoint": entrypoint}
        assert difference(":tensorflow:serving:request_latency_count", **labels) == count
        assert difference(":tensorflow:serving:request_latency_bucket", **labels, le="1.27482e+06") == count
    for api, count in (("Predict", 8), ("Regress", 2)):
        labels = {**model, "API": api, "runtime": "jaxrank"}
        assert difference(":tensorflow:serving:runtime_latency_count", **labels) == count
    of = {"model": "half_plus_three"}
    assert difference(":tensorflow:serving:request_example_count_total", **of) == 6
    assert difference(":tensorflow:serving:request_example_counts_bucket", **of, le="2.0") == 0
    assert difference(":tensorflow:serving:request_example_counts_bucket", **of, le="4.0") == 2
    assert not any("a name of the client's" in str(key) for key in after)


def test_phases_and_refusals_of_a_version(server: Server, client: PredictClient) -> None:
    before = scraped(server)
    of = {"model": "ranker", "version": "3"}
    for seed in range(8):
        client.predict("ranker", models.ranker_request(50, seed))
    with pytest.raises(grpc.RpcError):
        client.predict("ranker", models.ranker_request(5001, 0))
    after = scraped(server)

    def difference(name: str, **labels: str) -> float:
        return value(after, name, **of, **labels) - value(before, name, **of, **labels)

    assert difference("jaxrank_request_seconds_count") == 8
    assert difference("jaxrank_candidates_sum") == 8 * 50
    assert difference("jaxrank_refusals_total", reason="invalid_request") == 1
    spent = {phase: difference("jaxrank_phase_seconds_sum", phase=phase) for phase in PHASES}
    assert all(seconds > 0 for seconds in spent.values()), spent
    counts = {phase: difference("jaxrank_phase_seconds_count", phase=phase) for phase in PHASES}
    assert counts == {**dict.fromkeys(PHASES, 8), "queue": 9}  # the one that was refused had its turn
    assert sum(spent.values()) <= difference("jaxrank_request_seconds_sum")
    assert value(after, "jaxrank_model_version_state", **of, state="AVAILABLE") == 1
    busy = value(after, "jaxrank_stream_busy_seconds_total", device="cpu")
    assert busy > value(before, "jaxrank_stream_busy_seconds_total", device="cpu")
    assert value(after, "jaxrank_streams", device="cpu") >= 1
    assert value(after, "jaxrank_waiting_requests", device="cpu") == 0
    assert value(after, "process_resident_memory_bytes") > 1 << 20
    assert value(after, "jaxrank_page_faults_total", kind="minor") > 0


@pytest.mark.parametrize(("candidates", "scope"), [(40, "one slice"), (1000, "slices")])
def test_a_request_stays_within_its_copy_budget(
    models_dir: Path, start_server: Callable, candidates: int, scope: str
) -> None:
    """docs/monitoring.md, "The copy budget": features of `tensor_content` are read where they are, and so are
    the blocks and the state that slices share; scores are copied from the device, joined if there are slices,
    and written into the answer."""
    server = start_server(models_dir, rest_port=0, state_cache_mb=0)
    client = PredictClient(server.address)
    features = models.ranker_request(candidates, 1)
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="ranker"))
    for name, feature in features.items():
        request.inputs[name].CopyFrom(encode_content(feature))
    message, predict = (
        request.SerializeToString(),
        client.channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict"),
    )
    predict(message, timeout=60)
    before = scraped(server)
    predict(message, timeout=60)
    after = scraped(server)
    client.close()
    of = {"model": "ranker", "version": "3"}
    moved = {
        step: value(after, "jaxrank_copied_bytes_total", **of, step=step)
        - value(before, "jaxrank_copied_bytes_total", **of, step=step)
        for step in ("decode", "arguments", "results", "joins", "encode")
    }
    with server.repository.lend("ranker") as (model, _):
        program, manifest = model._host.program, model.manifest
        planner = model._engine._planner  # type: ignore[union-attr]
    assert isinstance(planner, Planner)
    calls = [call for share in planner.plan(candidates) for call in share]
    assert (len(calls) == 1) == (scope == "one slice")
    scores = candidates * 2 * 4  # two float32 outputs
    decoded = sum(v.nbytes for v in features.values() if v.dtype == object)  # pointers
    for tensor in read_request(message).inputs.values():
        # A message is aligned for all types, what is in it lies wherever it comes.
        if isinstance(tensor, Content):
            decoded += tensor.size * (decode("", tensor).base is None)
    assert moved["decode"] == decoded
    state = sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in manifest.state)
    moves = state if scope == "slices" else 0  # one slice's state stays on its device
    assert moved["arguments"] == 0
    padded_scores = 4 * 2 * sum(call.rows - (call.stop - call.start) for call in calls)
    assert moved["results"] == scores + padded_scores + moves
    cut = sum(call.stop - call.start for call in calls if call.rows != call.stop - call.start)
    assert moved["joins"] == (scores if len(calls) > 1 else 0) + 4 * cut * program.width("candidate")
    assert moved["encode"] == scores
    transfers = value(after, "jaxrank_device_transfers_total", **of) - value(
        before, "jaxrank_device_transfers_total", **of
    )
    # Each slice's scores; the state, for slices.
    assert transfers == len(calls) + (1 if scope == "slices" else 0)


def test_formats_and_paths(server: Server) -> None:
    """Colons of TensorFlow Serving's names stay whatever format a scraper would like."""
    status, text = get(server, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert ":tensorflow:serving:request_count" in {family.name for family in parse(text)}
    assert scraped(server, "/monitoring/prometheus/metrics").keys() == scraped(server).keys()
    assert get(server, "/metrics", {})[0] == 404  # only GET


def test_paths_of_a_monitoring_config(tmp_path: Path, start_server: Callable, example_models: Path) -> None:
    config = tmp_path / "monitoring.txt"
    config.write_text('prometheus_config { enable: true, path: "/m" }')
    assert read_metrics_path(config) == "/m"
    config.write_text("prometheus_config { enable: true }")
    assert read_metrics_path(config) == "/monitoring/prometheus/metrics"
    config.write_text("")
    assert read_metrics_path(config) is None
    for path in ("m", "/", "/v1/models/x", "/v2"):
        config.write_text(f'prometheus_config {{ enable: true, path: "{path}" }}')
        with pytest.raises(ConfigError, match="prometheus_config.path"):
            read_metrics_path(config)
    off = start_server(
        example_models / "models", rest_port=0, workers=1, monitoring=MonitoringOptions(metrics_path=None)
    )
    assert get(off, "/metrics")[0] == 404
    here = start_server(
        example_models / "models", rest_port=0, workers=1, monitoring=MonitoringOptions(metrics_path="/m")
    )
    assert scraped(here, "/m").keys() == scraped(here).keys()
    assert get(here, "/monitoring/prometheus/metrics")[0] == 404


def test_a_busy_server_is_seen(example_models: Path, start_server: Callable) -> None:
    """The only turn is held and requests are refused; metrics have a thread of their own. Those whose time is
    over are counted while it still is."""
    server = start_server(
        example_models / "models",
        rest_port=0,
        workers=1,
        rest_timeout_seconds=0.5,
        scheduling=SchedulingOptions(max_waiting=7),
    )
    with server._turns.turn(ANY_TIME):
        with ThreadPoolExecutor(20) as pool:
            asked = [
                pool.submit(get, server, "/v1/models/half_plus_three:predict", {"inputs": [1.0]})
                for _ in range(20)
            ]
            statuses = [future.result()[0] for future in asked]
        assert set(statuses) == {429, 504}
        expected = {429: statuses.count(429), 504: statuses.count(504)}
        end = time.monotonic() + 30
        while _refusals(server) != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert _refusals(server) == expected


def _refusals(server: Server) -> dict[int, float]:
    """By status. One more than may wait is told so by HTTP, or where turns are given."""
    found = scraped(server)

    def refused(reason: str, model: str, version: str) -> float:
        return value(found, "jaxrank_refusals_total", model=model, version=version, reason=reason)

    full = refused("overloaded", "", "0") + refused("queue_full", "half_plus_three", "1")
    return {429: full, 504: refused("deadline", "half_plus_three", "1")}


def test_counts_of_retired_versions_stay_in_their_models_sums() -> None:
    counts = RequestCounts()

    def requests(count: int, version: int) -> None:
        for _ in range(count):
            timeline = Timeline("GRPC", "Predict", model="m", version=version)
            timeline.ended = timeline.began + 0.001
            counts.observe(timeline)

    with ThreadPoolExecutor(4) as pool:
        for version in (1, 2, 1, 2):
            pool.submit(requests, 500, version)
    assert {k.version: c.success for k, c in counts.read().items()} == {1: 1000, 2: 1000}
    counts.retire([("m", 1)])
    requests(5, 1)
    assert {k.version: c.success for k, c in counts.read().items()} == {0: 1000, 1: 5, 2: 1000}


def test_counts_are_put_together_without_a_scrape() -> None:
    counts = RequestCounts()
    for version in (1, 2):
        timeline = Timeline("GRPC", "Predict", model="m", version=version)
        timeline.ended = timeline.began + 0.001
        counts.observe(timeline)
    known = [{("m", 2): VersionStatus(2, "END")}]
    history = History(counts, dict, lambda: 0, lambda: 0.0, lambda: known[-1], seconds=0.01)
    try:
        eventually(lambda: {k.version: c.success for k, c in counts.read().items()} == {0: 1, 2: 1})
        eventually(lambda: not any(counts._threads))  # what ended costs one sum, whatever the threads
        assert {k.version: c.success for k, c in counts.read().items()} == {0: 1, 2: 1}
        known.append({})
        eventually(lambda: {k.version: c.success for k, c in counts.read().items()} == {0: 2})
    finally:
        history.close()


def test_percentiles_are_within_a_bucket_of_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(-6, 1, 20_000)
    counts = np.bincount(np.searchsorted(SECONDS, seconds), minlength=len(SECONDS) + 1)
    for share in (0.5, 0.9, 0.99):
        found = percentile(SECONDS, counts, share)
        assert found is not None
        assert abs(found / np.quantile(seconds, share) - 1) < 0.1
    assert percentile(SECONDS, np.zeros(len(SECONDS) + 1, int), 0.5) is None
    assert percentile(SECONDS, np.eye(len(SECONDS) + 1, dtype=int)[-1], 0.5) == SECONDS[-1]
