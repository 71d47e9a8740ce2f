"""Kills `jaxrank tables apply` at random moments and looks at what it leaves."""

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kills import telling

_APPLY = telling("serving.tables.apply_deltas", "serving.updates.bundles.apply_to_bundle")


@dataclass(frozen=True)
class Survived:
    """`kills` hit a command in the middle of applying; `applied` deltas were in the table in the end, and
    the last of these nobody killed."""

    kills: int
    applied: int


def apply_with_kills(
    target: Path, deltas: Sequence[Path], check: Callable[[], int], *, kills: int, seed: int = 0
) -> Survived:
    """Applies deltas to a table or bundle one by one, with `kills` of SIGKILL on the way, then one more.

    Args:
        check: verifies the target and returns the sequence number that all of it is at.

    A kill that comes after the end of applying halves the time from which the next ones are drawn, and the
    last delta's comes at once.

    Raises `RuntimeError` if the target is ever at another sequence than before the command or after it.
    """
    draw = random.Random(seed)
    start, seconds = check(), None
    at, hit, whole = start, 0, False
    while hit < kills or (not whole and at - start < len(deltas)):
        if at - start == len(deltas):
            raise RuntimeError(f"all deltas were applied after {hit} kills; give more of them")
        command = [*_APPLY, "tables", "apply", str(deltas[at - start]), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            begins, began = process.stdout.readline(), time.monotonic()
            if begins and seconds is not None and hit < kills:
                last = at - start == len(deltas) - 1
                time.sleep(0 if last else draw.uniform(0, 0.9) * seconds)
                process.kill()
                missed = "ends" in process.stdout.read()
                hit += not missed
                seconds /= 1 + missed
            else:
                process.stdout.readline()
                seconds, whole = time.monotonic() - began, hit == kills
                if process.wait():
                    raise RuntimeError(f"apply ended with {process.returncode}: {process.stderr.read()}")
        now = check()
        if now not in (at, at + 1):
            raise RuntimeError(f"{target} was at sequence {at} and is at {now} after a kill")
        at = now
    return Survived(hit, at - start)
