"""Results as data: one JSON file for each suite, with what was measured, where, and by which command."""

import datetime
import math
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxrank.errors import JaxrankError
from serving.cores import affinity

_PACKAGES = (
    "jaxrank",
    "tensorflow",
    "jax",
    "iree-base-runtime",
    "onnxruntime",
    "openvino",
    "tf2onnx",
    "grpcio",
    "numpy",
    "rocksdict",
    "redis",
    "hiredis",
    "flax",
    "keras",
    "torch",
)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured value.

    `lo` and `hi` hold it with 95% confidence where the note says by which way (bench/timing.py); otherwise
    they are what it says, or the least and the largest of `runs`.
    """

    name: str
    value: float
    unit: str
    lo: float | None = None
    hi: float | None = None
    runs: int = 1
    note: str = ""


class NotMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that could not be taken, and why."""

    name: str
    why: str


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One suite's file. `machine` has its `GFLOPS` when it was written."""

    suite: str
    command: str
    commit: str
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    figures: list[Figure]
    not_measured: list[NotMeasured]

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, if it was measured."""
        return next((f for f in self.figures if f.name == name), None)


def same_machine(a: Results, b: Results) -> bool:
    """By the facts that both name, whatever its speed was: what is written down of a machine has grown with
    time."""
    facts = (a.machine.keys() & b.machine.keys()) - {GFLOPS}
    return all(a.machine[fact] == b.machine[fact] for fact in facts)


class ResultsError(JaxrankError):
    """A results file is missing, is not one, or says nothing."""


GFLOPS = "gflops"
"""Fact of a machine: what it computed when a file was written (`computing_speed`)."""
NO_COMMIT = "version"
"""How the commit of sources begins of which none is known."""
_ROOT = Path(__file__).resolve().parents[1]
_PLACES = ("--out", "--work")
REPORT = "report"
"""Stem of the files that `jaxrank bench report` makes of the others in their directory."""


def read_results(path: Path) -> Results:
    """One suite's file. Raises `ResultsError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise ResultsError(
            f"{path}: {error.strerror}; `jaxrank bench all --out DIR` writes results"
        ) from error
    except msgspec.DecodeError as error:
        raise ResultsError(
            f"{path} is not a results file of this version: {error}. Measure again, or read it with the "
            "version that wrote it"
        ) from error


def read_all(path: Path) -> dict[str, Results]:
    """By suite: one file, or every results file of a directory. Raises `ResultsError`, also where two files
    are of one suite."""
    files = [path]
    if path.is_dir():
        files = [p for p in sorted(path.glob("*.json")) if p.stem != REPORT]
        if not files:
            raise ResultsError(f"{path} has no results; `jaxrank bench all --out {path}` writes them")
    found: dict[str, Results] = {}
    for file in files:
        results = read_results(file)
        if results.suite in found:
            raise ResultsError(f"{path} has two files of the suite {results.suite}; keep one of them")
        found[results.suite] = results
    return found


def suite_command(suite: str, arguments: Sequence[str]) -> str:
    """The command of a suite's arguments, as a shell takes it, without where figures and models are kept:
    that is no part of how they are measured again."""
    kept, words = [], iter(arguments)
    for word in words:
        if word in _PLACES:
            next(words, None)
        elif word.partition("=")[0] not in _PLACES:
            kept.append(word)
    return shlex.join(["python", "-m", "bench", suite, *kept])


def write_results(
    path: Path,
    suite: str,
    command: str,
    figures: Sequence[Figure],
    not_measured: Sequence[NotMeasured] = (),
    of_commit: str | None = None,
) -> None:
    """Writes one suite's file in one step. `command` measures it again (`suite_command`); `of_commit` is that
    of what was measured, where it is not this checkout's."""
    document = Results(
        suite=suite,
        command=command,
        commit=of_commit or commit(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine={**machine(), GFLOPS: computing_speed()},
        versions={name: version for name in _PACKAGES if (version := _version(name))},
        figures=list(figures),
        not_measured=list(not_measured),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".tmp")
    work.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    work.rename(path)


def read_figures(path: Path) -> dict[str, Figure]:
    """The figures of a suite's file by name, each with the commit and date of its measurement in its note;
    none where there is no file."""
    if not path.is_file():
        return {}
    found = read_results(path)
    of = f"{found.suite}, {found.commit}, {found.date[:10]}"
    return {f.name: msgspec.structs.replace(f, note=f"{f.note} ({of})".strip()) for f in found.figures}


def figures_of_this_commit(path: Path, command: str) -> dict[str, Figure]:
    """The figures of a suite's file as `read_figures` gives them, where that command measured them at this
    commit on this machine; none otherwise, or where sources differ from the commit."""
    known = read_results(path) if path.is_file() else None
    here = commit()
    if known is None or known.commit != here or here.endswith("-dirty") or here.startswith(NO_COMMIT):
        return {}
    same = known.command == command and all(
        known.machine.get(fact) == value for fact, value in machine().items()
    )
    return read_figures(path) if same else {}


def machine() -> dict[str, str | int | None]:
    """What the figures were taken on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "used_cores": affinity(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def computing_speed() -> float:
    """GFLOP/s of float32 matrix products on all cores, the best of ten: it may differ between runs on
    machines of one name, or beside other work, and engines that compute depend on it more than others."""
    a, best = np.ones((1024, 1024), np.float32), math.inf
    for _ in range(10):
        start = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    return round(2 * 1024**3 / best / 1e9, 1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The state of our sources: the tag or commit, and whether files differ from it but for results and
    pages, which benches write. Where they are no checkout of ours, or there is no git, `NO_COMMIT` and the
    version: a repository around them is somebody else's."""
    try:
        if Path(_git("rev-parse", "--show-toplevel") or "/nowhere").resolve() == _ROOT:
            described = _git("describe", "--always", "--abbrev=12")
            changed = _git("status", "--porcelain", "--untracked-files=no", ":!bench/results", ":!docs")
            if described:
                return f"{described}{'-dirty' if changed else ''}"
    except OSError:  # no git here
        pass
    return f"{NO_COMMIT} {_version('jaxrank') or 'unknown'}"


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], capture_output=True, text=True, cwd=_ROOT).stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
