"""Explains a machine to the one who serves on it.

Entry point: `examine`. Each of `memory.py`, `cpu.py`, `gpu.py` and `limits.py` has checks: functions from a
`System` (`system.py`: the machine's files below one root, so that a recorded machine is examined like this
one) to findings (`finding.py`), each with what to change and why.
"""

from collections.abc import Callable
from pathlib import Path

from serving.doctor import cpu, gpu, limits, memory
from serving.doctor.finding import EXIT_CODES, Finding, Severity, worst
from serving.doctor.system import System

__all__ = ["EXIT_CODES", "Finding", "Severity", "System", "examine", "worst"]


def examine(system: System, bundle: Path | None = None) -> list[Finding]:
    """Every check, in the order of a report.

    Args:
        system: the machine.
        bundle: a bundle that is to be served there: its modules and its size are looked at, too.

    Raises:
        BundleError: the bundle cannot be read.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "allocator": lambda: memory.allocator(system),
        "huge pages": lambda: memory.huge_pages(system),
        "NUMA": lambda: memory.numa(system),
        "paging": lambda: memory.paging(system),
        "CPU": lambda: cpu.features(system, bundle),
        "cores": lambda: cpu.cores(system),
        "governor": lambda: cpu.governor(system),
        "interrupts": lambda: cpu.interrupts(system),
        "hypervisor": lambda: cpu.hypervisor(system),
        "GPU": lambda: gpu.gpus(system, bundle),
        "limits": lambda: limits.processes(system),
        "CPU quota": lambda: limits.cpu_limit(system),
        "memory": lambda: limits.memory_limit(system, bundle),
    }
    return [finding for name, check in checks.items() for finding in _understood(name, check)]


def _understood(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; a file in a form that it does not know is a finding of its own."""
    try:
        return check()
    except (OSError, ValueError) as error:
        return [
            Finding(
                check=name,
                severity=Severity.WARNING,
                found=f"the machine's files were not understood: {error}",
                source="proc, sys",
                change="report this with what jaxrank doctor --record DIRECTORY writes",
                why="nothing is known of this part of the machine",
            )
        ]
