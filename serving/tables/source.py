"""What a lookup needs of a table, wherever its rows are: in a mapped file (`table.py`), or in another
tier."""

from typing import Protocol

import numpy as np


class RowSource(Protocol):
    """Rows by id. Thread-safe."""

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype:
        """Of the rows that `fetch` writes: float32, but for tables that TensorFlow held in another type."""
        ...

    def fetch(self, ids: np.ndarray, out: np.ndarray, deadline: float | None) -> np.ndarray | None:
        """Writes the row of each id.

        Args:
            ids: `[n]` int64.
            out: `[n, dim]` of `dtype`; rows may be apart, the elements of one lie beside each other.
            deadline: on the clock of `time.monotonic`; what has not arrived by then gets the default row.
                None waits.

        Returns:
            `[n]` bool, true where the default row stands in for one that did not arrive; None if none does.

        Raises:
            RowNotFoundError: an id has no row, and the table's default row is an error.
        """
        ...
