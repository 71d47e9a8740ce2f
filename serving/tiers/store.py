"""What every store does: RocksDB (`rocksdb.py`) and Redis Cluster (`redis_cluster.py`)."""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from serving.tiers.errors import StoredTableError
from serving.tiers.record import TableRecord

FAILED, FOUND, ABSENT = np.uint8(0), np.uint8(1), np.uint8(2)
"""Of each key that was asked for: no answer, its row, or the answer that there is none."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one place (a node, a directory) holds of a table."""

    place: str
    rows: int | None
    """None where the place does not answer."""
    bytes: int | None
    """Of memory or disk that the place uses for all that it holds."""


class StoredTable(Protocol):
    """A whole table of a store, opened for lookups. Thread-safe."""

    @property
    def record(self) -> TableRecord: ...

    def fetch(self, keys: np.ndarray, rows: np.ndarray, states: np.ndarray, deadline: float | None) -> None:
        """Writes what arrives until the deadline (on the clock of `time.monotonic`; None waits as long as the
        store's own timeouts). Never raises for a store that fails.

        Args:
            keys: `[n]` int64, each once. rows: `[n, row_bytes]` uint8, to be written. states: `[n]` uint8,
                to be written; FAILED where nothing was found out.
        """
        ...

    def close(self) -> None: ...


class StoreWriter(Protocol):
    """Writes one table from front to back. What was written is kept, also when the process is killed."""

    @property
    def position(self) -> int:
        """Rows that are stored already, from the front: go on there."""
        ...

    def write(self, start: int, keys: np.ndarray | None, rows: np.ndarray) -> None:
        """Stores rows `[start, start + n)` of the table and the new position; the same again does no harm.

        Args:
            keys: `[n]` int64 of a keyed table, else None. rows: `[n, row_bytes]` uint8.

        Raises:
            StoreFullError: no room; `position` tells what is stored.
            StoreUnavailableError: the store went away.
        """
        ...

    def close(self) -> None:
        """Ends the work; after the last row, makes the table ready for lookups."""
        ...


class Store(Protocol):
    """A place for tables. The context closes it."""

    @property
    def name(self) -> str:
        """In the config."""
        ...

    def records(self) -> list[TableRecord]:
        """Of every table it holds, whole or not, by name."""
        ...

    def position(self, record: TableRecord) -> int:
        """Rows of the table that are stored, from the front; `record.rows` for a whole one."""
        ...

    def shares(self, record: TableRecord) -> list[Share]: ...

    def open(self, record: TableRecord) -> StoredTable:
        """Raises `TableNotStoredError` where it is not whole."""
        ...

    def read_keys(self, record: TableRecord, start: int, stop: int) -> np.ndarray:
        """`[stop - start]` int64 keys of a keyed table in the order of its file; `start` is a multiple of
        `KEY_BLOCK`. Raises `TableNotStoredError` where they are missing."""
        ...

    def writer(self, record: TableRecord) -> StoreWriter: ...

    def drop(self, record: TableRecord) -> None:
        """Removes a table."""
        ...

    def close(self) -> None: ...


def place_rows(found: Sequence[bytes | None], at: np.ndarray, rows: np.ndarray, states: np.ndarray) -> None:
    """Writes answers to `rows[at]` and `states[at]`: `found` has one for each of `at`, `[n]` int64.

    Raises `StoredTableError` for a value that is no row.
    """
    joined = b"".join(value for value in found if value is not None)
    there = np.fromiter((value is not None for value in found), bool, len(found))
    if len(joined) != int(there.sum()) * rows.shape[1]:
        raise StoredTableError(
            f"{int(there.sum())} stored rows have {len(joined)} bytes, {rows.shape[1]} each were expected; "
            "push the table again"
        )
    rows[at[there]] = np.frombuffer(joined, np.uint8).reshape(-1, rows.shape[1])
    states[at] = np.where(there, FOUND, ABSENT)
