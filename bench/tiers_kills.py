"""Kills `jaxrank tables push` at random moments until it has gone through, and compares every row
afterwards."""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "from jaxrank.cli import app; app()"


@dataclass(frozen=True)
class Survived:
    """`kills` hit a push that was running; the last run began with `resumed` rows stored."""

    kills: int
    resumed: int


def push_with_kills(bundle: Path, config: Path, store: str, *, kills: int, seed: int = 0) -> Survived:
    """Pushes a bundle's tables `kills` times with SIGKILL after some time, then once without, then verifies.

    The time to the kill is drawn between the moment when the push writes its first rows and the time that is
    left. Raises `RuntimeError` with the command's output when a row is wrong.
    """
    draw = random.Random(seed)
    hit = 0
    arguments = [str(bundle), "--config", str(config), "--store", store]
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "tables", "push", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(_START_SECONDS + draw.random() * _SPREAD_SECONDS)
        hit += process.poll() is None
        process.kill()
        process.wait()
    said = _run("push", arguments)
    _run("verify", arguments)
    resumed = said.partition("of which ")[2].partition(" were there")[0].replace(",", "")
    return Survived(hit, int(resumed or 0))


_START_SECONDS, _SPREAD_SECONDS = 0.5, 1.5
"""Python starts and imports within the first; the kills are spread over the rest."""


def _run(command: str, arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "tables", command, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"jaxrank tables {command} ended with {done.returncode}: {done.stderr}")
    return " ".join(done.stderr.split())
