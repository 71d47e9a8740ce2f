"""Nodes that die, freeze, and come back: every lookup ends in time, and a node that is well again is asked
again."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.tiers.config import RedisStore
from serving.tiers.placement import open_store
from serving.tiers.tiered_table import TieredTable
from serving.tiers.transfer import push
from tests.redis_cluster import Cluster, running_cluster
from tests.serving.tiers.conftest import FiledTable, write_table

ROWS = 6000
BUDGET = 0.25
SLACK = 5.0
"""What a loaded test machine may add to a lookup after its deadline: decoding, and waiting for a core. A node
that is waited for is waited for until the test's own time is over."""


@pytest.fixture
def filed(tmp_path: Path) -> FiledTable:
    return write_table(tmp_path / "t.table", ROWS, 4, 8, default="mean")


def _config(cluster: Cluster) -> RedisStore:
    return RedisStore(nodes=tuple(cluster.nodes), probe_ms=50, connect_ms=500)


def _look_up(tier: TieredTable, filed: FiledTable) -> int:
    """One lookup of every row within the budget; returns how many default rows it gave."""
    ids, out = np.arange(ROWS), np.empty((ROWS, 4), np.float32)
    start = time.monotonic()
    missing = tier.fetch(ids, out, start + BUDGET)
    assert time.monotonic() - start < BUDGET + SLACK
    wrong = np.zeros(ROWS, bool) if missing is None else missing
    assert np.array_equal(out[~wrong], filed.table.read(0, ROWS)[~wrong])
    assert (out[wrong] == filed.table.default_row).all()
    return int(wrong.sum())


def _wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def fragile(redis_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node that is killed would lose what is not on its disk yet, up to two seconds of a push."""
    options = ("--appendfsync", "always")
    with running_cluster(redis_cache, tmp_path_factory.mktemp("redis"), options=options) as cluster:
        yield cluster


def test_a_node_that_dies_and_comes_back(filed: FiledTable, fragile: Cluster) -> None:
    """With kill -9; its rows are on its disk. In the end it comes back without them, which must not go
    unnoticed: it is asked again once they are pushed again."""
    store = open_store("cluster", _config(fragile))
    push(filed.table, filed.record, store, lambda done: None)
    tier = TieredTable([store.open(filed.record)], 0)
    assert _look_up(tier, filed) == 0
    for empty in (False, True):
        fragile.kill(1)
        lost = [_look_up(tier, filed) for _ in range(20)]
        assert min(lost) > ROWS / 4 and max(lost) < ROWS / 2
        started = time.monotonic()
        for _ in range(20):
            _look_up(tier, filed)
        assert time.monotonic() - started < 20 * BUDGET / 2, "a dead node is asked in every request"
        if empty:
            shutil.rmtree(fragile.directory / str(fragile.ports[1]) / "appendonlydir")
        fragile.start(1)
        fragile.wait_until_well()
        if empty:
            time.sleep(0.5)
            assert _look_up(tier, filed) > ROWS / 4
            again = open_store("cluster", _config(fragile))
            assert again.position(filed.record) == 0
            push(filed.table, filed.record, again, lambda done: None)
            again.close()
        _wait_for(lambda: _look_up(tier, filed) == 0, "the node is not asked again")
    tier.close()
    store.close()


def test_a_node_that_freezes(filed: FiledTable, fragile: Cluster) -> None:
    """It keeps its connections and answers nothing."""
    store = open_store("cluster", _config(fragile))
    push(filed.table, filed.record, store, lambda done: None)
    tier = TieredTable([store.open(filed.record)], 0)
    assert _look_up(tier, filed) == 0
    fragile.processes[2].send_signal(signal.SIGSTOP)
    try:
        for _ in range(4):
            assert ROWS / 4 < _look_up(tier, filed) < ROWS / 2
        started = time.monotonic()
        for _ in range(20):
            _look_up(tier, filed)
        assert time.monotonic() - started < 20 * BUDGET / 2, "a frozen node is asked in every request"
    finally:
        fragile.processes[2].send_signal(signal.SIGCONT)
    _wait_for(lambda: _look_up(tier, filed) == 0, "the node is not asked again")
    tier.close()
    store.close()


def test_a_replica_takes_over(filed: FiledTable, redis_cache: Path, tmp_path: Path) -> None:
    """The master stays dead; its replica becomes one, and is asked."""
    with running_cluster(redis_cache, tmp_path, replicas=3) as cluster:
        store = open_store("cluster", _config(cluster))
        push(filed.table, filed.record, store, lambda done: None)
        for index in range(3):
            assert cluster.client(index).execute_command("WAIT", 1, 10_000) == 1
        tier = TieredTable([store.open(filed.record)], 0)
        assert _look_up(tier, filed) == 0
        cluster.kill(0)
        assert _look_up(tier, filed) > 0
        _wait_for(lambda: _look_up(tier, filed) == 0, "the replica is not asked")
        tier.close()
        store.close()
