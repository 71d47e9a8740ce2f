"""Where a table's rows are in Redis Cluster, and the bytes that ask for them.

A table is cut into buckets, each in one slot, so that many rows are one MGET. A row's key is 20 bytes:

    `{` tag (4) `}` | prefix (6: table and version) | key (8, big-endian)

The tag decides the slot. Tags are chosen so that the buckets' slots lie at equal distances: nodes with equal
ranges of slots hold equal parts of every table, within one bucket.
"""

import binascii
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.tiers.record import big_endian

SLOTS = 16384
BUCKETS = 1024
"""Of a table. A request for 20,000 rows then has some 10 to 20 rows in each MGET; fewer buckets are hardly
faster (docs/tiers.md), and divide less evenly among many nodes."""
_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"
_TAG = 4
_KEY = 20
_FRAME = len(b"$20\r\n") + _KEY + len(b"\r\n")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def slot_of(tag: bytes) -> int:
    """Redis Cluster's: CRC16 (XMODEM) of what is between the braces."""
    return binascii.crc_hqx(tag, 0) % SLOTS


@functools.cache
def bucket_tags(buckets: int) -> tuple[bytes, ...]:
    """The tag of each bucket; bucket b lies in slot `b * SLOTS // buckets`."""
    wanted = {bucket * SLOTS // buckets: bucket for bucket in range(buckets)}
    tags: list[bytes] = [b""] * buckets
    number = 0
    while wanted:
        rest, tag = number, bytearray()
        for _ in range(_TAG):
            rest, digit = divmod(rest, len(_DIGITS))
            tag.append(_DIGITS[digit])
        bucket = wanted.pop(slot_of(bytes(tag)), None)
        if bucket is not None:
            tags[bucket] = bytes(tag)
        number += 1
    return tuple(tags)


@dataclass(frozen=True)
class Plan:
    """Keys in the order of their nodes and buckets. Run i is `order[starts[i]:starts[i + 1]]` of what was
    given: keys of one bucket."""

    order: np.ndarray
    keys: np.ndarray
    frames: bytes
    starts: list[int]
    buckets: list[int]
    """Of each run."""
    nodes: np.ndarray
    """Of each run."""

    def mget(self, run: int) -> bytes:
        """The command that asks for the rows of a run."""
        start, stop = self.starts[run], self.starts[run + 1]
        return b"*%d\r\n$4\r\nMGET\r\n%b" % (stop - start + 1, self.frames[_FRAME * start : _FRAME * stop])

    def names(self, run: int) -> list[bytes]:
        """The keys in Redis of a run's rows."""
        start, stop = self.starts[run], self.starts[run + 1]
        at = range(_FRAME * start + 5, _FRAME * stop, _FRAME)
        return [self.frames[a : a + _KEY] for a in at]


class TableKeys:
    """The names that one table has in the cluster."""

    def __init__(self, prefix: bytes, buckets: int):
        self.prefix = prefix
        self.buckets = buckets
        self.tags = bucket_tags(buckets)
        self.slots = [bucket * SLOTS // buckets for bucket in range(buckets)]
        self._heads = np.frombuffer(
            b"".join(b"$%d\r\n{%b}%b" % (_KEY, tag, prefix) for tag in self.tags), np.uint8
        ).reshape(buckets, -1)

    def bucket_of(self, keys: np.ndarray) -> np.ndarray:
        """`[n]` int64 buckets of `[n]` int64 keys."""
        mixed = (keys.astype(np.uint64) * _MIX) >> np.uint64(32)
        return ((mixed * np.uint64(self.buckets)) >> np.uint64(32)).astype(np.int64)

    def marker(self, bucket: int) -> bytes:
        """Holds how many rows of the table, from the front, are pushed as far as this bucket goes. It is
        written together with the bucket's rows: a node that lost rows lost it too."""
        return b"{%b}%b#" % (self.tags[bucket], self.prefix)

    def key_block(self, block: int) -> bytes:
        """Holds `KEY_BLOCK` keys of a keyed table, in the order of its file."""
        return b"{%b}%bk%d" % (self.tags[block % self.buckets], self.prefix, block)

    def plan(self, keys: np.ndarray, node_of_bucket: np.ndarray) -> Plan:
        """`[n]` int64 keys as runs; `node_of_bucket` is `[buckets]`."""
        buckets = self.bucket_of(keys)
        nodes = node_of_bucket[buckets]
        order = np.argsort(nodes * self.buckets + buckets, kind="stable")
        keys, buckets, nodes = keys[order], buckets[order], nodes[order]
        frames = np.empty((len(keys), _FRAME), np.uint8)
        head = self._heads.shape[1]
        frames[:, :head] = self._heads[buckets]
        frames[:, head : head + 8] = big_endian(keys)
        frames[:, head + 8 :] = np.frombuffer(b"\r\n", np.uint8)
        first = np.flatnonzero(np.diff(buckets, prepend=-1))
        return Plan(
            order=order,
            keys=keys,
            frames=frames.tobytes(),
            starts=[*first.tolist(), len(keys)],
            buckets=buckets[first].tolist(),
            nodes=nodes[first],
        )


def command(*parts: bytes) -> bytes:
    """One command in Redis's protocol."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def mset(names: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Sets all in one step; the names must have one slot."""
    pairs = b"".join(
        b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(n), n, len(v), v) for n, v in zip(names, values, strict=True)
    )
    return b"*%d\r\n$4\r\nMSET\r\n%b" % (1 + 2 * len(names), pairs)
