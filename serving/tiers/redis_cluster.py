"""A Redis Cluster as a store: its nodes and slots, kept up to date in the background, and what it holds.

`redis_keys.py` names rows, `redis_node.py` talks to a node, `redis_table.py` reads and `redis_writer.py`
writes a table. redis-py finds the nodes, logs in, and follows a slot that moves; the batches are ours.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
)

from serving.tiers.config import RedisStore
from serving.tiers.errors import StoreUnavailableError, TableNotStoredError
from serving.tiers.record import KEY_BLOCK, TableRecord, decode_record
from serving.tiers.redis_keys import SLOTS, TableKeys, command
from serving.tiers.redis_node import Credentials, Node, connection_options
from serving.tiers.store import Share

log = logging.getLogger("jaxrank")

RECORDS = b"jaxrank:tables"
"""A hash: the record of every table, by its identity."""


class OpenTable(Protocol):
    """A table whose rows a node must hold in full before it is asked again."""

    @property
    def record(self) -> TableRecord: ...

    @property
    def names(self) -> TableKeys: ...


@dataclass(frozen=True)
class Topology:
    """`of_slot` is `[SLOTS]` int64, the slot's node in `nodes`; -1 where no node has it."""

    nodes: tuple[Node, ...]
    of_slot: np.ndarray


@dataclass(frozen=True)
class Progress:
    """Of one bucket: rows of the table, from the front, that were pushed as far as it goes, and how many of
    them it has."""

    position: int
    rows: int


class Cluster:
    """A store of the config. Raises `StoreUnavailableError` when it cannot be reached at the start."""

    def __init__(self, name: str, config: RedisStore):
        self.name = name
        self.config = config
        self._credentials = _credentials(config)
        self.client = self._client()
        self._tables: list[OpenTable] = []
        self._nodes: dict[str, Node] = {}
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._topology = self._read_topology()

    @property
    def topology(self) -> Topology:
        return self._topology

    def refresh(self) -> None:
        """Asks the cluster again which node has which slot. Raises what redis-py raises."""
        with self._lock:
            self.client.nodes_manager.initialize()
            self._topology = self._read_topology()

    def refresh_soon(self) -> None:
        """The same in the background, once at a time; failures are logged."""

        def run() -> None:
            try:
                self.refresh()
            except (redis.RedisError, RedisClusterException) as error:
                log.warning("the slots of Redis Cluster %r cannot be read: %s", self.name, error)
            finally:
                self._refreshing.release()

        if self._refreshing.acquire(blocking=False):
            threading.Thread(target=run, name="redis slots", daemon=True).start()

    def register(self, table: OpenTable) -> None:
        with self._lock:
            self._tables.append(table)

    def unregister(self, table: OpenTable) -> None:
        with self._lock:
            self._tables.remove(table)

    def records(self) -> list[TableRecord]:
        stored: Any = self.call(lambda: self.client.hgetall(RECORDS.decode()))
        try:
            return sorted(map(decode_record, stored.values()), key=lambda r: r.identity)
        except msgspec.DecodeError as error:
            raise TableNotStoredError(
                f"store {self.name!r} has a record under {RECORDS.decode()} that is of another jaxrank: "
                f"{error}; "
                "use the jaxrank that pushed it, or push again"
            ) from error

    def position(self, record: TableRecord) -> int:
        progress = self.progress(record, TableKeys(record.prefix, record.buckets))
        return min(p.position for p in progress)

    def progress(self, record: TableRecord, names: TableKeys) -> list[Progress]:
        """Of every bucket. Raises `StoreUnavailableError` where a node does not answer."""
        found = [Progress(0, 0)] * names.buckets
        topology = self.topology
        owners = topology.of_slot[names.slots]
        if (owners < 0).any():
            raise StoreUnavailableError(
                f"Redis Cluster {self.name!r} has no node for {int((owners < 0).sum())} of the table's "
                "buckets; "
                "see `redis-cli --cluster check`"
            )
        for index, node in enumerate(topology.nodes):
            buckets = np.flatnonzero(owners == index).tolist()
            found_here = self._progress_of(node, names, buckets)
            for bucket, progress in zip(buckets, found_here, strict=True):
                found[bucket] = progress
        return found

    def shares(self, record: TableRecord) -> list[Share]:
        names = TableKeys(record.prefix, record.buckets)
        topology = self.topology
        shares = []
        for index, node in enumerate(topology.nodes):
            buckets = np.flatnonzero(topology.of_slot[names.slots] == index).tolist()
            try:
                rows = sum(p.rows for p in self._progress_of(node, names, buckets))
                used = int(self.information(node)["used_memory"])
                shares.append(Share(place=node.name, rows=rows, bytes=used))
            except StoreUnavailableError:
                shares.append(Share(place=node.name, rows=None, bytes=None))
        return shares

    def information(self, node: Node) -> dict[str, str]:
        """`INFO memory` of a node."""
        (answer,) = self._answers(node, [command(b"INFO", b"memory")])
        pairs = (line.partition(":") for line in answer.decode().split("\r\n"))
        return {key: value for key, _, value in pairs}

    def open(self, record: TableRecord) -> Any:
        from serving.tiers.redis_table import RedisTable

        stored = self.position(record)
        if stored != record.rows:
            raise TableNotStoredError(
                f"store {self.name!r} holds {stored} of the {record.rows} rows of {record.identity}: a "
                "push is "
                "not done, or a node lost rows; run `jaxrank tables push` again, which goes on from there"
            )
        return RedisTable(self, record)

    def read_keys(self, record: TableRecord, start: int, stop: int) -> np.ndarray:
        names = TableKeys(record.prefix, record.buckets)
        found = []
        for block in range(start // KEY_BLOCK, -(-stop // KEY_BLOCK)):
            value: Any = self.call(lambda block=block: self.client.get(names.key_block(block)))
            if value is None:
                raise TableNotStoredError(
                    f"store {self.name!r} lacks keys of {record.identity}; push it again"
                )
            found.append(value)
        return np.frombuffer(b"".join(found), "<i8")[: stop - start].astype(np.int64)

    def writer(self, record: TableRecord) -> Any:
        from serving.tiers.redis_writer import RedisWriter

        return RedisWriter(self, record)

    def drop(self, record: TableRecord) -> None:
        from serving.tiers.redis_writer import drop

        drop(self, record)

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()
        self.client.close()

    def _answers(self, node: Node, commands: Sequence[bytes]) -> list[Any]:
        """All answers of a node, none of them an error. Raises `StoreUnavailableError`."""
        answers = node.ask(commands, time.monotonic() + self.config.connect_ms / 1e3 + 1) if commands else []
        wrong = next((a for a in answers if isinstance(a, ResponseError)), None)
        if len(answers) != len(commands) or wrong is not None:
            raise StoreUnavailableError(
                f"Redis node {node.name} of store {self.name!r} does not answer: {wrong or 'no connection'}; "
                "see its log, or `redis-cli --cluster check`"
            )
        return answers

    def _progress_of(self, node: Node, names: TableKeys, buckets: Sequence[int]) -> list[Progress]:
        answers = self._answers(node, [command(b"GET", names.marker(bucket)) for bucket in buckets])
        return [Progress(*map(int, a.split())) if a else Progress(0, 0) for a in answers]

    def _probe(self, node: Node) -> None:
        """Whether a node may be asked again: it answers, and has all rows of the tables that are open."""
        self.refresh()
        topology = self._topology
        if node not in topology.nodes:
            return  # another node has its slots now
        node.look()
        index = topology.nodes.index(node)
        for table in list(self._tables):
            buckets = np.flatnonzero(topology.of_slot[table.names.slots] == index).tolist()
            progress = self._progress_of(node, table.names, buckets)
            lost = sum(p.position < table.record.rows for p in progress)
            if lost:
                raise StoreUnavailableError(
                    f"it lost rows of {table.record.identity} in {lost} of {len(buckets)} buckets; run "
                    "`jaxrank "
                    "tables push` again, which brings them back"
                )

    def call(self, work: Callable[[], Any]) -> Any:
        """What redis-py's client gives, with its errors as `StoreUnavailableError`."""
        try:
            return work()
        except (redis.RedisError, RedisClusterException) as error:
            raise StoreUnavailableError(_what_to_do(self.name, error)) from error

    def _client(self) -> RedisCluster:
        options = connection_options(self.config, self._credentials)
        retry = options.pop("retry")
        try:
            return RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in self.config.addresses()],
                require_full_coverage=False,
                retry=retry,
                ssl=self.config.tls,
                **options,
            )
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise StoreUnavailableError(_what_to_do(self.name, error)) from error

    def _read_topology(self) -> Topology:
        manager = self.client.nodes_manager
        slots = dict(manager.slots_cache)
        nodes: list[Node] = []
        of_slot = np.full(SLOTS, -1, np.int64)
        index: dict[str, int] = {}
        for slot, owners in slots.items():
            owner = owners[0]
            if owner.name not in index:
                if owner.name not in self._nodes:
                    self._nodes[owner.name] = Node(
                        owner.host, owner.port, self.config, self._credentials, self._probe
                    )
                index[owner.name] = len(nodes)
                nodes.append(self._nodes[owner.name])
            of_slot[slot] = index[owner.name]
        return Topology(tuple(nodes), of_slot)


def _credentials(config: RedisStore) -> Credentials | None:
    if config.password_env is not None:
        password = os.environ[config.password_env]
        return Credentials(config, lambda: password)
    if config.password_file is not None:
        file = config.password_file
        return Credentials(config, lambda: file.read_text().strip())
    return None


def _what_to_do(store: str, error: BaseException) -> str:
    """redis-py's errors as messages; redis-py puts no password into them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AuthenticationError | AuthorizationError):
            return (
                f"store {store!r}: Redis refuses the login ({cause}); check username, password_env and "
                f"password_file of stores.{store} in the tables config"
            )
        if isinstance(cause, NoPermissionError):
            return (
                f"store {store!r}: the Redis user lacks a right ({cause}); docs/tiers.md lists those "
                "that are needed"
            )
        cause = cause.__cause__
    if "Cluster mode is not enabled" in str(error):
        return (
            f"store {store!r}: the Redis server is not part of a cluster; start it with cluster-enabled yes "
            "and make a cluster (`redis-cli --cluster create`)"
        )
    return (
        f"store {store!r}: Redis Cluster does not answer ({error}); check stores.{store}.nodes and the "
        "network"
    )
