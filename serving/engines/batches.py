"""Candidates of many requests side by side: as the rows of one block, or as tiles with the index of the
request that owns each."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_REQUESTS = 64
"""Of one batch. What a batch saves is the fixed cost of a call, a small part of 64 calls' worth."""

WORTH_TILES = 2
"""Tiles of a request on a CPU. One with more takes as long alone, where no row is padding (docs/compile.md,
"Batches of requests")."""

# Rows of one call: larger calls leave the cache, smaller ones pay more for their dispatches.
_CALL_ROWS = 256


@dataclass(frozen=True)
class Tiles:
    """Every candidate of a batch, in order; each request begins a new tile."""

    owner: np.ndarray
    """`[t]` int32, ascending: the index of the tile's request."""
    blocks: np.ndarray
    """`[t, T, C]`; rows after a request's last candidate are zeros."""
    starts: tuple[int, ...]
    """The first tile of each request, and `t`."""
    counts: tuple[int, ...]
    """Candidates of each request."""


def tiled(candidates: Sequence[np.ndarray], rows: int) -> Tiles:
    """Blocks `[N_i, C]` of each request as tiles of `rows` rows."""
    counts = tuple(len(block) for block in candidates)
    tiles = [-(-count // rows) for count in counts]
    starts = (0, *itertools.accumulate(tiles))
    blocks = np.empty((starts[-1], rows, *candidates[0].shape[1:]), candidates[0].dtype)
    flat = blocks.reshape(starts[-1] * rows, *blocks.shape[2:])
    for block, start, stop in zip(candidates, starts, starts[1:], strict=False):
        flat[start * rows : start * rows + len(block)] = block
        flat[start * rows + len(block) : stop * rows] = 0
    return Tiles(np.repeat(np.arange(len(counts), dtype=np.int32), tiles), blocks, starts, counts)


def shares(tiles: Tiles, streams: int) -> list[list[tuple[int, int]]]:
    """Ranges of tiles for each stream, of about equal size; a stream makes a call for each of its ranges."""
    count, rows = tiles.blocks.shape[:2]
    calls = min(max(-(-count * rows // _CALL_ROWS), 1), count)
    used = min(streams, calls)
    calls = min(-(-calls // used) * used, count)
    edges = [count * i // calls for i in range(calls + 1)]
    ranges = list(itertools.pairwise(edges))
    return [ranges[calls * i // used : calls * (i + 1) // used] for i in range(used)]


def of_tiles(outputs: Sequence[np.ndarray], tiles: Tiles) -> list[list[np.ndarray]]:
    """Each request's outputs `[N_i, ...]` of those of all tiles `[t, T, ...]`, without what padding gave."""
    flat = [output.reshape(-1, *output.shape[2:]) for output in outputs]
    rows = tiles.blocks.shape[1]
    starts = [tile * rows for tile in tiles.starts[:-1]]
    return _cut(flat, starts, tiles.counts)


def of_rows(outputs: Sequence[np.ndarray], counts: Sequence[int]) -> list[list[np.ndarray]]:
    """Each request's outputs of those of all rows `[sum(counts), ...]`."""
    return _cut(outputs, (0, *itertools.accumulate(counts))[:-1], counts)


def _cut(
    outputs: Sequence[np.ndarray], starts: Sequence[int], counts: Sequence[int]
) -> list[list[np.ndarray]]:
    # Copies: a view would keep the scores of the whole batch alive, and they belong to several callers.
    return [
        [output[start : start + count].copy() for output in outputs]
        for start, count in zip(starts, counts, strict=True)
    ]
