"""Tables stream from the checkpoint to the bundle: memory does not grow with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters.source import Weight
from converters.tables import write_table
from serving.tables import open_table

_CONVERT = """
import sys
from pathlib import Path
from bench.convert import peak_memory_mib
from converters import flat_model
from converters.convert import convert
flat_model._IN_MEMORY_BYTES = 0  # what models beyond 1 GiB do
source, bundle = Path(sys.argv[1]), Path(sys.argv[2])
convert(source, bundle)
print(int(peak_memory_mib()))
"""
_SAVE = """
import sys
from pathlib import Path
from bench.convert import save_large_model
save_large_model(Path(sys.argv[1]), rows=int(sys.argv[2]), dim=64)
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """A table of 384 MiB beside one of 1 MiB, each converted in a process of its own. 200 MiB of slack:
    chunks of 64 MiB pass through memory, and allocators keep what they had."""
    peaks, small, large = {}, 1 << 12, 3 << 19
    for rows in (small, large):
        source, bundle = tmp_path / f"m{rows}", tmp_path / f"b{rows}"
        subprocess.run([sys.executable, "-c", _SAVE, str(source), str(rows)], check=True)
        convert = [sys.executable, "-c", _CONVERT, str(source), str(bundle)]
        peaks[rows] = int(
            subprocess.run(convert, check=True, capture_output=True, text=True).stdout.split()[-1]
        )
    assert peaks[large] - peaks[small] < 200, peaks


@pytest.mark.parametrize("strategy", ["concat", "mod"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_partitions_become_one_table(tmp_path: Path, strategy: str, dtype: type) -> None:
    whole = np.random.default_rng(0).normal(0, 100, (1001, 7)).astype(dtype)
    parts = tuple(whole[i::3] for i in range(3)) if strategy == "mod" else tuple(np.array_split(whole, 3))
    weight = Weight("w", parts, strategy)  # pyright: ignore[reportArgumentType]
    table = write_table(tmp_path, "w", weight)
    assert (table.rows, table.dim, table.dtype) == (1001, 7, np.dtype(dtype).name)
    np.testing.assert_array_equal(open_table(tmp_path / table.file).array, whole)
    ids = np.array([[0, 1000], [500, 333]])
    np.testing.assert_array_equal(weight.rows(ids), whole[ids])
    np.testing.assert_array_equal(weight.array(), whole)
