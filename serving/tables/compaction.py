"""Writes a table again with rows changed, inserted and deleted."""

import os
from collections.abc import Callable

import numpy as np

from serving.tables.errors import TableMismatchError
from serving.tables.table import Table
from serving.tables.writer import DefaultRow, TableWriter

_CHUNK_BYTES = 16 << 20


def compact(
    table: Table,
    path: str | os.PathLike[str],
    *,
    changed: tuple[np.ndarray, np.ndarray] | None = None,
    deleted: np.ndarray | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes `table` to `path`, which may be its own: who has the old one open keeps it.

    Args:
        changed: ids `[n]` int64 and their new rows `[n, dim]` float32. A key that is new is appended; without
            keys an id must have a row.
        deleted: keys `[m]` int64 to leave out; those that are not in the table are no error.
        progress: called with the bytes that were written.

    Raises:
        TableMismatchError: an id occurs twice, is changed and deleted, or the table cannot take the change.
        TableWriteError: as `TableWriter`.
        DamagedTableError: a block of the old table has another checksum.
    """
    ids, new_rows = changed if changed is not None else (np.zeros(0, np.int64), np.zeros((0, table.dim)))
    deleted = np.zeros(0, np.int64) if deleted is None else deleted
    both = np.concatenate([ids, deleted])
    values, counts = np.unique(both, return_counts=True)
    if (counts > 1).any():
        raise TableMismatchError(
            f"id {values[counts > 1][0]} is changed or deleted twice; give every id once"
        )
    if deleted.size and not table.keyed:
        raise TableMismatchError(f"{table.path} has no keys: its rows cannot be deleted, only changed")
    at = table.find(ids)
    if not table.keyed and (at < 0).any():
        raise TableMismatchError(
            f"{table.path} has no row {ids[at < 0][0]}; rows without keys cannot be inserted"
        )
    gone = table.find(deleted)
    gone = gone[gone >= 0]
    default: DefaultRow = table.default_row if table.default == "row" else table.default
    with TableWriter(path, table.dim, table.row_format, table.keyed, default, progress) as writer:
        copy_changed(table, writer, at, lambda which: table.encode(new_rows[which]), gone)
        inserted = at < 0
        if inserted.any():
            writer.append(new_rows[inserted], ids[inserted])


def copy_changed(
    table: Table,
    writer: TableWriter,
    at: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray],
    gone: np.ndarray,
) -> None:
    """Appends the rows of `table` in their order, changed.

    Args:
        at: `[n]` row number of each change; those below 0 are left to the caller.
        rows_of: the stored rows of changes, `[k, row_bytes]` uint8, by their positions in `at`.
        gone: row numbers to leave out.
    """
    order = np.argsort(at, kind="stable")
    ordered, keys, gone = at[order], table.keys, np.sort(gone)
    step = max(1, _CHUNK_BYTES // table.row_bytes)
    for start in range(0, table.rows, step):
        stop = min(start + step, table.rows)
        raw = np.array(table.read_raw(start, stop))
        first, last = np.searchsorted(ordered, [start, stop])
        if first < last:
            raw[ordered[first:last] - start] = rows_of(order[first:last])
        first, last = np.searchsorted(gone, [start, stop])
        if first < last:
            kept = np.ones(stop - start, bool)
            kept[gone[first:last] - start] = False
            writer.append_raw(raw[kept], None if keys is None else keys[start:stop][kept])
        else:
            writer.append_raw(raw, None if keys is None else keys[start:stop])
