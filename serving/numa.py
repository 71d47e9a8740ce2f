"""NUMA nodes: which cores are near which memory, and where a process takes its memory from."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""The system call's numbers: the C library has no function for it."""
_DEFAULT, _PREFERRED = 0, 1
_WORD = 64


def nodes_of(cores: Sequence[int], root: Path = Path("/")) -> dict[int, list[int]]:
    """The cores of each node that has some of them, by the node's number; empty where the system lists no
    nodes."""
    found: dict[int, list[int]] = {}
    for node in sorted(
        (root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])
    ):
        own = _numbers((node / "cpulist").read_text())
        if here := [core for core in cores if core in own]:
            found[int(node.name[4:])] = here
    return found


@contextmanager
def memory_of(node: int) -> Iterator[None]:
    """What this thread takes from the system, and the processes that it starts, is memory of the node, and of
    another one only where that has none left. Raises `OSError`."""
    _set_policy(_PREFERRED, node)
    try:
        yield
    finally:
        _set_policy(_DEFAULT, None)


def _numbers(text: str) -> set[int]:
    """Of a list such as "0-3,8"."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


def _set_policy(mode: int, node: int | None) -> None:
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        raise OSError(f"--numa does not know how to place memory on {platform.machine()}")
    words = 1 + (node or 0) // _WORD
    mask = (ctypes.c_uint64 * words)()
    if node is not None:
        mask[node // _WORD] = 1 << node % _WORD
    # The kernel reads one bit less than it is told.
    bits = words * _WORD + 1 if node is not None else 0
    if ctypes.CDLL(None, use_errno=True).syscall(number, mode, mask if bits else None, bits):
        error = ctypes.get_errno()
        raise OSError(error, f"memory of NUMA node {node} cannot be asked for: {os.strerror(error)}")
