"""Moves tables between the files of bundles and stores, in steps that may end anywhere: what was moved is not
moved again."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxrank.bundle import sha256
from serving.tables import Table, TableWriter
from serving.tiers.errors import StoredTableError, StoreFullError, StoreUnavailableError
from serving.tiers.record import TableRecord, chunk_rows
from serving.tiers.redis_keys import BUCKETS
from serving.tiers.store import FOUND, Store, StoredTable

Progress = Callable[[int], None]
"""Called with the number of rows that were done since."""


@dataclass(frozen=True)
class Comparison:
    """Of a stored table with a file. `first` are the numbers of the first rows that differ or are missing."""

    rows: int
    differing: int
    missing: int
    first: tuple[int, ...]


def record_of(name: str, digest: str, table: Table) -> TableRecord:
    """What a store will say of a bundle's table; `digest` is the sha256 of its file."""
    return TableRecord(
        name=name,
        sha256=digest,
        rows=table.rows,
        dim=table.dim,
        row_format=table.row_format,
        row_bytes=table.row_bytes,
        keyed=table.keyed,
        default=table.default,
        default_row=table.native.default_bytes().tobytes(),
        buckets=BUCKETS,
    )


def push(table: Table, record: TableRecord, store: Store, progress: Progress) -> int:
    """Stores what of the table is not stored yet. Returns how many rows were there before.

    Raises `StoreFullError` and `StoreUnavailableError`; the same call later goes on from there.
    """
    writer = store.writer(record)
    before = writer.position
    progress(before)
    try:
        for start, stop in _steps(record, before):
            keys = None if table.keys is None else np.ascontiguousarray(table.keys[start:stop])
            writer.write(start, keys, np.ascontiguousarray(table.read_raw(start, stop)))
            progress(stop - start)
    finally:
        writer.close()
    return before


def verify(table: Table, stored: StoredTable, progress: Progress) -> Comparison:
    """Compares every row, as it is stored, with the file's. Raises `StoreUnavailableError` where the store
    does not answer."""
    record, differing, missing, first = stored.record, 0, 0, []
    for start, stop in _steps(record, 0):
        keys = np.arange(start, stop, dtype=np.int64) if table.keys is None else table.keys[start:stop]
        found, there = _read(stored, np.ascontiguousarray(keys))
        wrong = there & (found != table.read_raw(start, stop)).any(axis=1)
        differing += int(wrong.sum())
        missing += int((~there).sum())
        first += (start + np.flatnonzero(wrong | ~there)[: 10 - len(first)]).tolist()
        progress(stop - start)
    return Comparison(record.rows, differing, missing, tuple(first))


def pull(store: Store, record: TableRecord, file: Path, progress: Progress) -> bool:
    """Writes a stored table to `file`, in the format of a bundle's tables.

    Rows are gathered in `<file>.pull` first, which a killed call leaves and the next one goes on with.

    Returns:
        Whether the file is, byte by byte, the one that was pushed. It may differ in the header alone: a mean
        row comes back as a given row.

    Raises `StoredTableError` where rows are missing, `StoreFullError` where there is no room.
    """
    work = file.with_name(file.name + ".pull")
    stored = store.open(record)
    try:
        with _disk(work):
            _gather(store, stored, work, progress)
            _assemble(record, work, file)
            work.unlink()
    finally:
        stored.close()
    return sha256(file) == record.sha256


def _gather(store: Store, stored: StoredTable, work: Path, progress: Progress) -> None:
    record = stored.record
    width = record.row_bytes + (8 if record.keyed else 0)
    with work.open("ab") as out:
        step = chunk_rows(record.row_bytes)
        # A step that was cut off is read again.
        done = min(out.tell() // width // step * step, record.rows)
        if out.tell() >= record.rows * width:
            done = record.rows
        out.truncate(done * width)
        progress(done)
        for start, stop in _steps(record, done):
            keys = np.arange(start, stop, dtype=np.int64)
            if record.keyed:
                keys = store.read_keys(record, start, stop)
            rows, there = _read(stored, keys)
            if not there.all():
                raise StoredTableError(
                    f"store {store.name!r} lacks rows of {record.identity}, "
                    f"{start + int(np.argmin(there))} for "
                    "one; push the table again"
                )
            columns = [keys.astype("<i8")[:, None].view(np.uint8), rows] if record.keyed else [rows]
            out.write(np.concatenate(columns, axis=1).tobytes())
            out.flush()
            os.fsync(out.fileno())
            progress(stop - start)


def _assemble(record: TableRecord, work: Path, file: Path) -> None:
    default: str | np.ndarray = record.default
    if record.default in ("mean", "row"):
        default = _default_numbers(record)
    width = record.row_bytes + (8 if record.keyed else 0)
    gathered = np.memmap(work, np.uint8, mode="r") if record.rows else np.zeros(0, np.uint8)
    gathered = gathered.reshape(record.rows, width)
    with TableWriter(file, record.dim, record.row_format, record.keyed, default) as writer:  # type: ignore[arg-type]
        for start, stop in _steps(record, 0):
            piece = np.asarray(gathered[start:stop])
            keys = np.ascontiguousarray(piece[:, :8]).view("<i8")[:, 0] if record.keyed else None
            writer.append_raw(np.ascontiguousarray(piece[:, -record.row_bytes :]), keys)


def _default_numbers(record: TableRecord) -> np.ndarray:
    from serving.tiers.tiered_table import decode_rows

    return decode_rows(np.frombuffer(record.default_row, np.uint8)[None], record)[0]


def _read(stored: StoredTable, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as they are stored, and whether each is there."""
    rows = np.zeros((len(keys), stored.record.row_bytes), np.uint8)
    states = np.zeros(len(keys), np.uint8)
    stored.fetch(keys, rows, states, None)
    if not states.all():
        raise StoreUnavailableError(
            f"{int((states == 0).sum())} rows of {stored.record.identity} were not answered; see the log, "
            "and "
            "run the same command again"
        )
    return rows, states == FOUND


def _steps(record: TableRecord, start: int) -> Iterator[tuple[int, int]]:
    step = chunk_rows(record.row_bytes)
    for at in range(start, record.rows, step):
        yield at, min(at + step, record.rows)


class _disk:
    """No room on the disk, as `StoreFullError`."""

    def __init__(self, work: Path):
        self._work = work

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise StoreFullError(
                f"{self._work} cannot be written: {error.strerror}. What was read stays in it; make room "
                "and run "
                "the same command again, which goes on from there"
            ) from error
