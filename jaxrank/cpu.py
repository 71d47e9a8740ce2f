"""Instruction sets of CPUs: a module compiled for one CPU must not run on a lesser one."""

import re
from pathlib import Path

_RECORDED = re.compile(
    r"^(avx|fma|f16c|bmi|sse4|amx|sve|asimd|gfni|vaes|vpclmul|(pni|ssse3|cx16|popcnt|lahf_lm|abm|movbe|xsave)$)"
)

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS: dict[str, frozenset[str]] = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""What each micro-architecture level of x86-64 requires beyond the baseline, lowest level first: table 3.1
of the System V psABI (https://gitlab.com/x86-psABIs/x86-64-ABI), in Linux's names (SSE3 is `pni`, LZCNT is
`abm`, CMPXCHG16B is `cx16`; OSXSAVE shows as `xsave`)."""


def instruction_sets(root: Path = Path("/")) -> frozenset[str]:
    """Names of this machine's vector and bit instruction sets, as Linux lists them; empty where Linux does
    not say. `root` is where its file system begins."""
    info = root / "proc/cpuinfo"
    if not info.is_file():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.M)
    return frozenset(f for f in (found.group(1).split() if found else ()) if _RECORDED.match(f))
