"""Embedding tables: one mapped file for each, read by C++ (`serving/native/tables/`).

`open_table` opens a file that `TableWriter` wrote (`writer.py`, with `row_formats.py` and `key_index.py`);
`compact` writes one again with changed rows. `source.py` is what a lookup needs of a table, wherever its rows
are. `updates.py` brings a table from one step of its training to the next by deltas (`delta.py`).
docs/tables.md and docs/updates.md have the file formats.
"""

from serving.tables.compaction import compact
from serving.tables.delta import Delta, read_delta
from serving.tables.errors import (
    DamagedTableError,
    DeltaGapError,
    DeltaMismatchError,
    RowNotFoundError,
    TableError,
    TableMismatchError,
    TableVersionError,
    TableWriteError,
)
from serving.tables.lookups import Lookup, WorkerPool
from serving.tables.row_formats import ROW_FORMATS, RowFormat
from serving.tables.source import RowSource
from serving.tables.table import Combiner, Position, Table, TableMemory, open_table, pool_rows
from serving.tables.updates import apply_deltas, merged, overlaid, pending, rewrite, write_delta
from serving.tables.writer import DefaultRow, TableWriter

__all__ = [
    "ROW_FORMATS",
    "Combiner",
    "DamagedTableError",
    "DefaultRow",
    "Delta",
    "DeltaGapError",
    "DeltaMismatchError",
    "Lookup",
    "Position",
    "RowFormat",
    "RowNotFoundError",
    "RowSource",
    "Table",
    "TableError",
    "TableMemory",
    "TableMismatchError",
    "TableVersionError",
    "TableWriteError",
    "TableWriter",
    "WorkerPool",
    "apply_deltas",
    "compact",
    "merged",
    "open_table",
    "overlaid",
    "pending",
    "pool_rows",
    "read_delta",
    "rewrite",
    "write_delta",
]
