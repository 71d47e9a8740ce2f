"""The time of each dispatch of a compiled bundle, from IREE's own profiler.

The towers run in IREE's benchmark tool on feature blocks that the server's host program makes of a recorded
request, one call at a time on one stream. The server cuts a large request into slices that run side by side,
so these times say where the time goes, not how long a request takes.
"""

import importlib.util
import json
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank import bundle as files
from jaxrank.certificate import load_examples
from jaxrank.manifest import Manifest, StateTensor, Target
from jaxrank.targets import missing_instruction_sets
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.errors import CompileError

_TIMEOUT_SECONDS = 300
_MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
_ELEMENT_TYPES = {
    "bool": "i1", "int8": "i8", "uint8": "ui8", "int32": "i32", "uint32": "ui32", "int64": "i64",
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64",
}  # fmt: skip


class ProfileError(CompileError):
    """A target cannot be profiled on this machine; the message says why."""


@dataclass(frozen=True)
class DispatchTime:
    """One dispatch of one function."""

    name: str
    calls: int
    """In one run of the function."""
    microseconds: float
    """Median of one call, times `calls`."""


@dataclass(frozen=True)
class FunctionProfile:
    """One tower at one number of candidates."""

    function: str
    candidates: int
    runs: int
    wall_microseconds: float
    """Median of one whole run with the profiler on."""
    dispatches: tuple[DispatchTime, ...]
    """The longest first."""

    @property
    def microseconds(self) -> float:
        """Sum over the dispatches."""
        return sum(d.microseconds for d in self.dispatches)


def profile(
    bundle: Path, manifest: Manifest, target: Target, candidates: Sequence[int], *, runs: int
) -> list[FunctionProfile]:
    """Profiles the request tower, and the candidate tower at each number of candidates.

    The rows of the largest recorded request are repeated or cut to each number.

    Raises:
        ProfileError: the target does not run here, or IREE cannot profile it.
    """
    _check_runs_here(target)
    request, candidate = _blocks(bundle, manifest)
    found = []
    with tempfile.TemporaryDirectory(prefix="jaxrank-explain-") as directory:
        run = _Runner(bundle, manifest, target, Path(directory), runs)
        state = []
        if manifest.state:
            state = run.state(request)
            found.append(run.profile(REQUEST_TOWER, 1, [run.stored("request", request)]))
        for count in candidates:
            block = np.resize(candidate, (count, candidate.shape[1]))
            found.append(run.profile(CANDIDATE_TOWER, count, [*state, run.stored("candidate", block)]))
    return found


class _Runner:
    """IREE's command-line tools on one compiled module."""

    def __init__(self, bundle: Path, manifest: Manifest, target: Target, directory: Path, runs: int):
        self._directory = directory
        self._state = manifest.state
        self._runs = runs
        on_cpu = target.on_cpu
        # Local devices time what the host executes, others have events of their own.
        self._mode = "host-execution" if on_cpu else "dispatch-events"
        self._common = [f"--module={bundle / target.module}", f"--device={target.driver}"]
        if on_cpu:
            # As the server does (serving/engines/iree.py): without it, page faults count as the dispatches'.
            self._common.append("--device_allocator=caching")
        if files.WEIGHTS in manifest.files:
            self._common.append(f"--parameters={files.WEIGHTS_SCOPE}={bundle / files.WEIGHTS}")
        if (packed := files.packed_weights(bundle / target.module)).exists():
            self._common.append(f"--parameters={files.PACKED_SCOPE}={packed}")

    def stored(self, name: str, block: np.ndarray) -> str:
        """A feature block in a file, as a value for `--input`."""
        path = self._directory / f"{name}.npy"
        np.save(path, block)
        return f"@{path}"

    def state(self, request: np.ndarray) -> list[str]:
        """Runs the request tower; the values that cross to the candidate tower, for `--input`."""
        paths = [self._directory / f"state{i}.bin" for i in range(len(self._state))]
        outputs = [f"--output=@{path}" for path in paths]
        inputs = [f"--input={self.stored('request', request)}"]
        _run("iree-run-module", *self._common, f"--function={REQUEST_TOWER}", *inputs, *outputs)
        return [f"{_type(s)}=@{path}" for s, path in zip(self._state, paths, strict=True)]

    def profile(self, function: str, candidates: int, inputs: Sequence[str]) -> FunctionProfile:
        recorded = self._directory / "recorded.ireeprof"
        report = json.loads(
            _run(
                "iree-benchmark-module", *self._common, f"--function={function}",
                *(f"--input={value}" for value in inputs),
                "--benchmark_min_time=1x", f"--benchmark_repetitions={self._runs}",
                "--benchmark_format=json",
                f"--device_profiling_mode={self._mode}", f"--device_profiling_output={recorded}",
            )
        )  # fmt: skip
        walls = [
            row["real_time"] * _MICROSECONDS[row["time_unit"]]
            for row in report["benchmarks"]
            if row["run_type"] == "iteration"
        ]
        events = _run("iree-profile", "dispatch", "--dispatch_events", "--format=jsonl", str(recorded))
        durations: dict[str, list[int]] = defaultdict(list)
        for event in _events(events):
            durations[event["key"]].append(event["duration_ns"])
        if not durations:
            raise ProfileError(f"IREE's profiler saw no dispatch of @{function}")
        calls = {name: max(round(len(d) / len(walls)), 1) for name, d in durations.items()}
        times = [
            DispatchTime(name, calls[name], statistics.median(d) * calls[name] / 1e3)
            for name, d in durations.items()
        ]
        times.sort(key=lambda t: t.microseconds, reverse=True)
        return FunctionProfile(function, candidates, len(walls), statistics.median(walls), tuple(times))


def _events(lines: str) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        row = json.loads(line)
        if row["type"] in ("host_dispatch_event", "dispatch_event") and row["valid"]:
            if row.get("duration_ns") is None:
                raise ProfileError("the device's clock could not be fitted to nanoseconds")
            yield row


def _blocks(bundle: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """`[1, R]` and `[N, C]` of the recorded request with the most candidates."""
    from serving.host import HostProgramRunner

    host = HostProgramRunner(bundle, manifest)
    found = [host.run(example.features) for example in load_examples(bundle)]
    largest = max(found, key=lambda blocks: len(blocks.candidate))
    return largest.request, largest.candidate


def _check_runs_here(target: Target) -> None:
    if target.engine != "iree":
        raise ProfileError(
            f"the target {target.name} runs on the engine {target.engine!r}, which IREE's profiler cannot see"
        )
    missing = missing_instruction_sets(target)
    if missing:
        raise ProfileError(
            f"the target {target.name} was compiled for a CPU with {', '.join(sorted(missing))}, which this "
            "one does not have"
        )


def _type(tensor: StateTensor) -> str:
    if tensor.dtype not in _ELEMENT_TYPES:
        raise ProfileError(f"the state has a {tensor.dtype} tensor, which IREE's tools cannot be given")
    return "x".join([*map(str, tensor.shape), _ELEMENT_TYPES[tensor.dtype]])


def _run(tool: str, *arguments: str) -> str:
    """Runs one of the tools of IREE's runtime. Returns its standard output; raises `ProfileError`."""
    command = [str(_tool(tool)), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ProfileError(f"{tool} did not end within {_TIMEOUT_SECONDS} s; ask for fewer --runs") from error
    if done.returncode != 0:
        raise ProfileError(f"{tool} failed here: {_reason(done.stderr)}")
    return done.stdout


def _reason(diagnostics: str) -> str:
    """The first line that tells what was wrong, without the tool's source file."""
    lines = [line for line in diagnostics.splitlines() if ": " in line] or ["no message"]
    return lines[0].split("; ", 1)[-1] if ".c:" in lines[0] else lines[0]


def _tool(name: str) -> Path:
    # The wheel keeps the programs in this package; the scripts on PATH only start them.
    package = importlib.util.find_spec("iree._runtime_libs")
    for directory in (package.submodule_search_locations or ()) if package is not None else ():
        if (Path(directory) / name).is_file():
            return Path(directory) / name
    raise ProfileError(
        f"{name} is not in this installation of iree-base-runtime; the wheels of that package have it"
    )
