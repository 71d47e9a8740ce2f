"""Every tier gives what the table's own file gives, bit for bit."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from serving.tables import RowFormat, RowNotFoundError
from serving.tiers.config import RedisStore, RocksDBStore
from serving.tiers.placement import open_store
from serving.tiers.store import Store
from serving.tiers.tiered_table import TieredTable
from serving.tiers.transfer import push, verify
from tests.redis_cluster import Cluster
from tests.serving.tiers.conftest import FiledTable, write_table

OpenStore = Callable[[str], Store]


@pytest.fixture
def stores(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, Store]]:
    found = {
        "rocksdb": open_store("local", RocksDBStore(path=tmp_path / "rocks")),
        "redis": open_store("cluster", RedisStore(nodes=tuple(cluster.nodes))),
    }
    yield found
    for store in found.values():
        store.close()


def _pushed(filed: FiledTable, store: Store, cache_bytes: int) -> TieredTable:
    assert push(filed.table, filed.record, store, lambda done: None) == 0
    return TieredTable([store.open(filed.record)], cache_bytes)


def _soon() -> float:
    return time.monotonic() + 20


@pytest.mark.parametrize("kind", ["rocksdb", "redis"])
@pytest.mark.parametrize(
    ("row_format", "keyed", "default"),
    [
        ("f32", False, "error"),
        ("f16", False, "zeros"),
        ("bf16", True, "mean"),
        ("int8", True, "zeros"),
        ("int8", False, "mean"),
        ("i64", True, "error"),
    ],
)
def test_a_tier_gives_the_rows_of_the_file(
    kind: str, row_format: RowFormat, keyed: bool, default: str, stores: dict[str, Store], tmp_path: Path
) -> None:
    """From the store, from the cache, and again; duplicates, strided output, and ids without a row."""
    seed = sum(map(ord, kind + row_format + default))
    filed = write_table(tmp_path / f"t{seed}.table", 3000, 7, seed, row_format, keyed, default)
    tier = _pushed(filed, stores[kind], 1 << 20)
    rng = np.random.default_rng(seed)
    known = np.arange(3000) if filed.table.keys is None else np.array(filed.table.keys)
    for _ in range(3):
        ids = rng.choice(known, 2000)
        if default != "error":
            ids[rng.integers(0, 2000, 50)] = rng.integers(-(2**62), 2**62, 50)
        expected = np.empty((2000, 7), filed.table.dtype)
        filed.table.fetch(ids, expected)
        block = np.full((2000, 20), 77, filed.table.dtype)
        assert tier.fetch(ids, block[:, 5:12], _soon()) is None
        assert block[:, 5:12].tobytes() == expected.tobytes()
        assert (block[:, :5] == 77).all() and (block[:, 12:] == 77).all()
    assert tier.cache is not None and tier.cache.counts().hits > 0
    if default == "error":
        for bad in (-5, 3000, 2**62):
            with pytest.raises(RowNotFoundError) as caught:
                tier.fetch(np.array([known[0], bad, bad + 1]), np.empty((3, 7), tier.dtype), _soon())
            assert caught.value.id == bad
    assert tier.fetch(np.empty(0, np.int64), np.empty((0, 7), tier.dtype), _soon()) is None
    tier.close()
    stores[kind].drop(filed.record)
    assert filed.record not in stores[kind].records()


def test_verify_finds_one_wrong_and_one_missing_row(
    stores: dict[str, Store], cluster: Cluster, tmp_path: Path
) -> None:
    filed = write_table(tmp_path / "v.table", 5000, 4, 3)
    store = stores["redis"]
    tier = _pushed(filed, store, 0)
    stored = store.open(filed.record)
    names = stored.names  # type: ignore[attr-defined]
    plan = names.plan(np.array([17, 4000]), np.zeros(names.buckets, np.int64))
    (wrong,), (gone,) = plan.names(0), plan.names(1)
    numbers = plan.keys.tolist()
    client = store.client  # type: ignore[attr-defined]
    client.set(wrong, bytes(16))
    client.delete(gone)
    found = verify(filed.table, stored, lambda done: None)
    assert (found.differing, found.missing, sorted(found.first)) == (1, 1, sorted(numbers))
    out = np.empty((2, 4), np.float32)
    missing = tier.fetch(np.array(numbers), out, _soon())
    assert missing is not None and missing.tolist() == [False, True]
    assert (out[1] == 0).all()
    stored.close()
    tier.close()
    store.drop(filed.record)


def test_a_later_store_gives_what_the_first_lacks(
    stores: dict[str, Store], cluster: Cluster, tmp_path: Path
) -> None:
    filed = write_table(tmp_path / "chain.table", 2000, 4, 4)
    for store in stores.values():
        push(filed.table, filed.record, store, lambda done: None)
    first = stores["redis"].open(filed.record)
    names = first.names  # type: ignore[attr-defined]
    plan = names.plan(np.arange(100), np.zeros(names.buckets, np.int64))
    for run in range(len(plan.buckets)):
        stores["redis"].client.delete(*plan.names(run))  # type: ignore[attr-defined]
    tier = TieredTable([first, stores["rocksdb"].open(filed.record)], 0)
    out = np.empty((2000, 4), np.float32)
    assert tier.fetch(np.arange(2000), out, _soon()) is None
    assert np.array_equal(out, filed.table.read(0, 2000))
    tier.close()
    stores["redis"].drop(filed.record)


@pytest.mark.parametrize("kind", ["rocksdb", "redis"])
def test_no_time_left_gives_default_rows_at_once(kind: str, stores: dict[str, Store], tmp_path: Path) -> None:
    """Only rows of the cache; nothing is held against the store."""
    filed = write_table(tmp_path / f"late-{kind}.table", 2000, 4, 5, default="mean")
    tier = _pushed(filed, stores[kind], 1 << 20)
    ids = np.arange(1000)
    out = np.empty((1000, 4), np.float32)
    assert tier.fetch(ids[:500], out[:500], _soon()) is None
    for _ in range(20):
        start = time.monotonic()
        missing = tier.fetch(ids, out, start)
        assert time.monotonic() - start < 0.5
        if missing is None:
            missing = np.zeros(1000, bool)  # RocksDB's own cache may be this fast
        assert kind == "rocksdb" or missing[500:].all()
        assert (out[missing] == filed.table.default_row).all()
        assert np.array_equal(out[~missing], filed.table.read(0, 2000)[:1000][~missing])
    assert tier.fetch(ids, out, _soon()) is None
    assert np.array_equal(out, filed.table.read(0, 1000))
    tier.close()
    stores[kind].drop(filed.record)


def test_rows_are_found_while_their_slots_move(
    stores: dict[str, Store], cluster: Cluster, tmp_path: Path
) -> None:
    """Slots between two nodes: keys that went already, keys that did not, and the new owner unknown."""
    filed = write_table(tmp_path / "moving.table", 3000, 4, 6)
    tier = _pushed(filed, stores["redis"], 0)
    expected, out = filed.table.read(0, 3000), np.empty((3000, 4), np.float32)
    source, target = cluster.client(0), cluster.client(1)
    source_id, target_id = (c.execute_command("CLUSTER MYID") for c in (source, target))
    for slot in range(0, 160, 16):
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        keys = raw_keys(cluster, slot)
        assert len(keys) > 1
        for half in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
            migrate(cluster, half)
            assert tier.fetch(np.arange(3000), out, _soon()) is None
            assert np.array_equal(out, expected)
        for client in (target, source, cluster.client(2)):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)
        assert tier.fetch(np.arange(3000), out, _soon()) is None
        assert np.array_equal(out, expected)
    tier.close()
    stores["redis"].drop(filed.record)


def raw_keys(cluster: Cluster, slot: int) -> list[bytes]:
    """redis-py's client takes these names for text."""
    connection = redis.Connection(port=cluster.ports[0])
    connection.send_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    return connection.read_response()  # type: ignore[return-value]


def migrate(cluster: Cluster, keys: list[bytes]) -> None:
    client = redis.Redis(port=cluster.ports[0])
    arguments = ["127.0.0.1", cluster.ports[1], "", 0, 5000, "KEYS", *keys]
    assert client.execute_command("MIGRATE", *arguments) == b"OK"
