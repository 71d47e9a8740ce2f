"""The cache of hot rows: right rows, bounded memory, and hit rates beside LRU's and the best possible."""

import threading
from collections import OrderedDict

import numpy as np
import pytest

from serving.tiers.hot_rows import HotRows

ROW_BYTES = 16


def _rows_of(keys: np.ndarray) -> np.ndarray:
    """`[n, 16]` uint8 that are different for each key."""
    return np.repeat(keys.astype("<i8")[:, None], 2, axis=1).view(np.uint8)


def _look_up(cache: HotRows, keys: np.ndarray) -> int:
    """One request; returns hits."""
    out = np.zeros((len(keys), ROW_BYTES), np.uint8)
    found = cache.read(keys, out)
    assert np.array_equal(out[found], _rows_of(keys[found]))
    cache.offer(keys[~found], _rows_of(keys[~found]))
    return int(found.sum())


@pytest.mark.parametrize("seed", range(3))
def test_it_gives_the_row_that_was_offered(seed: int) -> None:
    """Keys of all magnitudes, and the one that marks a free place."""
    rng = np.random.default_rng(seed)
    cache = HotRows(4096, ROW_BYTES)
    edges = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, -1, 0])
    pool = np.concatenate([edges, rng.integers(-(2**62), 2**62, 300)])
    hits = sum(_look_up(cache, np.unique(rng.choice(pool, 100))) for _ in range(200))
    assert hits > 0
    counts = cache.counts()
    assert counts.hits == hits and counts.looked_up >= hits


@pytest.mark.parametrize("capacity", [1, 1000, 1 << 20])
def test_memory_is_bounded(capacity: int) -> None:
    cache = HotRows(capacity, ROW_BYTES)
    smallest = HotRows(0, ROW_BYTES).bytes
    assert cache.bytes <= max(capacity, smallest)
    before = cache.bytes
    _look_up(cache, np.arange(100_000))
    assert cache.bytes == before


def _zipf(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    weights = np.cumsum(1 / np.arange(1, rows + 1))
    return np.unique(np.searchsorted(weights, rng.random(size) * weights[-1]))


def test_it_keeps_what_is_asked_for_often() -> None:
    """On a zipf stream it has to beat LRU of the same size, and come near a cache that knows the future."""
    rng = np.random.default_rng(0)
    rows, requests = 100_000, 60
    cache = HotRows(2000 * 33, ROW_BYTES)
    lru: OrderedDict[int, None] = OrderedDict()
    hits = best = lru_hits = asked = 0
    for number in range(requests):
        keys = _zipf(rng, rows, 5000)
        found = _look_up(cache, keys)
        lru_found = 0
        for key in keys.tolist():
            lru_found += key in lru
            lru[key] = None
            lru.move_to_end(key)
            if len(lru) > cache.rows:
                lru.popitem(last=False)
        if number >= requests // 2:
            hits, lru_hits, asked = hits + found, lru_hits + lru_found, asked + len(keys)
            best += int((keys < cache.rows).sum())
    assert hits > 1.2 * lru_hits
    assert hits > 0.75 * best


def test_old_fame_fades() -> None:
    """Once the popular keys change, the new ones take the places."""
    rng = np.random.default_rng(1)
    cache = HotRows(1000 * 33, ROW_BYTES)
    for shift in (0, 10**6):
        for _ in range(60):
            hits = _look_up(cache, _zipf(rng, 20_000, 2000) + shift)
    keys = _zipf(rng, 20_000, 2000) + 10**6
    hits = _look_up(cache, keys)
    assert hits > 0.3 * len(keys)


def test_many_threads() -> None:
    """Rows are right while others read and offer."""
    cache, wrong = HotRows(50_000, ROW_BYTES), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                _look_up(cache, _zipf(rng, 5000, 300))
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
