"""A Redis Cluster of three masters for the tests that do it no harm, and tables in files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jaxrank.bundle import sha256
from serving.tables import RowFormat, Table, TableWriter, open_table
from serving.tiers.record import TableRecord
from serving.tiers.transfer import record_of
from tests.conftest import CACHE
from tests.redis_cluster import Cluster, running_cluster


@dataclass(frozen=True)
class FiledTable:
    """A table in a file, as a bundle has it."""

    path: Path
    table: Table
    record: TableRecord


def write_table(
    path: Path,
    rows: int,
    dim: int,
    seed: int,
    row_format: RowFormat = "f32",
    keyed: bool = False,
    default="error",
) -> FiledTable:
    """Random rows (and keys, over all of int64)."""
    rng = np.random.default_rng(seed)
    with TableWriter(path, dim, row_format, keyed, default) as writer:
        for start in range(0, rows, 100_000):
            n = min(100_000, rows - start)
            # Odd multiples never meet: distinct keys without a set.
            keys = (np.arange(start, start + n) * 0x5851F42D4C957F2D).astype(np.int64) if keyed else None
            if row_format in ("i32", "i64"):
                writer.append(
                    rng.integers(-1000, 1000, (n, dim)).astype(row_format.replace("i", "int")), keys
                )
            else:
                writer.append(rng.standard_normal((n, dim)).astype(np.float32), keys)
    table = open_table(path)
    return FiledTable(path, table, record_of(path.stem, sha256(path), table))


@pytest.fixture(scope="package")
def redis_cache() -> Path:
    """Where redis-server is unpacked if the machine has none."""
    return CACHE / "redis"


@pytest.fixture(scope="package")
def cluster(redis_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(redis_cache, tmp_path_factory.mktemp("redis")) as cluster:
        yield cluster
