"""Lookups from every tier: `python -m bench tiers` writes `bench/results/tiers.json`.

A table of float32 rows is pushed to RocksDB and to a Redis Cluster of three nodes, all on this machine, and
requests of 20,000 zipf-distributed ids are looked up in turn in its file in memory, in each store, and in
each store behind the cache of hot rows. Then the ways to ask a cluster are compared, a node is killed while
requests run, and pushes are killed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bench.destination import add_out, destination
from bench.results import Figure, suite_command, write_results
from bench.tiers_bundle import write_bundle, write_random_table
from bench.tiers_kills import push_with_kills
from bench.timing import Timing, interleaved
from jaxrank.bundle import read_manifest
from jaxrank.cli.console import results_console
from serving.tables import Table, open_table
from serving.tiers.config import load_config
from serving.tiers.hot_rows import HotRows
from serving.tiers.placement import open_store
from serving.tiers.record import TableRecord
from serving.tiers.redis_keys import TableKeys
from serving.tiers.store import Store
from serving.tiers.tiered_table import TieredTable
from serving.tiers.transfer import push, record_of
from tests.redis_cluster import Cluster, running_cluster

RESULTS = Path("bench/results/tiers.json")
DIM, IDS, ZIPF = 64, 20_000, 1.0
CACHE_SHARES = (0.01, 0.05, 0.1)
BUDGET_S = 0.1


class Requests:
    """The same requests for everybody: ids by a zipf law, popular ones anywhere in the table."""

    def __init__(self, rows: int, count: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        weights = np.cumsum(np.arange(1, rows + 1) ** -ZIPF)
        places = rng.permutation(rows)
        self.ids = [
            places[np.minimum(np.searchsorted(weights, rng.random(IDS) * weights[-1]), rows - 1)]
            for _ in range(count)
        ]
        self.distinct = float(np.mean([len(np.unique(ids)) for ids in self.ids]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=300_000, help="of the table; 256 bytes each (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each tier (%(default)s)")
    parser.add_argument(
        "--kills", type=int, default=20, help="SIGKILLs of pushes, over both stores (%(default)s)"
    )
    add_out(parser, RESULTS)
    options = parser.parse_args(argv)
    part = any(getattr(options, n) != parser.get_default(n) for n in ("rows", "rounds", "kills"))
    options.out = destination(options.out, RESULTS, part=part)
    with tempfile.TemporaryDirectory() as work, running_cluster(Path(".cache/redis"), Path(work)) as cluster:
        command = suite_command("tiers", argv or ())
        figures = _measure(Path(work), cluster, options)
        write_results(options.out, "tiers", command, figures)
        # The longest part: what was measured before it is kept if it is interrupted.
        figures += _kills(Path(work) / "bundle", Path(work) / "tables.json", options.kills)
        write_results(options.out, "tiers", command, figures)
    for figure in figures:
        results_console().print(
            f"{figure.name}: {figure.value:,.4g} {figure.unit}  {figure.note}", highlight=False
        )


def _measure(work: Path, cluster: Cluster, options: argparse.Namespace) -> list[Figure]:
    bundle, config = work / "bundle", work / "tables.json"
    write_random_table(bundle / "tables/t.table", options.rows, DIM)
    write_bundle(bundle, ["t"])
    stores = {"rocksdb": {"kind": "rocksdb", "path": str(work / "rocks")}}
    redis = {"kind": "redis", "nodes": cluster.nodes, "probe_ms": 50}
    config.write_text(json.dumps({"stores": {**stores, "redis": redis}}))
    table = open_table(bundle / "tables/t.table", memory="prefault")
    record = record_of("t", read_manifest(bundle).files["tables/t.table"], table)
    requests = Requests(options.rows, max(8, options.rounds))
    figures = [
        Figure(name="distinct_ids_per_request", value=requests.distinct, unit="ids", note=f"of {IDS:,}")
    ]
    before = _used_memory(cluster)
    with _open_stores(config) as opened:
        for name, store in opened.items():
            start = time.perf_counter()
            push(table, record, store, lambda done: None)
            seconds = time.perf_counter() - start
            figures.append(
                Figure(name=f"push_rows_per_s_{name}", value=options.rows / seconds, unit="rows/s")
            )
        added = (_used_memory(cluster) - before) / options.rows
        figures.append(
            Figure(name="redis_bytes_per_row", value=added, unit="B", note=f"{record.row_bytes} B of row")
        )
        figures += _tiers(table, record, opened, requests, options.rounds)
        figures += _processor_time(opened, record, requests, cluster)
        figures += _ways_to_ask(opened["redis"], record, requests, max(3, options.rounds // 3))
        figures += _dead_node(opened["redis"], record, requests, cluster)
    figures += _hit_rates(options.rows)
    return figures


def _tiers(
    table: Table, record: TableRecord, stores: dict[str, Store], requests: Requests, rounds: int
) -> list[Figure]:
    tiers: dict[str, Any] = {"dram": table}
    cache_bytes = int(0.05 * record.rows) * (record.row_bytes + 17)
    for name, store in stores.items():
        tiers[name] = TieredTable([store.open(record)], 0)
        tiers[f"{name}_cached"] = TieredTable([store.open(record)], cache_bytes)
    for tier in tiers.values():  # caches of all kinds are warm
        for ids in requests.ids:
            _fetch(tier, ids)
    calls = {name: _each(tier, requests) for name, tier in tiers.items()}
    timings = interleaved(calls, rounds=rounds, warm=0)
    figures = []
    for name, timing in timings.items():
        figures.append(_figure(f"ms_{name}", timing, f"a request of {IDS:,} zipf ids"))
        figures.append(
            Figure(
                name=f"lookups_per_s_{name}",
                value=IDS / timing.median * 1e3,
                unit="lookups/s",
                runs=timing.runs,
            )
        )
    for tier in tiers.values():
        if isinstance(tier, TieredTable):
            tier.close()
    return figures


def _processor_time(
    stores: dict[str, Store], record: TableRecord, requests: Requests, cluster: Cluster
) -> list[Figure]:
    """CPU time for each row that is not cached, here and in Redis: what others do on the machine does not
    count."""
    rows = sum(len(np.unique(ids)) for ids in requests.ids)
    figures = []
    for name, store in stores.items():
        tier = TieredTable([store.open(record)], 0)
        redis_before, before = _redis_seconds(cluster), time.process_time()
        for ids in requests.ids:
            _fetch(tier, ids)
        client, server = time.process_time() - before, _redis_seconds(cluster) - redis_before
        tier.close()
        figures.append(Figure(name=f"client_cpu_us_per_row_{name}", value=client / rows * 1e6, unit="us"))
        if name == "redis":
            note = "all nodes together"
            figures.append(
                Figure(name="node_cpu_us_per_row", value=server / rows * 1e6, unit="us", note=note)
            )
    return figures


def _redis_seconds(cluster: Cluster) -> float:
    found: list[Any] = [cluster.client(i).info("cpu") for i in range(cluster.masters)]
    return sum(f["used_cpu_user"] + f["used_cpu_sys"] for f in found)


def _ways_to_ask(store: Any, record: TableRecord, requests: Requests, rounds: int) -> list[Figure]:
    """One request's distinct rows, by our batches and by what redis-py has."""
    tier = TieredTable([store.open(record)], 0)
    names = TableKeys(record.prefix, record.buckets)
    keys = np.unique(requests.ids[0])
    plan = names.plan(keys, np.zeros(names.buckets, np.int64))
    texts = [name for run in range(len(plan.buckets)) for name in plan.names(run)]
    few = texts[:: max(1, len(texts) // 500)]

    def pipeline() -> None:
        commands = store.client.pipeline()
        for name in texts:
            commands.get(name)
        commands.execute()

    calls: dict[str, Callable[[], object]] = {
        "batches": lambda: _fetch(tier, keys),
        "redis_py_mget_by_slot": lambda: store.client.mget_nonatomic(texts),
        "redis_py_pipeline_of_get": pipeline,
        "mget_per_key": lambda: [store.client.mget([name]) for name in few],
    }
    found = interleaved(calls, rounds=rounds, warm=0)
    tier.close()
    per_key = found["mget_per_key"] = found["mget_per_key"].scaled(len(texts) / len(few))
    note = f"{len(texts):,} distinct rows of a cluster"
    figures = [_figure(f"ms_{name}", timing, note) for name, timing in found.items()]
    for name in ("redis_py_mget_by_slot", "redis_py_pipeline_of_get", "mget_per_key"):
        ratio = found[name].median / found["batches"].median
        figures.append(Figure(name=f"pipelining_speedup_vs_{name}", value=ratio, unit="x", runs=per_key.runs))
    return figures


def _dead_node(store: Any, record: TableRecord, requests: Requests, cluster: Cluster) -> list[Figure]:
    """Requests with a budget while a node is killed and comes back."""
    tier = TieredTable([store.open(record)], 0)
    milliseconds, missing = [], []

    def ask(seconds: float, until_whole: bool = False) -> None:
        end = time.monotonic() + seconds
        for ids in cycle(requests.ids):
            out = np.empty((len(ids), record.dim), np.float32)
            start = time.monotonic()
            late = tier.fetch(ids, out, start + BUDGET_S)
            milliseconds.append((time.monotonic() - start) * 1e3)
            missing.append(0 if late is None else int(late.sum()))
            if time.monotonic() > end or (until_whole and not missing[-1]):
                return

    ask(1.0)
    cluster.kill(1)
    ask(2.0)
    during = max(missing[-10:])
    cluster.start(1)
    begun = time.monotonic()
    ask(60.0, until_whole=True)
    tier.close()
    return [
        Figure(
            name="dead_node_max_ms",
            value=max(milliseconds),
            unit="ms",
            runs=len(milliseconds),
            note=f"the slowest lookup; the budget is {BUDGET_S * 1e3:g} ms",
        ),
        Figure(
            name="dead_node_default_share", value=during / IDS, unit="", note="one of three nodes is dead"
        ),
        Figure(
            name="dead_node_recovery_s", value=time.monotonic() - begun, unit="s", note="after its restart"
        ),
    ]


def _hit_rates(rows: int) -> list[Figure]:
    """Distinct ids that the cache of hot rows answers once it is warm, beside a cache that knows the law."""
    figures = []
    requests = Requests(rows, 60, seed=1)
    counts = np.bincount(np.concatenate([np.unique(ids) for ids in requests.ids]), minlength=rows)
    popular = np.argsort(-counts, kind="stable")
    for share in CACHE_SHARES:
        cache = HotRows(int(share * rows) * 25, 8)
        best = np.zeros(rows, bool)
        best[popular[: cache.rows]] = True
        hits = could = asked = 0
        for number, ids in enumerate(requests.ids):
            keys = np.unique(ids)
            found = cache.read(keys, np.empty((len(keys), 8), np.uint8))
            cache.offer(keys[~found], np.empty((int((~found).sum()), 8), np.uint8))
            if number >= 30:
                hits, could, asked = hits + int(found.sum()), could + int(best[keys].sum()), asked + len(keys)
        name = f"cache_hit_rate_{share * 100:g}_percent"
        note = f"a cache that knows what comes would answer {could / asked:.2f}"
        figures.append(Figure(name=name, value=hits / asked, unit="", runs=30, note=note))
    return figures


def _kills(bundle: Path, config: Path, kills: int) -> list[Figure]:
    survived = 0
    for number, store in enumerate(("rocksdb", "redis")):
        with _open_stores(config) as opened:
            for record in opened[store].records():
                opened[store].drop(record)
        share = kills // 2 + (kills % 2 if number == 0 else 0)
        for first in range(0, share, 5):
            survived += push_with_kills(
                bundle, config, store, kills=min(5, share - first), seed=first + number
            ).kills
            with _open_stores(config) as opened:
                for record in opened[store].records():
                    opened[store].drop(record)
    note = "SIGKILLs of a running push; every row compared after each five"
    return [Figure(name="kills_survived", value=survived, unit="kills", note=note)]


@contextmanager
def _open_stores(config: Path) -> Iterator[dict[str, Store]]:
    stores = {name: open_store(name, store) for name, store in load_config(config).stores.items()}
    try:
        yield stores
    finally:
        for store in stores.values():
            store.close()


def _fetch(tier: Any, ids: np.ndarray) -> None:
    out = np.empty((len(ids), DIM), np.float32)
    late = tier.fetch(np.ascontiguousarray(ids, np.int64), out, time.monotonic() + 30)
    assert late is None, f"{int(late.sum())} rows did not arrive"


def _each(tier: Any, requests: Requests) -> Callable[[], None]:
    ids = cycle(requests.ids)
    return lambda: _fetch(tier, next(ids))


def _figure(name: str, timing: Timing, note: str) -> Figure:
    return timing.estimate.figure(name, "ms", timing.runs, note)


def _used_memory(cluster: Cluster) -> int:
    return sum(cluster.client(i).info("memory")["used_memory"] for i in range(cluster.masters))  # type: ignore[index]
