"""Looks rows of one table up in a Redis Cluster: one batch of MGETs for each node, all nodes at once."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain
from typing import Any

import numpy as np
from redis.exceptions import AskError, ResponseError, TryAgainError

from serving.tiers.errors import StoredTableError
from serving.tiers.record import TableRecord
from serving.tiers.redis_cluster import Cluster, Topology
from serving.tiers.redis_keys import Plan, TableKeys
from serving.tiers.store import place_rows

log = logging.getLogger("jaxrank")

_LAST_SECONDS = 0.001
"""Nodes' threads stop this long before the deadline and hand over what they have."""


class RedisTable:
    """A whole table, opened for lookups. Thread-safe."""

    def __init__(self, cluster: Cluster, record: TableRecord):
        self.record = record
        self.names = TableKeys(record.prefix, record.buckets)
        self._cluster = cluster
        self._redirects = ThreadPoolExecutor(1, thread_name_prefix="redis redirects")
        self._owners: tuple[Topology, np.ndarray] | None = None
        cluster.register(self)

    def fetch(self, keys: np.ndarray, rows: np.ndarray, states: np.ndarray, deadline: float | None) -> None:
        if not len(keys):
            return
        topology = self._cluster.topology
        plan = self.names.plan(keys, self._owner_of_bucket(topology))
        until = None if deadline is None else deadline - _LAST_SECONDS
        asked: dict[Future[list[Any]], int] = {}
        for first, last in _spans(plan.nodes):
            node = topology.nodes[plan.nodes[first]] if plan.nodes[first] >= 0 else None
            if node is not None and not node.breaker.open:
                asked[node.submit([plan.mget(run) for run in range(first, last)], until)] = first
        moved: list[int] = []
        for future in _done(asked, deadline):
            moved += self._place(plan, asked[future], future.result(), rows, states)
        if moved:
            self._follow(plan, moved, rows, states, deadline)

    def close(self) -> None:
        self._cluster.unregister(self)
        self._redirects.shutdown(wait=False, cancel_futures=True)

    def _owner_of_bucket(self, topology: Topology) -> np.ndarray:
        known = self._owners
        if known is None or known[0] is not topology:
            known = self._owners = (topology, topology.of_slot[self.names.slots])
        return known[1]

    def _place(
        self, plan: Plan, first: int, answers: list[Any], rows: np.ndarray, states: np.ndarray
    ) -> list[int]:
        """Writes the rows of the answered runs; returns the runs whose slot is elsewhere."""
        moved: list[int] = []
        whole: list[tuple[int, list[bytes | None]]] = []
        for run, answer in enumerate(answers, first):
            if not isinstance(answer, ResponseError):
                whole.append((run, answer))
            elif isinstance(answer, AskError | TryAgainError):
                moved.append(run)
        self._write(plan, whole, rows, states)
        return moved

    def _write(
        self, plan: Plan, found: list[tuple[int, list[bytes | None]]], rows: np.ndarray, states: np.ndarray
    ) -> None:
        if not found:
            return
        at = np.concatenate([plan.order[plan.starts[run] : plan.starts[run + 1]] for run, _ in found])
        try:
            place_rows(list(chain.from_iterable(values for _, values in found)), at, rows, states)
        except StoredTableError as error:
            log.error("table %s in store %r: %s", self.record.identity, self._cluster.name, error)

    def _follow(
        self, plan: Plan, runs: list[int], rows: np.ndarray, states: np.ndarray, deadline: float | None
    ) -> None:
        """Slots that moved, or are moving: redis-py follows them key by key, while the new owners are
        read."""
        self._cluster.refresh_soon()

        def get() -> list[Any]:
            pipeline = self._cluster.client.pipeline()
            for run in runs:
                for name in plan.names(run):
                    pipeline.get(name)
            return pipeline.execute(raise_on_error=False)

        for future in _done({self._redirects.submit(get): 0}, deadline):
            error = future.exception()
            if error is not None:
                log.warning("store %r: rows of slots that moved were not read: %s", self._cluster.name, error)
                continue
            values = iter(future.result())
            sizes = [plan.starts[run + 1] - plan.starts[run] for run in runs]
            answers = [
                (run, [next(values) for _ in range(size)]) for run, size in zip(runs, sizes, strict=True)
            ]
            whole = [(run, v) for run, v in answers if not any(isinstance(x, Exception) for x in v)]
            self._write(plan, whole, rows, states)


def _spans(nodes: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of runs of one node; a node's runs lie together."""
    edges = [*np.flatnonzero(np.diff(nodes, prepend=-2)).tolist(), len(nodes)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _done(asked: dict[Future[list[Any]], int], deadline: float | None) -> set[Future[list[Any]]]:
    """What ends until the deadline; what has not begun by then never does."""
    done, late = wait(asked, None if deadline is None else max(0.0, deadline - time.monotonic()))
    for future in late:
        future.cancel()
    return done
