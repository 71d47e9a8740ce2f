"""Writes a table: rows stream through, and the file takes its place when it is whole."""

import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import numpy as np

from serving.native import _core
from serving.tables import key_index
from serving.tables.errors import TableMismatchError, TableWriteError
from serving.tables.row_formats import RowFormat, decode, encode, format_of
from serving.tables.table import Position

DefaultRow = Literal["error", "zeros", "mean"] | np.ndarray
"""What an id without a row gives: an error, zeros, the mean of all rows, or a row of its own (`[dim]`)."""

MAGIC = b"\x89JXT\r\n\x1a\n"
VERSION = 1
HEADER_BYTES = 4096
BLOCK_BYTES = 64 << 10
_ALIGNMENT = 64
_AT_ONCE_BYTES = 1 << 20
"""Rows are encoded in pieces of this size, which stay in the cache."""
_HEADER = struct.Struct("<8sIIqqqIIQQQQQQQQQqQ")
_POLICIES = {"error": 0, "zeros": 1, "mean": 2, "row": 3}


class TableWriter:
    """Writes a table to `path` row by row; memory does not grow with it. As a context manager it closes the
    table at the end, or leaves nothing behind if the body fails.

    Args:
        path: it takes this place, in one step, when it is whole and on the disk.
        dim: elements of a row.
        row_format: "f32", "f16", "bf16", "int8" (with a scale for each row); "f64", "i32" and "i64" are
            handed out as they are.
        keyed: rows have int64 keys; without, a row's id is its number.
        default: of ids without a row; stored as a row is.
        progress: called with the bytes that were written.
        position: where deltas have brought the table; none for a table of its own.
        default_bytes: the default row as it is stored (`[row_bytes]` uint8), where it is known already.

    Raises:
        TableMismatchError: what is given does not fit together.
        TableWriteError: it cannot be written: no room, a weight that is not finite, a key that occurs twice.
            Nothing is left behind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dim: int,
        row_format: RowFormat = "f32",
        keyed: bool = False,
        default: DefaultRow = "error",
        progress: Callable[[int], None] = lambda count: None,
        position: Position | None = None,
        default_bytes: np.ndarray | None = None,
    ):
        self._position = position or Position(0, 0, 0)
        self._default_bytes = default_bytes
        self._path = Path(path)
        self._format = format_of(row_format)
        if dim < 1:
            raise TableMismatchError(f"{path}: a row must have elements, dim is {dim}")
        self._dim, self._keyed = dim, keyed
        self._policy, self._given = _checked_default(default, dim, self._path)
        if self._policy == "mean" and not self._format.decodes:
            raise TableMismatchError(f"{path}: rows of {row_format} have no mean row; give a default row")
        self._progress = progress
        self._rows = 0
        self._sum = np.zeros(dim)
        self._keys: IO[bytes] | None = None
        try:
            self._out = _Blocks(self._path, progress)
            if keyed:
                self._keys = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
        except OSError as error:
            self.abort()
            raise self._failed(error) from error

    @property
    def rows(self) -> int:
        """That were appended."""
        return self._rows

    def append(self, rows: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Appends `[n, dim]` rows, with `[n]` int64 keys if the table has keys."""
        self._guarded(lambda: self._append(np.asarray(rows), keys, raw=False))

    def append_raw(self, rows: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Appends rows as `Table.read_raw` gives them: `[n, row_bytes]` uint8."""
        self._guarded(lambda: self._append(rows, keys, raw=True))

    def close(self) -> None:
        """Writes what comes after the rows and puts the table in its place."""
        self._guarded(self._close)

    def abort(self) -> None:
        """Leaves nothing behind. After `close` it does nothing."""
        if hasattr(self, "_out"):
            self._out.discard()
        if self._keys is not None:
            self._keys.close()

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._out.closed:
            raise TableWriteError(f"{self._path} is closed, or was given up after an error; write it again")
        try:
            write()
        except OSError as error:
            self.abort()
            raise self._failed(error) from error
        except BaseException:
            self.abort()
            raise

    def _append(self, rows: np.ndarray, keys: np.ndarray | None, raw: bool) -> None:
        width = self._format.row_bytes(self._dim) if raw else self._dim
        if rows.ndim != 2 or rows.shape[1] != width or (raw and rows.dtype != np.uint8):
            wanted = f"uint8[n, {width}]" if raw else f"[n, {width}]"
            raise TableMismatchError(
                f"{self._path} was given {rows.dtype}{list(rows.shape)} for rows {wanted}"
            )
        if (keys is not None) != self._keyed:
            raise TableMismatchError(
                f"{self._path} has {'' if self._keyed else 'no '}keys; give keys with "
                f"{'all' if self._keyed else 'none'} of its rows"
            )
        if keys is not None and self._keys is not None:
            keys = np.asarray(keys)
            if keys.dtype != np.int64 or keys.shape != (len(rows),):
                raise TableMismatchError(
                    f"{self._path}: keys are {keys.dtype}{list(keys.shape)}; they must be int64[{len(rows)}]"
                )
            if self._rows + len(rows) > key_index.MAX_ROWS:
                raise TableWriteError(
                    f"{self._path}: a table with keys has at most {key_index.MAX_ROWS} rows"
                )
            _write(self._keys, np.ascontiguousarray(keys))
        step = max(1, _AT_ONCE_BYTES // self._format.row_bytes(self._dim))
        for start in range(0, len(rows), step):
            self._append_piece(rows[start : start + step], raw)

    def _append_piece(self, rows: np.ndarray, raw: bool) -> None:
        numbers = decode(self._format, rows) if raw else rows
        encoded = encode(self._format, numbers, self._rows, self._path)
        # Raw rows are encoded only to find what is not finite: int8's scale would not come out the same.
        self._out.write(np.ascontiguousarray(rows) if raw else encoded)
        if self._policy == "mean":
            self._sum += np.asarray(numbers, np.float64).sum(axis=0)
        self._rows += len(rows)

    def _close(self) -> None:
        out = self._out
        if self._default_bytes is not None:
            out.write(np.ascontiguousarray(self._default_bytes))
        else:
            out.write(encode(self._format, self._default_row()[None], self._rows, self._path))
        keys_offset = out.align()
        homes = slots = 0
        slots_offset = keys_offset
        if self._keys is not None:
            self._keys.flush()
            empty = np.zeros(0, np.int64)
            keys = np.memmap(self._keys, np.int64, mode="r") if self._rows else empty
            for start in range(0, len(keys), 1 << 20):
                out.write(np.ascontiguousarray(keys[start : start + (1 << 20)]))
            slots_offset, homes = out.align(), key_index.homes_for(self._rows)
            for piece in key_index.slots(keys, self._path):
                out.write(np.ascontiguousarray(piece))
                slots += len(piece)
            out.write(np.zeros(2, np.uint8))
        checksums_offset = out.align()

        def header(file_bytes: int, checksums_hash: int) -> bytes:
            return _HEADER.pack(
                MAGIC,
                VERSION,
                self._format.code,
                self._rows,
                self._dim,
                self._format.row_bytes(self._dim),
                _POLICIES[self._policy],
                int(self._keyed),
                HEADER_BYTES,
                keys_offset,
                slots_offset,
                homes,
                slots,
                checksums_offset,
                file_bytes,
                checksums_hash,
                self._position.lineage,
                self._position.sequence,
                self._position.last_delta,
            )

        out.finish(header)
        self.abort()

    def _default_row(self) -> np.ndarray:
        if self._given is not None:
            return self._given
        if self._policy == "mean":
            return self._sum / max(1, self._rows)
        return np.zeros(self._dim, self._format.element or np.float32)

    def _failed(self, error: OSError) -> TableWriteError:
        return TableWriteError(
            f"{self._path} cannot be written: {error}; nothing was written. Make room, or give another place"
        )


def _checked_default(default: DefaultRow, dim: int, path: Path) -> tuple[str, np.ndarray | None]:
    """The policy's name, and the row that was given."""
    if isinstance(default, np.ndarray):
        if default.shape != (dim,):
            raise TableMismatchError(f"{path}: the default row is {list(default.shape)}, dim is {dim}")
        return "row", default
    if default not in ("error", "zeros", "mean"):
        raise TableMismatchError(
            f"{path}: there is no default {default!r}; there are error, zeros, mean, or a row"
        )
    return default, None


class _Blocks:
    """A file that is written from front to back under another name, with a checksum of each block."""

    def __init__(self, path: Path, progress: Callable[[int], None]):
        self._path, self._progress = path, progress
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        self._work: Path | None = Path(name)
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._buffer = np.empty(64 * BLOCK_BYTES, np.uint8)
        self._used = 0
        self._sums: list[int] = []
        self._offset = HEADER_BYTES
        self._file.seek(HEADER_BYTES)

    def write(self, data: np.ndarray) -> None:
        """Appends the bytes of a contiguous array."""
        rest = data.reshape(-1).view(np.uint8)
        self._offset += rest.size
        while rest.size:
            count = min(rest.size, self._buffer.size - self._used)
            self._buffer[self._used : self._used + count] = rest[:count]
            self._used += count
            rest = rest[count:]
            if self._used == self._buffer.size:
                self._flush()

    def align(self) -> int:
        """Fills up to the alignment of sections; the offset there."""
        self.write(np.zeros(-self._offset % _ALIGNMENT, np.uint8))
        return self._offset

    def finish(self, header: Callable[[int, int], bytes]) -> None:
        """Writes the checksums and the header, and renames. `header` makes the header's fields of the size of
        the file and the hash of its checksums."""
        assert self._work is not None
        self._flush()
        sums = np.array(self._sums, "<u8")
        _write(self._file, sums.view(np.uint8))
        fields = header(self._offset + sums.nbytes, _core.xxh64(sums.view(np.uint8)))
        page = np.zeros(HEADER_BYTES, np.uint8)
        page[: len(fields)] = np.frombuffer(fields, np.uint8)
        page[-8:] = np.array([_core.xxh64(page[:-8])], "<u8").view(np.uint8)
        self._file.seek(0)
        _write(self._file, page)
        self._progress(sums.nbytes + page.size)
        os.fchmod(self._file.fileno(), 0o644)
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._work, self._path)
        self._work = None
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def discard(self) -> None:
        """Removes what was written, unless it is finished."""
        self._file.close()
        if self._work is not None:
            self._work.unlink(missing_ok=True)
            self._work = None

    def _flush(self) -> None:
        filled = self._buffer[: self._used]
        # A block at a time: of larger writes Linux makes pages of up to 2 MiB in its cache, and each row
        # that is looked up would then bring that much into a process.
        for start in range(0, self._used, BLOCK_BYTES):
            block = filled[start : start + BLOCK_BYTES]
            self._sums.append(_core.xxh64(block))
            _write(self._file, block)
        self._progress(self._used)
        self._used = 0


def _write(file: IO[bytes], data: np.ndarray) -> None:
    """All of the bytes; a file without a buffer may take fewer at once."""
    view = data.reshape(-1).view(np.uint8).data
    while view:
        view = view[file.write(view) :]
