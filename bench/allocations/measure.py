"""Runs the process under test with each allocator in turn, and makes figures of what it reports."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from bench.allocations import counter
from bench.allocations.subject import Ready, Report, read_requests
from bench.results import Figure
from serving.allocator import malloc_conf
from serving.client import PredictClient
from serving.cores import usable_cores
from serving.memory import per_request

_MODEL = "model"


@dataclass(frozen=True)
class Configuration:
    """An allocator under test: the library to preload (None: the system's) and jemalloc's options."""

    name: str
    library: Path | None = None
    options: str = ""


@dataclass(frozen=True)
class Cost:
    """What a request cost in one run, on average; `live_mib` and `resident_mib` at its end."""

    allocations: float
    bytes: float
    minor_faults_per_1000: float
    major_faults_per_1000: float
    cpu_ms: float
    resident_mib: float
    peak_mib: float


UNITS = {
    "allocations": "allocations/request",
    "bytes": "B/request",
    "minor_faults_per_1000": "faults/1000 requests",
    "major_faults_per_1000": "faults/1000 requests",
    "cpu_ms": "ms/request",
    "resident_mib": "MiB",
    "peak_mib": "MiB",
}


def beside_glibc(library: Path) -> list[Configuration]:
    """The system's allocator, jemalloc with jaxrank's options, and jemalloc without any."""
    options = malloc_conf(usable_cores())
    return [
        Configuration("glibc"),
        Configuration("jemalloc", library, options),
        Configuration("plain", library),
    ]


def costs(
    bundle: Path,
    requests: Path,
    configurations: Sequence[Configuration],
    *,
    number: int = 1000,
    warm: int = 300,
    rounds: int = 3,
    served: bool = True,
) -> dict[str, list[Cost]]:
    """What a request costs under each configuration, in a fresh process for each of `rounds` rounds, in turn.

    Args:
        requests: the .npz that `read_requests` takes; they are sent in order, again and again.
        number: measured requests of a run; `warm` come before them.
        served: over gRPC, counted in the server's process; else straight to `Model.predict`.
    """
    with TemporaryDirectory() as work:
        library = counter.build(Path(work))
        models = Path(work) / "models"
        (models / _MODEL).mkdir(parents=True)
        (models / _MODEL / "1").symlink_to(bundle.absolute())
        found: dict[str, list[Cost]] = {c.name: [] for c in configurations}
        for _ in range(rounds):
            for configuration in configurations:
                preload = ":".join(str(x.absolute()) for x in (library, configuration.library) if x)
                path = models if served else bundle
                with _subject(path, requests, preload, configuration.options, served) as subject:
                    subject.answer(warm)
                    before = subject.answer(0)
                    after = subject.answer(number)
                found[configuration.name].append(_cost(before, after, number))
    return found


def figures(found: Mapping[str, Sequence[Cost]], prefix: str = "") -> list[Figure]:
    """The median of each cost, and its range over the rounds."""
    result = []
    for name, runs in found.items():
        for field, unit in UNITS.items():
            values = [getattr(run, field) for run in runs]
            result.append(
                Figure(
                    name=f"{prefix}{name}_{field}",
                    value=float(np.median(values)),
                    unit=unit,
                    lo=min(values),
                    hi=max(values),
                    runs=len(values),
                )
            )
    return result


def _cost(before: Report, after: Report, number: int) -> Cost:
    request = per_request(before.memory, after.memory, number)
    return Cost(
        allocations=(after.counted_allocations - before.counted_allocations) / number,
        bytes=(after.counted_bytes - before.counted_bytes) / number,
        minor_faults_per_1000=request.minor_faults_per_1000,
        major_faults_per_1000=request.major_faults_per_1000,
        cpu_ms=1000 * (after.cpu_s - before.cpu_s) / number,
        resident_mib=after.memory.resident_bytes / 2**20,
        peak_mib=after.memory.peak_resident_bytes / 2**20,
    )


class _Subject:
    def __init__(self, process: subprocess.Popen[bytes], requests: Path):
        self._process = process
        ready = msgspec.json.decode(self._line(), type=Ready)
        self._client = PredictClient(ready.address) if ready.address else None
        self._requests = itertools.cycle(read_requests(requests))

    def answer(self, number: int) -> Report:
        """Has it answer a number of requests; its counters after them."""
        if self._client is not None:
            for request in itertools.islice(self._requests, number):
                self._client.predict(_MODEL, request)
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {number}\n".encode())
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Report)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process under test ended with {self._process.wait()}; see its output above"
            )
        return line


@contextlib.contextmanager
def _subject(path: Path, requests: Path, preload: str, options: str, served: bool) -> Iterator[_Subject]:
    command = [sys.executable, "-m", "bench.allocations.subject", str(path), str(requests)]
    environment = {**os.environ, "LD_PRELOAD": preload, "MALLOC_CONF": options}
    with subprocess.Popen(
        [*command, *(["--serve"] if served else [])],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            subject = _Subject(process, requests)
            yield subject
            subject.close()
        except BaseException:
            process.kill()
            raise
