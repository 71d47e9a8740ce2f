"""A table whose rows are in stores, as a lookup sees it (`serving.tables.RowSource`)."""

import time
from collections.abc import Sequence

import numpy as np

from serving.tables.errors import RowNotFoundError
from serving.tables.row_formats import format_of
from serving.tiers.hot_rows import HotRows
from serving.tiers.record import TableRecord
from serving.tiers.store import ABSENT, FAILED, FOUND, StoredTable


class TieredTable:
    """Rows from DRAM where they are asked for often, else from the first store that gives them."""

    def __init__(self, stores: Sequence[StoredTable], cache_bytes: int, dtype: np.dtype | None = None):
        """`stores` hold the same table. `dtype` is of the rows that `fetch` writes, as in
        `serving.tables.open_table`."""
        self.record: TableRecord = stores[0].record
        self._stores = tuple(stores)
        format = format_of(self.record.row_format)
        own = np.dtype(np.float32) if format.decodes else format.element
        assert own is not None
        self.dtype: np.dtype = own if dtype is None else dtype
        self.cache = HotRows(cache_bytes, self.record.row_bytes) if cache_bytes else None
        self._default = np.frombuffer(self.record.default_row, np.uint8)

    @property
    def rows(self) -> int:
        return self.record.rows

    @property
    def dim(self) -> int:
        return self.record.dim

    def fetch(self, ids: np.ndarray, out: np.ndarray, deadline: float | None) -> np.ndarray | None:
        """As `RowSource.fetch`. Each distinct id is looked up once."""
        keys, back = np.unique(ids, return_inverse=True)
        rows = np.empty((len(keys), self.record.row_bytes), np.uint8)
        states = np.full(len(keys), FAILED)
        if not self.record.keyed:
            states[(keys < 0) | (keys >= self.record.rows)] = ABSENT
            self._refuse(ids, keys, states)
        outside = states == ABSENT
        cached = np.zeros(len(keys), bool) if self.cache is None else self.cache.read(keys, rows)
        states[cached] = FOUND
        self._ask(keys, rows, states, outside, deadline)
        if self.cache is not None:
            new = np.flatnonzero((states == FOUND) & ~cached)
            self.cache.offer(keys[new], rows[new])
        if self.record.keyed:
            self._refuse(ids, keys, states)
        rows[states != FOUND] = self._default
        np.take(decode_rows(rows, self.record), back, axis=0, out=out, mode="clip")
        # A row of a table without keys of its own exists: a store that lacks it has lost it.
        missing = states == FAILED if self.record.keyed else (states != FOUND) & ~outside
        return missing[back] if missing.any() else None

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def _ask(
        self,
        keys: np.ndarray,
        rows: np.ndarray,
        states: np.ndarray,
        outside: np.ndarray,
        deadline: float | None,
    ) -> None:
        """Writes rows and states of the keys that are not found yet; those `outside` of the table are not
        asked for."""
        for number, store in enumerate(self._stores, 1):
            wanted = np.flatnonzero((states != FOUND) & ~outside)
            if not len(wanted):
                return
            until = deadline
            if deadline is not None and number < len(self._stores):
                # The stores behind it need their share of the time.
                now = time.monotonic()
                until = now + (deadline - now) / 2
            found = np.empty((len(wanted), rows.shape[1]), np.uint8)
            answers = np.full(len(wanted), FAILED)
            store.fetch(keys[wanted], found, answers, until)
            rows[wanted] = found
            # "There is no such row" stays known if the next store fails.
            states[wanted] = np.where(answers == FAILED, states[wanted], answers)

    def _refuse(self, ids: np.ndarray, keys: np.ndarray, states: np.ndarray) -> None:
        """Raises `RowNotFoundError` for the first id that has no row, where that is an error."""
        if self.record.default == "error" and (states == ABSENT).any():
            id = int(ids[np.argmax(np.isin(ids, keys[states == ABSENT]))])
            raise RowNotFoundError(f"table {self.record.name!r} has no row for id {id}", id)


def decode_rows(rows: np.ndarray, record: TableRecord) -> np.ndarray:
    """`[n, row_bytes]` uint8 as `[n, dim]`, the numbers that the table's own lookup gives for them."""
    format = format_of(record.row_format)
    if format.name == "int8":
        scale = np.ascontiguousarray(rows[:, :4]).view("<f4")
        return rows[:, 4:].view(np.int8).astype(np.float32) * scale
    if format.name == "bf16":
        return (rows.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert format.element is not None
    values = rows.view(format.element)
    return values.astype(np.float32) if format.decodes else values
