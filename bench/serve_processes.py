"""The servers of the suite `serve`, each a process of its own on a free port of this machine."""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from bench.serve_overhead import Spent

_START_SECONDS = 120.0


@dataclass(frozen=True)
class Setting:
    """Threads of the TensorFlow server."""

    intra: int
    inter: int
    workers: int

    def __str__(self) -> str:
        return f"{self.intra} intra-op and {self.inter} inter-op threads, {self.workers} requests at once"


def settings(cores: int) -> tuple[Setting, ...]:
    """The settings worth trying: requests side by side on one core each, one at a time on all cores, and
    TensorFlow's defaults with more requests than cores."""
    return (
        Setting(1, 1, cores),
        Setting(cores, 1, 1),
        Setting(cores, cores, cores),
        Setting(cores, cores, 8),
    )


@dataclass(frozen=True)
class Running:
    """A server: where it answers, and its process id."""

    address: str
    process: int


class Memory(NamedTuple):
    """MiB that a process has in memory."""

    anonymous: float
    files: float
    """Pages of files: programs, and what is mapped of models."""

    @property
    def total(self) -> float:
        return self.anonymous + self.files


def memory(process: int) -> Memory | None:
    """Of a process now; none where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(RssAnon|RssFile):\s+(\d+) kB", text, re.MULTILINE))
    return Memory(*(int(found[n]) / 1024 for n in ("RssAnon", "RssFile"))) if len(found) == 2 else None


@contextmanager
def jaxrank_server(models: Mapping[str, Path], *options: str) -> Iterator[Running]:
    """`jaxrank serve` on bundles by model name."""
    with _models_directory(models) as directory:
        program = Path(sys.executable).parent / "jaxrank"
        command = [str(program), "serve", directory, "--host", "127.0.0.1", "--port", "0", *options]
        with _running(command) as server:
            yield server


class Clocked:
    """`bench.serve_overhead`: our server with a clock around its two programs."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._stdin, self._stdout = process.stdin, process.stdout
        assert self._stdin is not None and self._stdout is not None
        said = self._stdout.readline()
        if not said:
            process.wait()
            errors.seek(0)
            raise RuntimeError(f"bench.serve_overhead did not serve:\n{errors.read()[-2000:]}")
        self.address = said.removeprefix("serving on ").strip().removesuffix(":")

    def spent(self) -> Spent:
        """So far."""
        assert self._stdin is not None and self._stdout is not None
        self._stdin.write("\n")
        self._stdin.flush()
        return msgspec.json.decode(self._stdout.readline(), type=Spent)


@contextmanager
def clocked_server(models: Mapping[str, Path]) -> Iterator[Clocked]:
    """Our server on bundles by model name. Raises `RuntimeError` with what it said where it does not
    serve."""
    with ExitStack() as stack:
        directory = stack.enter_context(_models_directory(models))
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.serve_overhead", directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        stack.callback(process.communicate)
        yield Clocked(process, errors)


@contextmanager
def tensorflow_server(saved_model: Path, setting: Setting, signature: str) -> Iterator[Running]:
    """The baseline."""
    command = [sys.executable, "-m", "bench.serve_baseline", str(saved_model), "--signature", signature]
    command += ["--intra", str(setting.intra), "--inter", str(setting.inter)]
    with _running([*command, "--workers", str(setting.workers)]) as server:
        yield server


@contextmanager
def _models_directory(models: Mapping[str, Path]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        for name, bundle in models.items():
            (Path(directory) / name).mkdir()
            (Path(directory) / name / "1").symlink_to(bundle.absolute(), target_is_directory=True)
        yield directory


@contextmanager
def _running(command: Sequence[str]) -> Iterator[Running]:
    """A process until the block ends, from when it says where it serves. Raises `RuntimeError` with what it
    said where it ends before, or does not serve in time."""
    with tempfile.TemporaryDirectory() as directory:
        said = Path(directory) / "output"
        with said.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            ends = time.monotonic() + _START_SECONDS
            while not (found := re.search(r"serving on (\S+):", said.read_text())):
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"{shlex.join(command)} did not serve:\n{said.read_text()[-2000:]}")
                time.sleep(0.05)
            yield Running(found.group(1), process.pid)
        finally:
            process.terminate()
            process.wait()
