"""The lookups of a request in many tables, on several cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.cores import usable_core_numbers
from serving.native import _core
from serving.tables.table import Combiner, Table, checked, pooling


@dataclass(frozen=True)
class Lookup:
    """One lookup, as `Table.lookup` without offsets and as `Table.pool` with them."""

    table: Table
    ids: np.ndarray
    out: np.ndarray
    offsets: np.ndarray | None = None
    weights: np.ndarray | None = None
    combiner: Combiner = "sum"
    max_norm: float | None = None


class WorkerPool:
    """Threads that share lookups with who calls `run`, which any number of threads may.

    Args:
        cores: one thread is pinned to each; by default the pool that this process has for all its work, with
            a thread for each core that it may use.
    """

    def __init__(self, cores: Sequence[int] | None = None):
        shared = _core.shared_pool(usable_core_numbers()) if cores is None else None
        self._native = shared or _core.WorkerPool(list(cores or ()))

    @property
    def threads(self) -> int:
        return self._native.threads

    def run(self, lookups: Sequence[Lookup]) -> None:
        """Runs all lookups, cut by tables, segments and ids into pieces of about equal cost. What takes less
        than a sleeping thread needs to wake up stays with the caller. Raises as `Table.lookup` and
        `Table.pool`."""
        _core.run_lookups([_native(lookup) for lookup in lookups], self._native)


def _native(lookup: Lookup) -> tuple[Any, ...]:
    ids, out = checked(lookup.ids, "ids", np.int64), checked(lookup.out, "the output", np.float32, 2)
    if lookup.offsets is None:
        return lookup.table.native, ids, None, None, 0, 0.0, out
    rest = pooling(lookup.offsets, lookup.weights, lookup.combiner, lookup.max_norm)
    return lookup.table.native, ids, *rest, out
