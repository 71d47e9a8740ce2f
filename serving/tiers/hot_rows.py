"""Rows that are asked for often, kept in DRAM: a set-associative cache in arrays, with TinyLFU's admission.

A new row replaces the least used of the eight in its set only if it was asked for more often: rows that are
asked for once (most of a zipf tail) do not drive out others. Uses of cached rows are counted exactly, those
of other keys in a small count-min sketch; all counts are halved from time to time, so that old fame fades.
G. Einziger, R. Friedman, B. Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017.

The caching libraries of Python keep an object for each key, at a microsecond or more for each access; here a
request's keys are one array.
"""

import threading
from dataclasses import dataclass

import numpy as np

_WAYS = 8
_SKETCH_PER_ROW = 8
"""Counters of the sketch, for each row that fits."""
_SAMPLE_PER_ROW = 10
"""Keys that are counted until all counts are halved, for each row that fits."""
_MOST = np.uint8(255)
_FREE = np.iinfo(np.int64).min
"""The key of an empty place; this key itself is never cached."""
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


@dataclass(frozen=True)
class CacheCounts:
    """Since the start: distinct keys of each request that were looked for and found; rows taken in."""

    looked_up: int
    hits: int
    admitted: int


class HotRows:
    """Raw rows by int64 key, in at most `capacity_bytes` of memory. Thread-safe."""

    def __init__(self, capacity_bytes: int, row_bytes: int):
        per_row = row_bytes + 8 + 1 + _SKETCH_PER_ROW
        self._sets = max(1, capacity_bytes // (per_row * _WAYS))
        places = self._sets * _WAYS
        self._keys = np.full((self._sets, _WAYS), _FREE, np.int64)
        self._uses = np.zeros(places, np.uint8)
        self._rows = np.zeros((places, row_bytes), np.uint8)
        self._sketch = np.zeros((2, places * _SKETCH_PER_ROW // 2), np.uint8)
        self._sample = 0
        self._looked_up = self._hits = self._admitted = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Of memory, all taken at the start."""
        return sum(a.nbytes for a in (self._keys, self._uses, self._rows, self._sketch))

    @property
    def rows(self) -> int:
        """That fit."""
        return len(self._rows)

    def counts(self) -> CacheCounts:
        with self._lock:
            return CacheCounts(self._looked_up, self._hits, self._admitted)

    def read(self, keys: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Writes the rows that are here and counts a use of every key.

        Args:
            keys: `[n]` int64, each once. out: `[n, row_bytes]` uint8.

        Returns:
            `[n]` bool, whether the row was written.
        """
        sets = self._set_of(keys)
        with self._lock:
            match = self._keys[sets] == keys[:, None]
            found = match.any(axis=1) & (keys != _FREE)
            at = np.flatnonzero(found)
            places = sets[at] * _WAYS + match[at].argmax(axis=1)
            out[at] = self._rows[places]
            self._uses[places] += self._uses[places] < _MOST
            self._count(keys[~found])
            self._age(len(keys))
            self._looked_up += len(keys)
            self._hits += len(at)
        return found

    def offer(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Takes in the rows (`[n, row_bytes]` uint8) of keys (`[n]` int64, each once) that `read` did not
        find and that deserve a place: one for each set at most, the most used."""
        usable = keys != _FREE
        keys, rows = keys[usable], rows[usable]
        if not len(keys):
            return
        sets = self._set_of(keys)
        with self._lock:
            uses = self._estimate(keys)
            order = np.lexsort((-uses.astype(np.int16), sets))
            first = order[np.r_[True, np.diff(sets[order]) != 0]]
            keys, rows, sets, uses = keys[first], rows[first], sets[first], uses[first]
            there = self._keys[sets]
            # Another request may have brought the same row in the meantime.
            wanted = ~(there == keys[:, None]).any(axis=1)
            held = np.where(there == _FREE, -1, self._uses.reshape(-1, _WAYS)[sets].astype(np.int16))
            way = held.argmin(axis=1)
            least = held[np.arange(len(way)), way]
            at = np.flatnonzero(wanted & (uses > least))
            places = sets[at] * _WAYS + way[at]
            leaving = self._keys.reshape(-1)[places]
            self._remember(leaving[leaving != _FREE], self._uses[places][leaving != _FREE])
            self._keys.reshape(-1)[places] = keys[at]
            self._rows[places] = rows[at]
            self._uses[places] = uses[at]
            self._admitted += len(at)

    def _set_of(self, keys: np.ndarray) -> np.ndarray:
        mixed = keys.astype(np.uint64) * _MULTIPLIERS[0]
        return ((mixed >> np.uint64(32)) * np.uint64(self._sets) >> np.uint64(32)).astype(np.int64)

    def _counters(self, keys: np.ndarray) -> list[np.ndarray]:
        width = np.uint64(self._sketch.shape[1])
        mixed = keys.astype(np.uint64)
        mixed ^= mixed >> np.uint64(31)
        return [(((mixed * m) >> np.uint64(32)) * width) >> np.uint64(32) for m in _MULTIPLIERS[1:]]

    def _estimate(self, keys: np.ndarray) -> np.ndarray:
        return np.minimum(*(row[c] for row, c in zip(self._sketch, self._counters(keys), strict=True)))

    def _count(self, keys: np.ndarray) -> None:
        for row, counters in zip(self._sketch, self._counters(keys), strict=True):
            row[counters] += row[counters] < _MOST

    def _remember(self, keys: np.ndarray, uses: np.ndarray) -> None:
        """What was counted for a row while it was here, so that it comes back if it deserves to."""
        for row, counters in zip(self._sketch, self._counters(keys), strict=True):
            row[counters] = np.maximum(row[counters], uses)

    def _age(self, counted: int) -> None:
        self._sample += counted
        if self._sample >= _SAMPLE_PER_ROW * self.rows:
            self._sketch >>= 1
            self._uses >>= 1
            self._sample = 0
