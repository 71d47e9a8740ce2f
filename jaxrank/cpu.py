"""Instruction sets of this machine's CPU: a module compiled for one CPU must not run on a lesser one."""

import re
from pathlib import Path

_INSTRUCTION_SETS = re.compile(r"^(avx|fma|f16c|bmi|sse4|amx|sve|asimd|gfni|vaes|vpclmul)")


def instruction_sets() -> frozenset[str]:
    """Names of vector and bit instruction sets, as Linux lists them; empty where Linux does not say."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.M)
    return frozenset(f for f in (found.group(1).split() if found else ()) if _INSTRUCTION_SETS.match(f))
