"""Tables for tests: the real thing, in a file that is gone once it is open."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from serving.tables import RowFormat, Table, TableWriter, open_table


def table_of(rows: np.ndarray, row_format: RowFormat = "f32", keys: Any = None, **options: Any) -> Table:
    """An open table that holds `[n, dim]` rows. `options` are those of `TableWriter`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "t.table"
        with TableWriter(path, rows.shape[1], row_format, keys is not None, **options) as writer:
            writer.append(rows, keys)
        return open_table(path)
