"""Kills `jaxrank tables push` at random moments until it has gone through, and compares every row
afterwards."""

import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.kills import COMMAND, telling

_PUSH = telling("serving.tiers.transfer.push")


@dataclass(frozen=True)
class Survived:
    """`kills` hit a push that was running; the last run began with `resumed` rows stored."""

    kills: int
    resumed: int


def push_with_kills(bundle: Path, config: Path, store: str, *, kills: int, seed: int = 0) -> Survived:
    """Pushes a bundle's tables `kills` times with SIGKILL after some time, then once without, then verifies.

    The time to the kill is drawn from the moment when rows begin to be pushed.

    Raises `RuntimeError` with the command's output when a row is wrong.
    """
    draw = random.Random(seed)
    hit = 0
    arguments = [str(bundle), "--config", str(config), "--store", store]
    for _ in range(kills):
        command = [*_PUSH, "tables", "push", *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.random() * _SPREAD_SECONDS)
            process.kill()
            hit += "ends" not in process.stdout.read()
    said = _run("push", arguments)
    _run("verify", arguments)
    resumed = said.partition("of which ")[2].partition(" were there")[0].replace(",", "")
    return Survived(hit, int(resumed or 0))


_SPREAD_SECONDS = 0.1
"""A push goes on where the one before was killed: many kills must fit into the time of one push."""


def _run(command: str, arguments: list[str]) -> str:
    done = subprocess.run([*COMMAND, "tables", command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"jaxrank tables {command} ended with {done.returncode}: {done.stderr}")
    return " ".join(done.stderr.split())
