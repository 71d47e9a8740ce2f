"""Limits of processes and control groups."""

import re
from pathlib import Path

from serving.cores import control_group_files, cpu_quota
from serving.doctor.finding import Finding, Severity, good
from serving.doctor.system import System, mib, numbers

_FEW_FILES, _TOO_FEW_FILES = 8192, 1024
_LITTLE_LOCKED = 64 << 20
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes "no limit" as the largest number of pages."""


def processes(system: System) -> list[Finding]:
    """Open files and locked memory."""
    text = system.read("proc/self/limits") or ""
    source = "proc/self/limits"
    found = []
    files = _soft(text, "Max open files")
    if files is None:
        found.append(good("open files", "no limit is listed", source))
    elif files < _FEW_FILES:
        found.append(
            Finding(
                check="open files",
                severity=Severity.ERROR if files < _TOO_FEW_FILES else Severity.WARNING,
                found=f"at most {files}",
                source=source,
                change="ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit",
                why="every connection and every mapped table is an open file; one too many is refused",
            )
        )
    else:
        found.append(good("open files", "unlimited" if files >= _NO_LIMIT else f"at most {files}", source))
    locked = _soft(text, "Max locked memory")
    if locked is not None and locked < _LITTLE_LOCKED:
        found.append(
            Finding(
                check="locked memory",
                severity=Severity.ADVICE,
                found=f"at most {locked >> 10} KiB",
                source=source,
                change="ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit",
                why="tables that must never be paged out, and buffers that a GPU reads, are locked in memory",
            )
        )
    elif locked is not None:
        found.append(good("locked memory", "unlimited" if locked >= _NO_LIMIT else mib(locked), source))
    return found


def cpu_limit(system: System) -> list[Finding]:
    """The control group's CPU quota."""
    quota = cpu_quota(system.root)
    system.read("proc/self/cgroup")
    if quota is None:
        return [good("CPU quota", "none", "proc/self/cgroup, sys/fs/cgroup")]
    limit, path = quota
    source = str(path.relative_to(system.root))
    for name in (source, source.replace("cfs_quota", "cfs_period")):
        system.read(name)
    stat = system.read(str(path.with_name("cpu.stat").relative_to(system.root))) or ""
    throttled = re.search(r"^nr_throttled (\d+)", stat, re.M)
    cores = len(numbers(system.read("sys/devices/system/cpu/online") or ""))
    what = f"{limit:g} cores of {cores}" + (f", stopped {throttled.group(1)} times" if throttled else "")
    if limit >= cores:
        return [good("CPU quota", what, source)]
    return [
        Finding(
            check="CPU quota",
            severity=Severity.WARNING,
            found=what,
            source=source,
            change="a cpuset instead of a quota (Kubernetes: whole cores, static CPU manager policy), or "
            f"jaxrank serve --streams {max(1, int(limit))}",
            why="the server starts a stream for each core it sees, spends the quota early, and is stopped "
            "until the next period: pauses of up to 100 ms",
        )
    ]


def memory_limit(system: System, bundle: Path | None = None) -> list[Finding]:
    """What memory there is for a server, and whether a bundle fits."""
    info = system.read("proc/meminfo") or ""
    total, available = (
        int(found.group(1)) << 10 if (found := re.search(rf"^{name}:\s+(\d+) kB", info, re.M)) else None
        for name in ("MemTotal", "MemAvailable")
    )
    limits = []
    for name, controller in (("memory.max", ""), ("memory.limit_in_bytes", "memory")):
        for path in control_group_files(system.root, name, controller):
            text = system.read(str(path.relative_to(system.root))) or "max"
            if text != "max" and int(text) < min(_NO_LIMIT, total or _NO_LIMIT):
                limits.append((int(text), str(path.relative_to(system.root))))
    limit, source = min(limits, default=(total or 0, "proc/meminfo"))
    what = f"{mib(limit)} at most"
    what += f", {mib(min(limit, available))} free" if available is not None else ""
    needed = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) if bundle is not None else 0
    if needed and limit and needed > 0.8 * limit:
        return [
            Finding(
                check="memory",
                severity=Severity.ERROR if needed > limit else Severity.WARNING,
                found=f"{what}; the bundle has {mib(needed)}",
                source=source,
                change="more memory, or a higher limit of the control group",
                why="tables that do not fit are read from disk again and again, or the process is killed; "
                "two versions are in memory while a new one takes over",
            )
        ]
    return [good("memory", what + (f"; the bundle has {mib(needed)}" if needed else ""), source)]


def _soft(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}\s+(\S+)", text, re.M)
    if found is None:
        return None
    return _NO_LIMIT if found.group(1) == "unlimited" else int(found.group(1))
