"""The index of int64 keys, written in the order of their hashes (`serving/native/tables/key_index.h` reads
it)."""

from collections.abc import Iterator

import numpy as np

from serving.native import _core
from serving.tables.errors import TableWriteError

KEYS_AT_ONCE = 16 << 20
"""Of one pass: it holds about 24 bytes for each."""
_CHUNK = 4 << 20
_ROW_BITS = 36
MAX_ROWS = (1 << _ROW_BITS) - 2
SLOT_BYTES = 6


def homes_for(rows: int) -> int:
    """Slots that hashes point to: four of five are taken, so that a key is found within about three."""
    return max(1, rows + rows // 4)


def slots(keys: np.ndarray, path: object, keys_at_once: int = KEYS_AT_ONCE) -> Iterator[np.ndarray]:
    """The slots of `keys` from front to back, as `[n, 6]` uint8; the last one is empty.

    Args:
        keys: `[rows]` int64, which may be a memory map: it is read once for every `keys_at_once` keys.

    Raises `TableWriteError` for a key that occurs twice.
    """
    homes = homes_for(len(keys))
    passes = max(1, -(-len(keys) // keys_at_once))
    edges = [(1 << 64) * i // passes for i in range(passes + 1)]
    written = 0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        hashes, rows = _of_range(keys, low, high)
        _refuse_twice(keys, hashes, rows, path)
        # In the order of the hashes: the home slot, or the one behind the key before.
        order = np.arange(len(hashes))
        place = np.maximum(_home(hashes, homes), written) - order
        place = np.maximum.accumulate(place) + order if len(place) else place
        end = int(place[-1]) + 1 if len(place) else written
        values = ((hashes & np.uint64(0xFFF)) << np.uint64(_ROW_BITS)) | (rows + 1).astype(np.uint64)
        piece = np.zeros(end - written, "<u8")
        piece[place - written] = values
        yield piece.view(np.uint8).reshape(-1, 8)[:, :SLOT_BYTES]
        written = end
    yield np.zeros((max(homes, written + 1) - written, SLOT_BYTES), np.uint8)


def _of_range(keys: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes in [low, high), sorted, and the rows of their keys."""
    found_hashes, found_rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for start in range(0, len(keys), _CHUNK):
        chunk = np.ascontiguousarray(keys[start : start + _CHUNK])
        hashes = np.empty(len(chunk), np.uint64)
        _core.mix_keys(chunk, hashes)
        inside = np.flatnonzero((hashes >= np.uint64(low)) & (hashes <= np.uint64(high - 1)))
        found_hashes.append(hashes[inside])
        found_rows.append(inside + start)
    hashes, rows = np.concatenate(found_hashes), np.concatenate(found_rows)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], rows[order]


def _refuse_twice(keys: np.ndarray, hashes: np.ndarray, rows: np.ndarray, path: object) -> None:
    """The hash is a bijection: equal hashes are equal keys."""
    twice = np.flatnonzero(hashes[1:] == hashes[:-1])
    if twice.size:
        first, second = (int(r) for r in rows[twice[0] : twice[0] + 2])
        raise TableWriteError(
            f"{path}: key {keys[first]} stands in row {first} and in row {second}; nothing was written. Give "
            "every key once"
        )


def _home(hashes: np.ndarray, homes: int) -> np.ndarray:
    """The upper 64 bits of hash * homes, from products of 32 bits."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    high, low = hashes >> shift, hashes & mask
    homes_high, homes_low = np.uint64(homes >> 32), np.uint64(homes & 0xFFFFFFFF)
    middle = high * homes_low + ((low * homes_low) >> shift)
    carried = low * homes_high + (middle & mask)
    return (high * homes_high + (middle >> shift) + (carried >> shift)).astype(np.int64)
