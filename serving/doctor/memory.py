"""Allocator, transparent huge pages, NUMA nodes, swap and overcommit."""

import re
from pathlib import Path

from serving.allocator import PACKAGE, find_jemalloc
from serving.doctor.finding import Finding, Severity, good
from serving.doctor.system import System, chosen, mib

_THP = "sys/kernel/mm/transparent_hugepage"


def allocator(system: System) -> list[Finding]:
    """Whether jemalloc is installed, and whether the servers that run here run under it."""
    library = find_jemalloc(system.root)
    found = []
    if library is not None:
        found.append(
            good(
                "allocator",
                f"{library}: jaxrank serve starts under it",
                "etc/ld.so.cache, library directories",
            )
        )
    else:
        found.append(
            Finding(
                check="allocator",
                severity=Severity.WARNING,
                found="no libjemalloc",
                source="etc/ld.so.cache, library directories",
                change=f"apt-get install {PACKAGE} (Debian, Ubuntu), or jaxrank serve --jemalloc PATH",
                why="glibc gives large blocks back to the system and takes them again: page faults on every "
                "request (docs/memory.md)",
            )
        )
    for process, command in system.processes():
        if any(Path(part).name == "jaxrank" for part in command[:2]) and "serve" in command[1:3]:
            source = f"proc/{process}/maps"
            maps = system.read(source)
            if maps is None:
                continue
            if "libjemalloc" in maps:
                found.append(good("server's allocator", f"process {process} has libjemalloc loaded", source))
            else:
                found.append(
                    Finding(
                        check="server's allocator",
                        severity=Severity.WARNING,
                        found=f"process {process} runs without jemalloc",
                        source=source,
                        change="start it again once libjemalloc is installed, without --jemalloc off",
                        why="a process gets its allocator when it starts",
                    )
                )
    return found


def huge_pages(system: System) -> list[Finding]:
    """Transparent huge pages: whether they are given, and what a page fault does to get one."""
    enabled, defrag = system.read(f"{_THP}/enabled"), system.read(f"{_THP}/defrag")
    if enabled is None:
        return [
            Finding(
                check="huge pages",
                severity=Severity.ADVICE,
                found="this kernel has no transparent huge pages, or hides them",
                source=f"{_THP}/enabled",
                change="a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
                why="with pages of 4 KiB random lookups in large tables miss the TLB on nearly every row",
            )
        ]
    found = []
    if chosen(enabled) == "never":
        found.append(
            Finding(
                check="huge pages",
                severity=Severity.WARNING,
                found="transparent huge pages are off",
                source=f"{_THP}/enabled",
                change=f"echo madvise > /{_THP}/enabled; at boot: transparent_hugepage=madvise",
                why="tables and the allocator ask for huge pages (madvise) and get none: more page faults "
                "and TLB misses",
            )
        )
    else:
        found.append(good("huge pages", chosen(enabled), f"{_THP}/enabled"))
    if defrag is not None and chosen(defrag) == "always":
        found.append(
            Finding(
                check="huge page defrag",
                severity=Severity.ADVICE,
                found="always: every page fault may stop to compact memory",
                source=f"{_THP}/defrag",
                change=f"echo defer+madvise > /{_THP}/defrag",
                why="a fault waits until the kernel has made a huge page: rare, and milliseconds long",
            )
        )
    elif defrag is not None:
        found.append(good("huge page defrag", chosen(defrag), f"{_THP}/defrag"))
    return found


def numa(system: System) -> list[Finding]:
    """NUMA nodes, their cores and memory, and whether the kernel moves pages between them."""
    base = "sys/devices/system/node"
    nodes = [name for name in system.names(base) if re.fullmatch(r"node\d+", name)]
    if not nodes:
        return [good("NUMA", "the kernel lists no nodes: memory is uniform", base)]
    parts = []
    empty = []
    for node in nodes:
        cores = system.read(f"{base}/{node}/cpulist") or ""
        distance = system.read(f"{base}/{node}/distance")
        total = re.search(r"MemTotal:\s+(\d+) kB", system.read(f"{base}/{node}/meminfo") or "")
        size = int(total.group(1)) << 10 if total else 0
        parts.append(f"{node}: cores {cores or 'none'}, {mib(size)}, distances {distance or 'unknown'}")
        if cores and not size:
            empty.append(node)
    listed = "; ".join(parts)
    if len(nodes) == 1:
        return [good("NUMA", listed, base)]
    found = [
        Finding(
            check="NUMA",
            severity=Severity.ADVICE,
            found=listed,
            source=base,
            change="one server for each node: numactl --cpunodebind=N --membind=N jaxrank serve ...",
            why="a lookup in another node's memory takes about the ratio of the distances longer",
        )
    ]
    if empty:
        found.append(
            Finding(
                check="NUMA memory",
                severity=Severity.WARNING,
                found=f"{', '.join(empty)}: cores without memory of their own",
                source=f"{base}/*/meminfo",
                change="fill the memory channels of every socket, or keep the server off those cores",
                why="everything that these cores read is remote",
            )
        )
    if system.read("proc/sys/kernel/numa_balancing") == "1":
        found.append(
            Finding(
                check="NUMA balancing",
                severity=Severity.ADVICE,
                found="on",
                source="proc/sys/kernel/numa_balancing",
                change="sysctl -w kernel.numa_balancing=0 where servers are bound to nodes",
                why="the kernel unmaps pages to see who uses them: page faults, and tables that move",
            )
        )
    return found


def paging(system: System) -> list[Finding]:
    """Swap and the overcommit policy."""
    found = []
    swaps = (system.read("proc/swaps") or "").splitlines()[1:]
    swappiness = system.read("proc/sys/vm/swappiness")
    if swaps and swappiness is not None and int(swappiness) > 10:
        found.append(
            Finding(
                check="swap",
                severity=Severity.ADVICE,
                found=f"{len(swaps)} in use, swappiness {swappiness}",
                source="proc/swaps, proc/sys/vm/swappiness",
                change="sysctl -w vm.swappiness=1",
                why="rows that are rarely read go to disk, and the request that reads one waits for it",
            )
        )
    else:
        found.append(good("swap", "none" if not swaps else f"swappiness {swappiness}", "proc/swaps"))
    policy = system.read("proc/sys/vm/overcommit_memory")
    if policy == "2":
        found.append(
            Finding(
                check="overcommit",
                severity=Severity.WARNING,
                found="strict (2)",
                source="proc/sys/vm/overcommit_memory",
                change="sysctl -w vm.overcommit_memory=0",
                why="the allocator reserves more address space than it uses, and this policy refuses it",
            )
        )
    elif policy is not None:
        found.append(good("overcommit", policy, "proc/sys/vm/overcommit_memory"))
    return found
