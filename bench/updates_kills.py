"""Kills `jaxrank tables apply` at random moments and looks at what it leaves."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "from jaxrank.cli import app; app()"


@dataclass(frozen=True)
class Survived:
    """`kills` hit a command that was applying; `applied` deltas were in the table in the end."""

    kills: int
    applied: int


def apply_with_kills(
    target: Path, deltas: Sequence[Path], check: Callable[[], int], *, kills: int, seed: int = 0
) -> Survived:
    """Applies deltas to a table or bundle one by one, with `kills` of SIGKILL on the way.

    Args:
        check: verifies the target and returns the sequence number that all of it is at.

    Raises `RuntimeError` if the target is ever at another sequence than before the command or after it.
    """
    draw = random.Random(seed)
    start, seconds = check(), _START_SECONDS
    at, hit = start, 0
    while hit < kills or at - start < len(deltas):
        killed = hit < kills
        last = at - start == len(deltas)
        if last:
            raise RuntimeError(f"all deltas were applied after {hit} kills; give more of them")
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "tables", "apply", str(deltas[at - start]), str(target)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if not killed else subprocess.DEVNULL,
        )
        began = time.monotonic()
        if killed:
            time.sleep(draw.uniform(0.3, 1.05) * seconds)
            alive = process.poll() is None
            hit += alive
            process.kill()
            process.wait()
            if not alive:
                seconds = time.monotonic() - began
        elif process.wait():
            assert process.stderr is not None
            raise RuntimeError(f"apply ended with {process.returncode}: {process.stderr.read().decode()}")
        now = check()
        if now not in (at, at + 1):
            raise RuntimeError(f"{target} was at sequence {at} and is at {now} after a kill")
        at = now
    return Survived(hit, at - start)


_START_SECONDS = 1.0
"""What a command takes, before one has been seen to end."""
