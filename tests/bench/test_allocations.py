"""The cost of a request in allocations and page faults, under glibc and jemalloc."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.allocations import counter
from bench.allocations.measure import Configuration, costs, figures
from serving.allocator import malloc_conf
from tests import models

_SCRIPT = """
import ctypes
c = ctypes.CDLL(None)
counted = (ctypes.c_uint64 * 2)()
c.malloc.restype = c.calloc.restype = c.aligned_alloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
c.jaxrank_allocations(counted)
before = list(counted)
for _ in range(100):
    c.free(c.malloc(1000)), c.free(c.calloc(10, 100)), c.free(c.aligned_alloc(64, 6400))
c.jaxrank_allocations(counted)
print(counted[0] - before[0], counted[1] - before[1])
"""


@pytest.mark.parametrize("under", ["glibc", "jemalloc"])
def test_every_call_is_counted(under: str, jemalloc: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    library = counter.build(tmp_path_factory.getbasetemp() / "counter")
    preload = f"{library}:{jemalloc}" if under == "jemalloc" else str(library)
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(
        command,
        env={**os.environ, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    calls, size = map(int, done.stdout.split())
    assert calls == pytest.approx(300, abs=20)
    assert size == pytest.approx(100 * (1000 + 1000 + 6400), rel=0.02)
    assert not hasattr(ctypes.CDLL(None), "jaxrank_allocations")


@pytest.mark.parametrize("served", [True, False])
def test_both_allocators_beside_each_other(
    served: bool, ranker_bundle: Path, jemalloc: Path, tmp_path: Path
) -> None:
    """The same work allocates the same under both, but for the buffers that a stream keeps when it needs them
    for the first time: which stream gets a request is chance."""
    requests = {
        f"{i}/{name}": value
        for i, rows in enumerate((1, 40, 9))
        for name, value in models.as_npz(models.ranker_request(rows, i)).items()
    }
    np.savez(tmp_path / "requests.npz", **requests)
    configurations = [Configuration("glibc"), Configuration("jemalloc", jemalloc, malloc_conf(2))]
    found = costs(
        ranker_bundle, tmp_path / "requests.npz", configurations, number=60, warm=30, rounds=1, served=served
    )
    (glibc,), (other,) = found["glibc"], found["jemalloc"]
    assert glibc.allocations > 10 and glibc.bytes > 1000 and glibc.cpu_ms > 0
    assert other.allocations == pytest.approx(glibc.allocations, rel=0.2)
    assert other.bytes == pytest.approx(glibc.bytes, rel=0.6)
    named = {f.name: f for f in figures(found, "served_")}
    assert named["served_jemalloc_allocations"].value == other.allocations
    assert named["served_glibc_minor_faults_per_1000"].unit == "faults/1000 requests"
