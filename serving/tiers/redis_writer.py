"""Writes a table to a Redis Cluster: each step one MSET for each bucket, with the bucket's new position in
it.

A node that loses its last writes loses positions with rows, so a push that goes on from the smallest position
misses nothing, whatever crashed.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
from redis.exceptions import AskError, OutOfMemoryError, ResponseError, TryAgainError

from serving.tiers.errors import StoredTableError, StoreFullError, StoreUnavailableError
from serving.tiers.record import KEY_BLOCK, TableRecord, chunk_rows, encode_record
from serving.tiers.redis_cluster import RECORDS, Cluster, Progress
from serving.tiers.redis_keys import SLOTS, TableKeys, command, mset, slot_of
from serving.tiers.redis_node import Node

_STEP_SECONDS = 30.0
"""For one step of some MiB; a node that needs longer is not there."""
_MOVING_SECONDS = 60.0
"""For slots to settle on a node while the cluster is balanced."""


class RedisWriter:
    """One push."""

    def __init__(self, cluster: Cluster, record: TableRecord):
        for node in cluster.topology.nodes:
            _refuse_eviction(cluster, node)
        self._cluster = cluster
        self._record = record
        self._names = TableKeys(record.prefix, record.buckets)
        self._progress = cluster.progress(record, self._names)
        cluster.call(lambda: cluster.client.hset(RECORDS.decode(), record.identity, encode_record(record)))

    @property
    def position(self) -> int:
        return min(p.position for p in self._progress)

    def write(self, start: int, keys: np.ndarray | None, rows: np.ndarray) -> None:
        own = np.arange(start, start + len(rows), dtype=np.int64) if keys is None else keys
        stop = start + len(rows)
        pieces = self._bucket_commands(own, rows, stop)
        if keys is not None:
            for at in range(0, len(rows), KEY_BLOCK):
                block = (start + at) // KEY_BLOCK
                value = own[at : at + KEY_BLOCK].astype("<i8").tobytes()
                slot = self._names.slots[block % self._names.buckets]
                pieces.append((slot, mset([self._names.key_block(block)], [value])))
        execute(self._cluster, pieces)
        counts = np.bincount(self._names.bucket_of(own), minlength=self._names.buckets).tolist()
        self._progress = [
            Progress(stop, p.rows + n) if p.position < stop else p
            for p, n in zip(self._progress, counts, strict=True)
        ]

    def close(self) -> None:
        pass

    def _bucket_commands(self, keys: np.ndarray, rows: np.ndarray, stop: int) -> list[tuple[int, bytes]]:
        """(slot, MSET) of every bucket that is not there yet."""
        plan = self._names.plan(keys, np.zeros(self._names.buckets, np.int64))
        head, size = b"$%d\r\n" % rows.shape[1], rows.shape[1]
        names = np.frombuffer(plan.frames, np.uint8).reshape(len(keys), -1)
        ends = np.frombuffer(head + b"\r\n", np.uint8)
        pairs = np.empty((len(keys), names.shape[1] + len(ends) + size), np.uint8)
        a, b = names.shape[1], names.shape[1] + len(head)
        pairs[:, :a], pairs[:, a:b], pairs[:, b : b + size] = names, ends[:-2], rows[plan.order]
        pairs[:, b + size :] = ends[-2:]
        data, width = pairs.tobytes(), pairs.shape[1]
        runs = {bucket: run for run, bucket in enumerate(plan.buckets)}
        commands = []
        for bucket, progress in enumerate(self._progress):
            if progress.position >= stop:
                continue  # a push that was killed came this far
            run = runs.get(bucket)
            first, last = (0, 0) if run is None else plan.starts[run : run + 2]
            value = b"%d %d" % (stop, progress.rows + last - first)
            name = self._names.marker(bucket)
            marker = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(value), value)
            body = data[first * width : last * width]
            whole = b"*%d\r\n$4\r\nMSET\r\n%b%b" % (3 + 2 * (last - first), body, marker)
            commands.append((self._names.slots[bucket], whole))
        return commands


def execute(cluster: Cluster, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Runs (slot, command) on the slots' nodes, all nodes at once, and again where slots moved.

    Raises `StoreFullError` and `StoreUnavailableError`.
    """
    todo = _execute_once(cluster, list(pieces))
    give_up = time.monotonic() + _MOVING_SECONDS
    while todo and time.monotonic() < give_up:
        time.sleep(0.1)
        cluster.call(cluster.refresh)
        todo = _execute_once(cluster, todo)
    if not todo:
        return
    raise StoreUnavailableError(
        f"store {cluster.name!r}: {len(todo)} slots do not stay on a node; wait until the cluster is "
        "balanced "
        "and run the same command again, which goes on from here"
    )


def _execute_once(cluster: Cluster, pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    topology = cluster.topology
    by_node: dict[int, list[tuple[int, bytes]]] = {}
    for piece in pieces:
        by_node.setdefault(int(topology.of_slot[piece[0]]), []).append(piece)
    if -1 in by_node:
        raise StoreUnavailableError(
            f"store {cluster.name!r}: no node has slot {by_node[-1][0][0]} of {SLOTS}; see `redis-cli "
            "--cluster "
            "check`, then run the same command again, which goes on from here"
        )
    deadline = time.monotonic() + _STEP_SECONDS
    asked: list[tuple[Node, list[tuple[int, bytes]], Future[list[Any]]]] = []
    for index, mine in by_node.items():
        node = topology.nodes[index]
        asked.append((node, mine, node.submit([piece for _, piece in mine], deadline)))
    moved: list[tuple[int, bytes]] = []
    problems: list[Exception] = []
    for node, mine, future in asked:
        answers = future.result()
        for piece, answer in zip(mine, answers, strict=False):
            if isinstance(answer, AskError | TryAgainError):
                moved.append(piece)
            elif isinstance(answer, ResponseError):
                problems.append(_problem(cluster, node, answer))
        if len(answers) < len(mine):
            problems.append(
                StoreUnavailableError(
                    f"store {cluster.name!r}: Redis node {node.name} went away; start it and run the same "
                    "command again, which goes on from here"
                )
            )
    if problems:
        raise problems[0]
    return moved


def _problem(cluster: Cluster, node: Node, error: ResponseError) -> Exception:
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "MISCONF" in text or "No space left" in text:
        return StoreFullError(
            f"store {cluster.name!r}: Redis node {node.name} takes no more: {text}. What was pushed "
            "stays; give "
            "it memory or disk (maxmemory), or add nodes, and run the same command again, which goes on from "
            "here"
        )
    return StoreUnavailableError(f"store {cluster.name!r}: Redis node {node.name} refuses rows: {text}")


def _refuse_eviction(cluster: Cluster, node: Node) -> None:
    found = cluster.information(node)
    if int(found.get("maxmemory", 0)) and found.get("maxmemory_policy") != "noeviction":
        raise StoredTableError(
            f"store {cluster.name!r}: Redis node {node.name} drops keys when it is full (maxmemory-policy "
            f"{found.get('maxmemory_policy')}), and rows with them; set maxmemory-policy noeviction"
        )


def drop(cluster: Cluster, record: TableRecord) -> None:
    """Removes a table: its record first, so that nobody opens it, then its rows, its keys and positions."""
    names = TableKeys(record.prefix, record.buckets)
    step = chunk_rows(record.row_bytes)
    stored = cluster.position(record)
    cluster.call(lambda: cluster.client.hdel(RECORDS.decode(), record.identity))
    for start in range(0, min(stored + step, record.rows), step):
        stop = min(start + step, record.rows)
        if record.keyed:
            if start >= stored:
                break  # its keys are not known; rows of a step that was never finished stay
            keys = cluster.read_keys(record, start, min(stop, stored))
        else:
            keys = np.arange(start, stop, dtype=np.int64)
        plan = names.plan(keys, np.zeros(names.buckets, np.int64))
        runs = range(len(plan.buckets))
        execute(cluster, [(names.slots[plan.buckets[r]], command(b"UNLINK", *plan.names(r))) for r in runs])
    blocks = [names.key_block(b) for b in range(-(-record.rows // KEY_BLOCK))] if record.keyed else []
    rest = [*blocks, *(names.marker(bucket) for bucket in range(names.buckets))]
    execute(cluster, [(_slot(name), command(b"UNLINK", name)) for name in rest])


def _slot(name: bytes) -> int:
    return slot_of(name[1 : name.index(b"}")])
