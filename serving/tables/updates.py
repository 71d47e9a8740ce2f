"""From one step of a table's training to the next: makes deltas, and applies them to a file or over an open
table."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.tables.compaction import copy_changed
from serving.tables.delta import Delta, DeltaWriter, described, follows
from serving.tables.errors import DeltaMismatchError, TableError, TableMismatchError
from serving.tables.table import Position, Table, open_table
from serving.tables.writer import DefaultRow, TableWriter

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Difference:
    """How many rows a delta brings and takes away."""

    changed: int
    added: int
    deleted: int


def write_delta(
    old: Table,
    new: Table,
    path: str | os.PathLike[str],
    *,
    name: str,
    after: Delta | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Difference:
    """Writes what makes the rows of `new` from those of `old`: by their stored bytes, whatever their order.

    Args:
        name: of the table in its bundle.
        after: the delta that led to `old`, if `old` was not made by applying it: the new one continues it.
        progress: called with rows that were compared: those of `new`, and with keys those of `old`, too.

    Raises:
        TableMismatchError: the tables have another dimension, row format or kind of id; without keys, another
            number of rows.
        DeltaMismatchError: `after` is of a table of another name.
        DamagedTableError: a block of either has another checksum.
        TableWriteError: the delta cannot be written.
    """
    path = Path(path)
    kinds = [described(t.row_format, t.dim, t.keyed) for t in (old, new)]
    if kinds[0] != kinds[1]:
        raise TableMismatchError(
            f"{old.path} has rows {kinds[0]}, {new.path} {kinds[1]}; a delta is for a table of the same "
            "kind: serve the new version"
        )
    if not new.keyed and old.rows != new.rows:
        raise TableMismatchError(
            f"{old.path} has {old.rows} rows, {new.path} {new.rows}; rows without keys are not added or "
            "deleted: serve the new version"
        )
    if old.default != new.default:
        raise TableMismatchError(
            f"an id without a row gives {old.default} in {old.path} and {new.default} in {new.path}; serve "
            "the new version"
        )
    if after is not None and after.table != name:
        raise DeltaMismatchError(f"{after.path} is for table {after.table!r}, not for {name!r}")
    before = old.position if after is None else after.after
    writer = DeltaWriter(path, name, old, before)
    added = 0
    try:
        for start, stop in _chunks(new):
            raw = new.read_raw(start, stop)
            ids = np.arange(start, stop) if new.keys is None else np.array(new.keys[start:stop])
            known = old.find(ids) >= 0
            differs = ~known
            differs[known] = (_raw(old, ids[known]) != raw[known]).any(axis=1)
            writer.change(ids[differs], raw[differs])
            added += int((~known).sum())
            progress(stop - start)
        if old.keys is not None:
            for start, stop in _chunks(old):
                old.read_raw(start, stop)
                keys = np.array(old.keys[start:stop])
                writer.delete(keys[new.find(keys) < 0])
                progress(stop - start)
        same_default = np.array_equal(old.default_bytes, new.default_bytes)
        changed, deleted = writer.close(None if same_default else new.default_bytes)
    finally:
        writer.abort()
    return Difference(changed - added, added, deleted)


def pending(deltas: Sequence[Delta], table: Table, position: Position) -> list[Delta]:
    """The deltas that bring `table` on from `position`, in their order; those that it has are left out.

    Raises `DeltaMismatchError` as `follows`, and `TableMismatchError` for rows of another kind.
    """
    found: list[Delta] = []
    for delta in sorted(deltas, key=lambda d: (d.before.sequence, d.after.sequence)):
        delta.check_fits(table)
        if follows(delta, position):
            found.append(delta)
            position = delta.after
    return found


def overlaid(base: Table, previous: Table | None, deltas: Sequence[Delta]) -> Table:
    """`base` with the rows of `previous`' overlay and then those of `deltas` over it, as a table of its own;
    it shares the file of `base`, and only looks ids up. For `deltas` as `pending` gives them."""
    changes = [(d.ids, d.rows, d.deleted, d.default_bytes) for d in deltas]
    native = base.native.with_changes(None if previous is None else previous.native, changes)
    return Table(native, base.path, base.dtype, base.memory)


def merged(base: Table, table: Table, after: Position) -> Delta:
    """What lies over `base` in `table`, made by `overlaid`, as one delta that leads to `after`."""
    ids, rows, deleted, default_bytes = table.native.overlay_changes()
    path, format, before = Path(base.path), base.row_format, base.position
    return Delta(
        path,
        path.stem,
        format,
        base.dim,
        base.keyed,
        before,
        after,
        ids,
        rows,
        deleted,
        default_bytes,
    )


def apply_deltas(
    path: str | os.PathLike[str],
    deltas: Sequence[Delta],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Position:
    """Applies deltas to a table's file. Whoever is killed here leaves the file at the sequence where it was
    or at the new one; what is left beside it goes the next time. Others that apply wait.

    Args:
        deltas: in any order; those that are applied already are left out.
        output: where to write the table; in its own place by default.
        progress: called with the bytes that were written.

    Returns:
        Where the table then stands.

    Raises:
        DeltaMismatchError: a delta is of another table, or one before it is missing.
        TableMismatchError: rows of another kind.
        DamagedTableError, TableWriteError: as `compact`. The file is as it was.
    """
    path = Path(path)
    target = path if output is None else Path(output)
    with _locked(target):
        table = open_table(path)
        steps = pending(deltas, table, table.position)
        if not steps:
            return table.position
        rewrite(table, steps, target, progress)
    return steps[-1].after


def rewrite(
    table: Table, steps: Sequence[Delta], path: Path, progress: Callable[[int], None] = lambda count: None
) -> None:
    """Writes `table` with `steps` applied, as `pending` gives them, to `path`."""
    ids, which, row = _last_of_each(steps)
    at = table.find(ids)
    kept = row >= 0

    def rows_of(chosen: np.ndarray) -> np.ndarray:
        out = np.empty((len(chosen), table.row_bytes), np.uint8)
        for number, step in enumerate(steps):
            of_step = which[chosen] == number
            out[of_step] = step.rows[row[chosen][of_step]]
        return out

    default: DefaultRow = "error"
    if table.default != "error":
        default = np.zeros(table.dim, table.dtype) if table.default == "row" else table.default
    given = [d.default_bytes for d in steps if d.default_bytes is not None]
    default_bytes = given[-1] if given else table.default_bytes
    with TableWriter(
        path,
        table.dim,
        table.row_format,
        table.keyed,
        default,
        progress,
        position=steps[-1].after,
        default_bytes=default_bytes,
    ) as writer:
        changed = np.where(kept, at, -1)
        copy_changed(table, writer, changed, rows_of, at[~kept & (at >= 0)])
        new = np.flatnonzero(kept & (at < 0))
        step = max(1, _CHUNK_BYTES // table.row_bytes)
        for start in range(0, len(new), step):
            some = new[start : start + step]
            writer.append_raw(rows_of(some), ids[some])


def _last_of_each(steps: Sequence[Delta]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What becomes of each id: `[n]` ids, the number of the step that says so, and the row in it; -1 for a
    deleted one."""
    ids, which, rows = [], [], []
    for number, step in enumerate(steps):
        ids += [step.ids, step.deleted]
        rows += [np.arange(len(step.ids)), np.full(len(step.deleted), -1)]
        which.append(np.full(len(step.ids) + len(step.deleted), number, np.int32))
    all_ids, all_which, all_rows = np.concatenate(ids), np.concatenate(which), np.concatenate(rows)
    # New rows are appended as they come: in the order of the steps.
    _, last = np.unique(all_ids[::-1], return_index=True)
    last = np.sort(len(all_ids) - 1 - last)
    return all_ids[last], all_which[last], all_rows[last]


def _chunks(table: Table) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_BYTES // table.row_bytes)
    for start in range(0, table.rows, step):
        yield start, min(start + step, table.rows)


def _raw(table: Table, ids: np.ndarray) -> np.ndarray:
    out = np.empty((len(ids), table.row_bytes), np.uint8)
    table.native.take(ids, out)
    return out


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for others that apply deltas in this directory, and removes what a killed one left of `path`."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise TableError(f"{path.parent} cannot be opened: {error}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(directory)
