"""Tables stream from the checkpoint to the bundle: memory does not grow with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters.source import Weight
from converters.tables import write_table
from serving.tables import open_table

_SAVE = """
import sys
from pathlib import Path
from bench.convert import save_large_model
for rows in map(int, sys.argv[2:]):
    save_large_model(Path(sys.argv[1]) / f"m{rows}", rows=rows, dim=64)
"""
_CONVERT = """
import sys
import threading
from pathlib import Path
from converters import flat_model
from converters.convert import convert
flat_model._IN_MEMORY_BYTES = 0  # what models beyond 1 GiB do
directory, peak, done = Path(sys.argv[1]), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = max(peak[0], int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))))

threading.Thread(target=watch).start()
for rows in sys.argv[2:]:
    convert(directory / f"m{rows}", directory / f"b{rows}")
    print(peak[0] // 1024)
done.set()
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """A table of 1 MiB and then one of 256 MiB, converted in one process. 80 MiB of slack: a chunk of 64 MiB,
    and what allocators keep; 10 were seen. The files' own pages are not counted: how many of them are in
    memory is the system's choice."""
    arguments = [str(tmp_path), str(1 << 12), str(1 << 20)]
    subprocess.run([sys.executable, "-c", _SAVE, *arguments], check=True)
    converted = subprocess.run(
        [sys.executable, "-c", _CONVERT, *arguments], check=True, capture_output=True, text=True
    )
    small, large = map(int, converted.stdout.split()[-2:])
    assert large - small < 80, (small, large)


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
