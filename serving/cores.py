"""How many cores this process may use: its affinity and its control group's CPU quota."""

import math
import os
import re
from pathlib import Path


def affinity() -> int:
    """Cores that the scheduler may run this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def capacity(root: Path = Path("/"), processes: int = 1) -> float:
    """Cores worth of time this process gets: its affinity, or less where the control group has a quota that
    can be read, which `processes` of them share."""
    try:
        quota = cpu_quota(root)
    except (OSError, ValueError):
        quota = None
    return float(affinity()) if quota is None else min(float(affinity()), quota[0] / processes)


def usable_cores(root: Path = Path("/")) -> int:
    """The same in whole cores, at least one."""
    return max(1, math.ceil(capacity(root)))


def usable_core_numbers() -> list[int]:
    """The cores to pin threads to: as many as this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))[: usable_cores()]


def cpu_quota(root: Path = Path("/")) -> tuple[float, Path] | None:
    """The smallest CPU quota, in cores, of this process's control groups, and the file that sets it; None
    without a quota. Raises `OSError` or `ValueError` for files that cannot be read or understood."""
    found: list[tuple[float, Path]] = []
    for path in control_group_files(root, "cpu.max"):
        limit, _, period = path.read_text().strip().partition(" ")
        if limit != "max":
            found.append((int(limit) / int(period or 100_000), path))
    for path in control_group_files(root, "cpu.cfs_quota_us", controller="cpu"):
        quota = int(path.read_text())
        if quota > 0:
            found.append((quota / int(path.with_name("cpu.cfs_period_us").read_text()), path))
    return min(found, default=None)


def control_group_files(root: Path, name: str, controller: str = "") -> list[Path]:
    """Files `name` of this process's control group and of every group around it, innermost first.

    Args:
        controller: version 1's controller, "cpu" or "memory"; "" is version 2's one hierarchy.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return []
    listed = [line.split(":", 2) for line in groups.read_text().splitlines() if line.count(":") >= 2]
    inside = next((path for _, names, path in listed if controller in names.split(",")), None)
    if inside is None:
        return []
    mounts = (
        [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        if not controller
        else [root / "sys/fs/cgroup" / controller, root / "sys/fs/cgroup/cpu,cpuacct"]
    )
    # Inside of a container the path may be the host's, which is not there: its own group is then the mount.
    parts = [p for p in re.split("/+", inside) if p not in ("", "..")]
    places = [Path(*parts[:depth]) if depth else Path() for depth in range(len(parts), -1, -1)]
    for mount in mounts:
        if found := [file for place in places if (file := mount / place / name).is_file()]:
            return found
    return []
