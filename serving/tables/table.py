"""Opens a table and looks rows up in it."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.native import _core
from serving.tables.errors import TableMismatchError
from serving.tables.row_formats import ROW_FORMATS, RowFormat, encode

Combiner = Literal["sum", "mean", "sqrtn"]
DefaultPolicy = Literal["error", "zeros", "mean", "row"]
TableMemory = Literal["mapped", "prefault", "locked", "huge"]
"""How the rows of a table come into memory:

- `mapped`: a page of the file when a row of it is asked for; processes share them, and the system takes them
  back when memory is short.
- `prefault`: the same, but the whole file is read when the table is opened.
- `locked`: and it stays; needs a limit of locked memory (`ulimit -l`) of that size.
- `huge`: the file is copied into anonymous huge pages: lookups miss the TLB less, and processes do not share
  the memory.
"""

_COMBINERS: dict[str, int] = {"sum": 0, "mean": 1, "sqrtn": 2}
_POLICIES: tuple[DefaultPolicy, ...] = ("error", "zeros", "mean", "row")
_FORMATS = {f.code: f for f in ROW_FORMATS.values()}


@dataclass(frozen=True)
class Position:
    """Where a table stands: at step `sequence` (0 for one that no delta was applied to) of the deltas that
    begin at the table whose digest is `lineage`; `last_delta` is the digest of the last one, 0 at the
    beginning. Digests are XXH64."""

    lineage: int
    sequence: int
    last_delta: int


def open_table(
    path: str | os.PathLike[str],
    *,
    memory: TableMemory = "mapped",
    trusted: bool = False,
    dtype: np.dtype | None = None,
) -> "Table":
    """Opens a table: maps its file and reads its header and checksums, whatever its size.

    A block of 64 KiB is compared with its checksum when a row of it is read for the first time. Nobody may
    write to a file that is open; one that is replaced (renamed over) stays as it was for who has it open.

    Args:
        memory: how its rows come into memory.
        trusted: compare no checksums, because the caller has: a bundle's files have their sha256.
        dtype: of the rows that `fetch` writes; float32 for the formats that decode to it, else the stored
            one. float16 is possible for `f16`.

    Raises:
        TableError: the file cannot be opened, mapped or locked.
        DamagedTableError: it is truncated, garbled, or no table.
        TableVersionError: it is of another version.
        TableMismatchError: its rows are not of `dtype`.
    """
    prefault, lock = memory in ("prefault", "locked"), memory == "locked"
    native = _core.NativeTable.open(os.fspath(path), prefault, lock, memory == "huge", trusted)
    return Table(native, os.fspath(path), dtype, memory)


class Table:
    """An immutable table. Thread-safe; lookups run without the GIL. Ids are keys in a table with keys, else
    row numbers."""

    def __init__(
        self,
        native: _core.NativeTable,
        path: str,
        dtype: np.dtype | None = None,
        memory: TableMemory = "mapped",
    ):
        self.native = native
        self.path = path
        self.memory: TableMemory = memory
        self._format = _FORMATS[native.row_format]
        stored = self._format.element
        own = np.dtype(np.float32) if self._format.decodes else stored
        assert own is not None
        self.dtype: np.dtype = own if dtype is None else np.dtype(dtype)
        if self.dtype not in (own, stored):
            raise TableMismatchError(f"{path} holds rows of {self.row_format}, not of {self.dtype}")

    @property
    def rows(self) -> int:
        return self.native.rows

    @property
    def dim(self) -> int:
        return self.native.dim

    @property
    def row_format(self) -> RowFormat:
        return self._format.name

    @property
    def row_bytes(self) -> int:
        """Of one stored row."""
        return self.native.row_bytes

    @property
    def keyed(self) -> bool:
        return self.native.keyed

    @property
    def keys(self) -> np.ndarray | None:
        """`[rows]` int64, the key of each row, mapped; None for a table without keys. `read_raw` of the same
        rows checks them."""
        return self.native.keys() if self.keyed else None

    @property
    def position(self) -> Position:
        """Of the file."""
        native = self.native
        return Position(native.lineage or native.digest, native.sequence, native.last_delta)

    @property
    def overlay_rows(self) -> int:
        """Ids that deltas changed or deleted since the file was written."""
        return self.native.overlay_rows

    @property
    def overlay_bytes(self) -> int:
        """Memory of those rows and of their index."""
        return self.native.overlay_bytes

    @property
    def default_bytes(self) -> np.ndarray:
        """`[row_bytes]` uint8: the default row as it is stored."""
        return self.native.default_bytes()

    @property
    def default(self) -> DefaultPolicy:
        """What an id without a row gives: an error, or `default_row`."""
        return _POLICIES[self.native.default_row]

    @property
    def default_row(self) -> np.ndarray:
        """`[dim]` of `dtype`; zeros where the default is an error."""
        if self._format.decodes:
            out = np.empty((1, self.dim), np.float32)
            self.native.read(self.rows, out)
            return out[0].astype(self.dtype)
        assert self._format.element is not None
        return self.native.default_bytes().view(self._format.element)

    @property
    def array(self) -> np.ndarray:
        """`[rows, dim]` of the stored dtype, mapped and read-only. Raises `TableMismatchError` for bf16 and
        int8, which NumPy does not have as such."""
        if self._format.element is None:
            raise TableMismatchError(
                f"{self.path} holds rows of {self.row_format}, which are no NumPy array; look rows up, or "
                "write it again as f32"
            )
        return self.native.raw().view(self._format.element)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) by number: `[stop - start, dim]` float32, or in the stored dtype where the
        format does not decode to float32."""
        if not self._format.decodes:
            raw = self.read_raw(start, stop)
            return raw if self._format.element is None else raw.view(self._format.element)
        self.native.check_rows(start, stop)
        out = np.empty((stop - start, self.dim), np.float32)
        self.native.read(start, out)
        return out

    def read_raw(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) by number as they are stored: `[stop - start, row_bytes]` uint8, mapped and
        read-only. Checks them, and their keys."""
        self.native.check_rows(start, stop)
        return self.native.raw()[start:stop]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """`[n, dim]` rows as this table would store them: `[n, row_bytes]` uint8. Raises `TableWriteError`
        for what its format does not hold."""
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise TableMismatchError(f"{self.path}: rows of {list(rows.shape)}, dim is {self.dim}")
        return encode(self._format, rows, 0, self.path)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """`[n]` int64 row number of each id; -1 for one without a row."""
        out = np.empty(ids.shape, np.int64)
        self.native.find(checked(ids, "ids", np.int64), out)
        return out

    def lookup(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Writes the row of each of the `[n]` int64 ids to float32 `out`, `[n, dim]`, whose rows may be
        apart: a range of columns of a larger block.

        Raises:
            RowNotFoundError: an id has no row, and the table's default is an error. `out` then holds
            anything.
            TableMismatchError: dtypes or shapes do not fit.
            DamagedTableError: a block has another checksum.
        """
        self.native.lookup(checked(ids, "ids", np.int64), checked(out, "the output", np.float32, 2))

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Rows as they are stored: `[n, dim]` of the stored dtype, or `[n, row_bytes]` uint8 for bf16 and
        int8.
        Raises as `lookup`."""
        out = np.empty((len(ids), self.row_bytes), np.uint8)
        self.native.take(checked(ids, "ids", np.int64), out)
        return out if self._format.element is None else out.view(self._format.element)

    def fetch(self, ids: np.ndarray, out: np.ndarray, deadline: float | None = None) -> None:
        """`RowSource.fetch`: memory keeps every deadline."""
        if self.dtype == np.float32:
            self.lookup(ids, out)
        else:
            out[:] = self.take(ids)

    def pool(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        weights: np.ndarray | None,
        combiner: Combiner,
        max_norm: float | None,
        out: np.ndarray,
    ) -> None:
        """Combines the rows of each segment of ids as tf.nn.embedding_lookup_sparse does.

        Args:
            ids: `[n]` int64.
            offsets: `[segments + 1]` int64, from 0 on and not decreasing: segment s has the ids
                [offsets[s], offsets[s + 1]).
            weights: `[n]` float32, or none.
            combiner: with weights `mean` divides by their sum, and `sqrtn` by the root of the sum of their
                squares; 0 where that is 0.
            max_norm: longer rows are scaled to this length first.
            out: `[segments, dim]` float32, as in `lookup`; 0 for a segment without ids.

        Raises as `lookup`.
        """
        self.native.pool(
            checked(ids, "ids", np.int64),
            *pooling(offsets, weights, combiner, max_norm),
            checked(out, "the output", np.float32, 2),
        )

    def verify(self) -> None:
        """Compares every block with its checksum. Raises `DamagedTableError` naming the first that
        differs."""
        self.native.verify()

    def forget_pages(self) -> None:
        """Gives the pages that lookups brought into memory back to the system."""
        self.native.forget_pages()


def pool_rows(
    rows: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray | None,
    combiner: Combiner,
    max_norm: float | None,
    out: np.ndarray,
) -> None:
    """`Table.pool` for rows that were fetched already, `[n, dim]` float32: the same bits."""
    _core.pool_rows(
        checked(rows, "rows", np.float32, 2),
        *pooling(offsets, weights, combiner, max_norm),
        checked(out, "the output", np.float32, 2),
    )


def pooling(
    offsets: np.ndarray, weights: np.ndarray | None, combiner: Combiner, max_norm: float | None
) -> tuple[np.ndarray, np.ndarray | None, int, float]:
    """The arguments of a pool as C++ takes them. Raises `TableMismatchError` for those that it cannot."""
    if combiner not in _COMBINERS:
        raise TableMismatchError(f"there is no combiner {combiner!r}; there are {', '.join(_COMBINERS)}")
    if max_norm is not None and not 0 < max_norm < np.inf:
        raise TableMismatchError(f"max_norm is {max_norm}, it must be above 0 and finite")
    given = None if weights is None else checked(weights, "weights", np.float32)
    return checked(offsets, "offsets", np.int64), given, _COMBINERS[combiner], max_norm or 0.0


def checked(array: np.ndarray, name: str, dtype: type, rank: int = 1) -> np.ndarray:
    """The array, contiguous if it is a vector. Raises `TableMismatchError` for another dtype or rank."""
    if array.dtype != dtype or array.ndim != rank:
        raise TableMismatchError(
            f"{name}: {array.dtype}{list(array.shape)} instead of {np.dtype(dtype).name} of {rank} dimensions"
        )
    return array if rank > 1 else np.ascontiguousarray(array)
