"""The delta file: what changed in one table between two steps of its training. docs/updates.md has every
byte."""

import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from serving.native import _core
from serving.tables.errors import (
    DamagedTableError,
    DeltaGapError,
    DeltaMismatchError,
    TableError,
    TableMismatchError,
    TableVersionError,
    TableWriteError,
)
from serving.tables.row_formats import ROW_FORMATS, RowFormat
from serving.tables.table import Position, Table

T = TypeVar("T")

SUFFIX = ".delta"
MAGIC = b"\x89JXD\r\n\x1a\n"
VERSION = 1
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<8sIIqqIIqqQqqQQQ1024s")
_FORMATS = {f.code: f for f in ROW_FORMATS.values()}
_MAX_NAME = 1024


@dataclass(frozen=True)
class Delta:
    """Changed, new and deleted rows of one table. Arrays are mapped and read-only.

    Attributes:
        table: its name in a bundle.
        before: where a table must stand to take it. `after` is where it then stands.
        ids: `[n]` int64, each once; rows: `[n, row_bytes]` uint8, as the table stores them.
        deleted: `[m]` int64 keys, none of them in `ids`.
        default_bytes: the new default row as it is stored; None where it stays.
    """

    path: Path
    table: str
    row_format: RowFormat
    dim: int
    keyed: bool
    before: Position
    after: Position
    ids: np.ndarray
    rows: np.ndarray
    deleted: np.ndarray
    default_bytes: np.ndarray | None

    def check_fits(self, table: Table) -> None:
        """Raises `TableMismatchError` if the table's rows are of another kind."""
        found = (table.row_format, table.dim, table.keyed)
        if found != (self.row_format, self.dim, self.keyed):
            raise TableMismatchError(
                f"{self.path} has rows {described(self.row_format, self.dim, self.keyed)}, the table "
                f"{table.path} {described(*found)}; give the delta that was made for it"
            )
        if not self.keyed and (bool(len(self.deleted)) or bool((self.ids >= table.rows).any())):
            raise TableMismatchError(
                f"{self.path} adds or deletes rows of {table.path}, which has no keys: serve the new version"
            )


def described(row_format: str, dim: int, keyed: bool) -> str:
    """For messages: `f32[*, 16] by key`."""
    return f"{row_format}[*, {dim}]{' by key' if keyed else ''}"


def follows(delta: Delta, position: Position) -> bool:
    """Whether `delta` is the next one of a table at `position`; False for one that is applied already.

    Raises `DeltaMismatchError` for one of another table, and for one that forks off from the deltas that were
    applied; `DeltaGapError` where deltas before it are missing.
    """
    before, after = delta.before, delta.after
    if before.lineage != position.lineage:
        raise DeltaMismatchError(
            f"{delta.path} is for table {delta.table!r} of digest {before.lineage:016x}, this one is "
            f"{position.lineage:016x}; give a delta that was made from this table"
        )
    if after.sequence < position.sequence or after == position:
        return False
    if before.sequence > position.sequence:
        raise DeltaGapError(
            f"{delta.path} leads from sequence {before.sequence} to {after.sequence}, table {delta.table!r} "
            f"is at {position.sequence}; give the deltas in between as well"
        )
    if before != position:
        raise DeltaMismatchError(
            f"{delta.path} leads from sequence {before.sequence} to {after.sequence}, but table "
            f"{delta.table!r} got to {position.sequence} by another delta ({position.last_delta:016x}); give "
            "deltas that were made one after another"
        )
    return True


class DeltaWriter:
    """Writes a delta: rows stream through, and the file takes its place in one step when it is whole and on
    the disk, or nothing is left. `table` is what the delta is for, `name` how bundles call it."""

    def __init__(self, path: Path, name: str, table: Table, before: Position):
        self._path, self._name, self._table, self._before = path, name, table, before
        self._ids: list[np.ndarray] = []
        self._deleted: list[np.ndarray] = []
        if not 0 < len(name.encode()) <= _MAX_NAME:
            raise TableMismatchError(f"a table's name has 1 to {_MAX_NAME} bytes, not {name[:50]!r}")
        try:
            fd, work = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        except OSError as error:
            raise self._failed(error) from error
        self._work = Path(work)
        self._file = os.fdopen(fd, "w+b")
        self._file.seek(_HEADER_BYTES)

    def change(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """`[n]` int64 ids with `[n, row_bytes]` uint8 rows."""
        self._guarded(lambda: self._file.write(np.ascontiguousarray(rows).tobytes()))
        self._ids.append(np.array(ids, np.int64))

    def delete(self, keys: np.ndarray) -> None:
        """`[m]` int64 keys."""
        self._deleted.append(np.array(keys, np.int64))

    def close(self, default_bytes: np.ndarray | None) -> tuple[int, int]:
        """Puts the file in its place. Returns how many rows were changed, and deleted."""
        return self._guarded(lambda: self._close(default_bytes))

    def abort(self) -> None:
        """Leaves nothing behind. After `close` it does nothing."""
        with suppress(OSError):  # what is buffered still does not fit: it is thrown away
            self._file.close()
        self._work.unlink(missing_ok=True)

    def _close(self, default_bytes: np.ndarray | None) -> tuple[int, int]:
        empty = np.zeros(0, np.int64)
        ids, deleted = np.concatenate([empty, *self._ids]), np.concatenate([empty, *self._deleted])
        file = self._file
        file.write(b"" if default_bytes is None else default_bytes.tobytes())
        file.write(bytes(-file.tell() % 8))
        file.write(ids.tobytes())
        file.write(deleted.tobytes())
        size = file.tell()
        file.flush()
        body = np.memmap(file, np.uint8, "r", _HEADER_BYTES) if size > _HEADER_BYTES else empty.view(np.uint8)
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            ROW_FORMATS[self._table.row_format].code,
            self._table.dim,
            self._table.row_bytes,
            int(self._table.keyed),
            int(default_bytes is not None),
            len(ids),
            len(deleted),
            self._before.lineage,
            self._before.sequence,
            self._before.sequence + 1,
            self._before.last_delta,
            size,
            _core.xxh64(np.asarray(body)),
            self._name.encode(),
        ).ljust(_HEADER_BYTES - 8, b"\0")
        file.seek(0)
        file.write(header + struct.pack("<Q", _core.xxh64(np.frombuffer(header, np.uint8))))
        publish(file, self._work, self._path)
        return len(ids), len(deleted)

    def _guarded(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except OSError as error:
            self.abort()
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> TableWriteError:
        return TableWriteError(f"{self._path} cannot be written: {error}; nothing was written. Make room")


def publish(file: IO[bytes], work: Path, path: Path) -> None:
    """Brings a file to the disk and renames it to `path`."""
    file.flush()
    os.fchmod(file.fileno(), 0o644)
    os.fsync(file.fileno())
    file.close()
    os.replace(work, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_delta(path: Path) -> Delta:
    """Maps a delta and checks all of it.

    Raises:
        DamagedTableError: it is truncated, garbled, or no delta.
        TableVersionError: it is of another version.
        TableError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}; copy it again") from error
    data = np.asarray(data)
    if data[:8].tobytes() != MAGIC:
        raise DamagedTableError(
            f"{path} is not a delta: it does not begin as one; give a file of `tables delta`"
        )
    if len(data) < _HEADER_BYTES:
        raise DamagedTableError(f"{path} is truncated: it has {len(data)} bytes; copy it again")
    (
        _,
        version,
        code,
        dim,
        row_bytes,
        keyed,
        has_default,
        changed,
        deleted,
        lineage,
        first,
        last,
        parent,
        file_bytes,
        body_hash,
        name,
    ) = _HEADER.unpack_from(data.data)
    if version != VERSION:
        raise TableVersionError(
            f"{path} is a delta of version {version}, this jaxrank reads version {VERSION}; make it again"
        )
    (digest,) = struct.unpack_from("<Q", data.data, _HEADER_BYTES - 8)
    if digest != _core.xxh64(data[: _HEADER_BYTES - 8]):
        raise DamagedTableError(f"{path} is damaged: its header has another checksum; copy it again")
    format = _FORMATS.get(code)
    sizes = (changed, deleted, first, last - first - 1, dim - 1)
    if format is None or min(sizes) < 0 or format.row_bytes(dim) != row_bytes or max(keyed, has_default) > 1:
        raise DamagedTableError(f"{path} has a header that contradicts itself; make the delta again")
    rows_end = _HEADER_BYTES + changed * row_bytes
    default_end = rows_end + has_default * row_bytes
    ids_at = default_end + -default_end % 8
    deleted_at = ids_at + changed * 8
    if not len(data) == file_bytes == deleted_at + deleted * 8:
        raise DamagedTableError(
            f"{path} is truncated or too long: it has {len(data)} bytes, its header says {file_bytes}; "
            "copy it again"
        )
    if body_hash != _core.xxh64(data[_HEADER_BYTES:]):
        raise DamagedTableError(f"{path} is damaged: its rows have another checksum; copy it again")
    return Delta(
        path=path,
        table=name.rstrip(b"\0").decode(errors="replace"),
        row_format=format.name,
        dim=dim,
        keyed=bool(keyed),
        before=Position(lineage, first, parent),
        after=Position(lineage, last, digest),
        ids=data[ids_at:deleted_at].view(np.int64),
        rows=data[_HEADER_BYTES:rows_end].reshape(changed, row_bytes),
        deleted=data[deleted_at:].view(np.int64),
        default_bytes=data[rows_end:default_end] if has_default else None,
    )
