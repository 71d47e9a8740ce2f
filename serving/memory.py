"""What memory costs a process: page faults, resident bytes, and what its allocator counts.

`snapshot` reads all of it; two snapshots and the number of requests between them give the cost of a request
(`per_request`). Counts come from the allocator that runs: jemalloc counts what was ever allocated, glibc only
what is in use.
"""

import ctypes
import functools
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_ALL_ARENAS = 4096
"""`MALLCTL_ARENAS_ALL` of jemalloc/jemalloc.h: statistics of every arena, summed."""


@dataclass(frozen=True)
class MemorySnapshot:
    """One process at one moment; counters run from its start. Sizes in bytes.

    Attributes:
        minor_faults: page faults that needed no disk.
        major_faults: page faults that waited for a disk.
        resident_bytes: physical memory that is mapped now.
        peak_resident_bytes: the most it ever was.
        live_bytes: allocated and not freed; None where the allocator does not say.
        allocated_bytes: ever allocated, rounded up to size classes; None but under jemalloc. What a thread
            takes from its own cache (up to 32 KiB each) is counted when jemalloc fills or flushes that cache,
            which may be much later: a lower bound. `thread_allocated_bytes` is exact.
        allocations: calls that allocated, counted in the same way.
    """

    minor_faults: int
    major_faults: int
    resident_bytes: int
    peak_resident_bytes: int
    live_bytes: int | None
    allocated_bytes: int | None
    allocations: int | None


@dataclass(frozen=True)
class RequestCost:
    """What one request cost on average; faults for 1,000 requests. None where the allocator does not say."""

    minor_faults_per_1000: float
    major_faults_per_1000: float
    allocated_bytes: float | None
    allocations: float | None


def snapshot() -> MemorySnapshot:
    """This process now, in well under a millisecond. Where there is no Linux, resident is the peak."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    statm = Path("/proc/self/statm")
    peak = usage.ru_maxrss << 10
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else peak
    total = _jemalloc_total()
    return MemorySnapshot(
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
        resident_bytes=resident,
        peak_resident_bytes=max(peak, resident),
        live_bytes=_live_bytes(),
        allocated_bytes=total and total[0],
        allocations=total and total[1],
    )


def per_request(before: MemorySnapshot, after: MemorySnapshot, requests: int) -> RequestCost:
    """The average cost of the `requests` that were answered between two snapshots of one process."""
    if requests < 1:
        raise ValueError(f"requests is {requests}; the cost of a request needs at least one")

    def difference(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else (last - first) / requests

    return RequestCost(
        minor_faults_per_1000=1000 * (after.minor_faults - before.minor_faults) / requests,
        major_faults_per_1000=1000 * (after.major_faults - before.major_faults) / requests,
        allocated_bytes=difference("allocated_bytes"),
        allocations=difference("allocations"),
    )


def thread_allocated_bytes() -> int | None:
    """Bytes that the calling thread ever allocated, exactly; None but under jemalloc. Two equal values mean
    that the thread allocated nothing in between."""
    return mallctl("thread.allocated", ctypes.c_uint64)


def mallctl(name: str, kind: type[ctypes.c_uint64] | type[ctypes.c_uint] | type[ctypes.c_bool]) -> int | None:
    """Reads one of jemalloc's values (jemalloc(3), "MALLCTL NAMESPACE"); None where jemalloc does not run or
    has no such value."""
    function = _symbol("mallctl")
    if function is None:
        return None
    value, size = kind(), ctypes.c_size_t(ctypes.sizeof(kind))
    failed = function(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else int(value.value)


def mallctl_text(name: str) -> str | None:
    """Like `mallctl`, for a value that is a string."""
    function = _symbol("mallctl")
    if function is None:
        return None
    value, size = ctypes.c_char_p(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_char_p))
    failed = function(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed or value.value is None else value.value.decode()


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _live_bytes() -> int | None:
    if _symbol("mallctl") is not None:
        _refresh()
        return mallctl("stats.allocated", ctypes.c_uint64)
    function = _symbol("mallinfo2")  # glibc 2.33
    if function is None:
        return None
    function.restype = _Mallinfo2
    found = function()
    return found.uordblks + found.hblkhd


def _jemalloc_total() -> tuple[int, int] | None:
    """Bytes and number of all allocations: `nrequests` of every size class."""
    if mallctl("config.stats", ctypes.c_bool) != 1:
        return None
    _refresh()
    allocated = count = 0
    for name, size in _size_classes():
        requests = mallctl(f"stats.arenas.{_ALL_ARENAS}.{name}.nrequests", ctypes.c_uint64) or 0
        allocated, count = allocated + requests * size, count + requests
    return allocated, count


@functools.cache
def _size_classes() -> list[tuple[str, int]]:
    small = mallctl("arenas.nbins", ctypes.c_uint) or 0
    large = mallctl("arenas.nlextents", ctypes.c_uint) or 0
    names = [(f"bins.{i}", f"bin.{i}") for i in range(small)]
    names += [(f"lextents.{i}", f"lextent.{i}") for i in range(large)]
    return [(stats, mallctl(f"arenas.{size}.size", ctypes.c_uint64) or 0) for stats, size in names]


def _refresh() -> None:
    """Statistics are those of the last time that `epoch` was written."""
    function = _symbol("mallctl")
    if function is not None:
        epoch = ctypes.c_uint64(1)
        size = ctypes.c_size_t(ctypes.sizeof(epoch))
        function(b"epoch", ctypes.byref(epoch), ctypes.byref(size), ctypes.byref(epoch), size)


@functools.cache
def _symbol(name: str) -> "ctypes._NamedFuncPointer | None":
    """A function of the allocator. PyDLL: it keeps the GIL, whose release and taking would cost more."""
    return getattr(ctypes.PyDLL(None), name, None)
