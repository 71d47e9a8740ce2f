"""A server whose tables are in tiers: the same scores, in time, and clients that are told of default rows."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from jaxrank.bundle import read_manifest
from serving.client import PredictClient
from serving.grpc_server import Server
from serving.tables import open_table
from serving.tiers.config import load_config
from serving.tiers.errors import StoredTableError, TableNotStoredError, TierConfigError
from serving.tiers.placement import Tiers, open_store
from serving.tiers.record import TableRecord
from serving.tiers.transfer import push, record_of
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import PREDICTION_SERVICE
from tests import models
from tests.redis_cluster import Cluster, running_cluster
from tests.serving import scraping
from tests.serving.conftest import StartServer, models_dir, start_server  # noqa: F401

TABLES = ("item_embedding", "device_embedding", "city_embedding")


def _config(directory: Path, cluster: Cluster, placed: dict[str, dict], **top: object) -> Path:
    stores = {
        "local": {"kind": "rocksdb", "path": str(directory / "rocks")},
        "cluster": {"kind": "redis", "nodes": cluster.nodes, "probe_ms": 50},
    }
    path = directory / "tables.json"
    path.write_text(json.dumps({"stores": stores, "models": {"ranker": {"tables": placed}}, **top}))
    return path


def _push_all(bundle: Path, config: Path) -> None:
    manifest = read_manifest(bundle)
    for name, store_config in load_config(config).stores.items():
        store = open_store(name, store_config)
        for entry in manifest.tables:
            table = open_table(bundle / entry.file)
            push(table, record_of(entry.name, manifest.files[entry.file], table), store, lambda done: None)
        store.close()


@pytest.fixture(scope="module")
def own_cluster(redis_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--appendfsync", "always")  # a node that is killed keeps what it was given
    with running_cluster(redis_cache, tmp_path_factory.mktemp("redis"), options=options) as cluster:
        yield cluster


def _predict(server: Server, features: dict[str, np.ndarray], timeout: float) -> tuple[bytes, dict[str, str]]:
    """The response, and the trailing metadata."""
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="ranker"))
    for name, value in features.items():
        request.inputs[name].CopyFrom(encode_content(value))
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
        data, done = call.with_call(request.SerializeToString(), timeout=timeout)
        return data, {item.key: item.value for item in done.trailing_metadata()}


@pytest.fixture
def bundle_without_tables(ranker_bundle: Path, tmp_path: Path) -> Path:
    """The models directory of a serving host that does not have the large files."""
    version = tmp_path / "models" / "ranker" / "1"
    shutil.copytree(ranker_bundle, version)
    for name in TABLES:
        (version / f"tables/{name}.table").unlink()
    return version.parent.parent


def test_scores_are_those_of_tables_in_memory_and_a_dead_node_costs_no_request(
    ranker_bundle: Path,
    bundle_without_tables: Path,
    own_cluster: Cluster,
    start_server: StartServer,  # noqa: F811
    models_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    placed = {
        "item_embedding": {"stores": ["cluster"], "cache_mib": 0},
        "device_embedding": {"stores": ["cluster"], "cache_mib": 1},
        "city_embedding": {"stores": ["local"]},
    }
    config = _config(tmp_path, own_cluster, placed, budget_ms=60)
    _push_all(ranker_bundle, config)
    memory = start_server(models_dir)
    tiers = start_server(bundle_without_tables, tables_config=config, rest_port=0)
    client, other = PredictClient(memory.address), PredictClient(tiers.address)
    for seed in range(8):
        features = models.ranker_request(20 + 30 * seed, seed)
        expected, found = client.predict("ranker", features), other.predict("ranker", features)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)
    features = models.ranker_request(100, 9)
    expected = client.predict("ranker", features)
    assert "jaxrank-default-rows" not in _predict(tiers, features, 2.0)[1]

    answers: list[tuple[float, str]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            start = time.monotonic()
            try:
                _, trailers = _predict(tiers, features, 10.0)
            except grpc.RpcError as error:
                failures.append(error)
                return
            answers.append((time.monotonic() - start, trailers.get("jaxrank-default-rows", "")))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    own_cluster.kill(1)
    time.sleep(1.5)
    own_cluster.start(1)
    own_cluster.wait_until_well()
    end = time.monotonic() + 30
    while answers[-1][1] and time.monotonic() < end:
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    told = [text for _, text in answers if text]
    assert told and not answers[-1][1]
    counts = [dict(part.split("=") for part in text.split(",")) for text in told]
    assert all(set(c) <= {"item_embedding", "device_embedding"} for c in counts)
    assert max(int(c.get("item_embedding", 0)) for c in counts) > 0
    metrics, of = scraping.scraped(tiers), {"model": "ranker", "version": "1"}
    for table in ("item_embedding", "device_embedding"):
        defaults = scraping.value(metrics, "jaxrank_default_rows_total", **of, table=table)
        assert defaults == sum(int(c.get(table, 0)) for c in counts)
    assert scraping.value(metrics, "jaxrank_remarks_total", **of, remark="jaxrank-default-rows") == len(told)
    hits, lookups = (
        scraping.value(metrics, f"jaxrank_hot_row_{name}_total", **of, table="device_embedding")
        for name in ("hits", "lookups")
    )
    assert 0 < hits <= lookups
    again = other.predict("ranker", features)
    assert all(np.array_equal(expected[name], again[name]) for name in expected)


@pytest.mark.parametrize("remaining", [0.0, 0.004, 0.05, None])
def test_the_budget_leaves_the_caller_its_reserve(
    remaining: float | None, own_cluster: Cluster, tmp_path: Path
) -> None:
    tiers = Tiers(load_config(_config(tmp_path, own_cluster, {}, budget_ms=30, reserve_ms=10)))
    before = time.monotonic()
    deadline = tiers.budget(remaining).deadline
    expected = 0.03 if remaining is None else max(0.0, min(0.03, remaining - 0.01))
    assert deadline is not None and before + expected <= deadline <= time.monotonic() + expected


def _refusal(ranker_bundle: Path, own_cluster: Cluster, tmp_path: Path, placed: dict[str, dict]) -> Exception:
    tiers = Tiers(load_config(_config(tmp_path, own_cluster, placed)))
    manifest = read_manifest(ranker_bundle)
    with pytest.raises((TierConfigError, TableNotStoredError, StoredTableError)) as caught:
        tiers.placed_files("ranker", manifest)
        tiers.open_tables("ranker", manifest)
    tiers.close()
    return caught.value


def test_what_a_server_refuses_to_start_with(
    ranker_bundle: Path, own_cluster: Cluster, tmp_path: Path
) -> None:
    """A table that is not there, one that is there in part, another dim, and a name that the model does not
    have."""
    manifest = read_manifest(ranker_bundle)
    text = str(_refusal(ranker_bundle, own_cluster, tmp_path, {"user": {"stores": ["local"]}}))
    assert "models.ranker.tables has 'user'; the model's tables are: " in text
    text = str(_refusal(ranker_bundle, own_cluster, tmp_path, {"slot_embedding": {"stores": ["local"]}}))
    assert "store 'local' holds no table 'slot_embedding'" in text
    assert "run `jaxrank tables push BUNDLE --store local`" in text

    entry = next(t for t in manifest.tables if t.name == "slot_embedding")
    table = open_table(ranker_bundle / entry.file)
    config = load_config(_config(tmp_path, own_cluster, {}))
    store = open_store("local", config.stores["local"])
    own = record_of("slot_embedding", manifest.files[entry.file], table)
    part = store.writer(own)
    part.write(0, None, table.read_raw(0, 2).copy())
    part.close()
    text = str(_refusal(ranker_bundle, own_cluster, tmp_path, {"slot_embedding": {"stores": ["local"]}}))
    assert "holds 2 of the 5 rows" in text and "run `jaxrank tables push` again" in text
    store.drop(own)

    wide = TableRecord(
        name="slot_embedding",
        sha256="ab" * 32,
        rows=5,
        dim=7,
        row_format="f32",
        row_bytes=28,
        keyed=False,
        default="error",
        default_row=bytes(28),
    )
    writer = store.writer(wide)
    writer.write(0, None, np.zeros((5, 28), np.uint8))
    writer.close()
    placed = {"slot_embedding": {"stores": ["local"], "version": "abababab"}}
    text = str(_refusal(ranker_bundle, own_cluster, tmp_path, placed))
    assert "slot_embedding@abababababab) has dim 7, the bundle says 3" in text
    text = str(_refusal(ranker_bundle, own_cluster, tmp_path, {"slot_embedding": {"stores": ["local"]}}))
    assert "only as slot_embedding@abababababab (dim 7, f32, 5 rows)" in text
    store.close()
