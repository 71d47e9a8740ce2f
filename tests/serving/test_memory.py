"""What memory costs: counters that move by what was done, under the system's allocator and under jemalloc."""

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serving import memory

_PAGES = 2000


def test_page_faults_and_resident_bytes() -> None:
    """Each page that is touched for the first time is one fault."""
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE) as block:
        block.madvise(mmap.MADV_NOHUGEPAGE)
        before = memory.snapshot()
        for page in range(_PAGES):
            block[page * mmap.PAGESIZE] = 1
        after = memory.snapshot()
    cost = memory.per_request(before, after, _PAGES // 10)
    assert 10_000 <= cost.minor_faults_per_1000 < 11_000
    assert cost.major_faults_per_1000 <= 100
    assert after.resident_bytes - before.resident_bytes >= 0.9 * _PAGES * mmap.PAGESIZE
    assert after.peak_resident_bytes >= after.resident_bytes


def test_live_bytes() -> None:
    before = memory.snapshot()
    if before.live_bytes is None:
        pytest.skip("this C library has neither mallctl nor mallinfo2")
    block = np.ones(1 << 21)
    during = memory.snapshot()
    del block
    after = memory.snapshot()
    assert during.live_bytes is not None and after.live_bytes is not None
    assert during.live_bytes - before.live_bytes == pytest.approx(16 << 20, rel=0.05)
    assert after.live_bytes - before.live_bytes == pytest.approx(0, abs=1 << 20)


def test_a_request_needs_a_request() -> None:
    now = memory.snapshot()
    with pytest.raises(ValueError, match="requests is 0"):
        memory.per_request(now, now, 0)


def test_a_snapshot_is_cheap() -> None:
    memory.snapshot()
    start = time.process_time()
    for _ in range(100):
        memory.snapshot()
    # It reads a few files of /proc: no walk over all pages, which takes this long in a process of this size.
    assert (time.process_time() - start) / 100 < 0.1


_SCRIPT = """
import ctypes, dataclasses, json
from serving import memory
from serving.allocator import running_allocator

c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
memory.snapshot(), memory.thread_allocated_bytes()
before, thread = memory.snapshot(), memory.thread_allocated_bytes()
for _ in range(1000):
    c.free(c.malloc(3000))      # size class 3072
    c.free(c.malloc(100_000))   # size class 114688
in_thread = memory.thread_allocated_bytes() - thread
cost = memory.per_request(before, memory.snapshot(), 1000)
print(json.dumps([str(running_allocator()), in_thread, dataclasses.asdict(cost)]))
"""


def test_jemalloc_counts_what_is_allocated(jemalloc: Path) -> None:
    """Exactly for the thread; for the process without what is in caches, which here is most small blocks."""
    environment = {**os.environ, "LD_PRELOAD": str(jemalloc)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    allocator, in_thread, cost = json.loads(done.stdout)
    assert allocator.startswith("jemalloc 5.")
    expected = 1000 * (3072 + 114688)
    assert expected <= in_thread < expected * 1.02
    assert 114688 <= cost["allocated_bytes"] < 1.02 * expected / 1000
    assert 1 <= cost["allocations"] < 4


def test_without_jemalloc_nothing_is_made_up() -> None:
    if memory.mallctl_text("version") is None:
        assert memory.thread_allocated_bytes() is None
        assert memory.snapshot().allocated_bytes is None
        now = memory.snapshot()
        assert memory.per_request(now, now, 1).allocations is None
