"""What is made once for a test run, though the run is in several processes."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import AnyStr

import pytest


@contextmanager
def one_process_at_a_time(directory: Path, name: str) -> Iterator[None]:
    """Holds the lock `NAME.lock` of the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def killed(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """The process, which does not outlive the block: `Popen`'s own waits for ever where the block fails."""
    with process:
        try:
            yield process
        finally:
            process.kill()


class Once:
    """`once(name, build)`: the directory `name` of this run, which `build` filled in the process that asked
    first. Read-only: copy what is in it to change it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        """With pytest-xdist each process has a directory of its own in the run's."""
        base = factory.getbasetemp()
        self._root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def __call__(self, name: str, build: Callable[[Path], object]) -> Path:
        directory, made = self._root / name, self._root / f"{name}.made"
        with one_process_at_a_time(self._root, name):
            if not made.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                build(directory)
                made.touch()
        return directory
