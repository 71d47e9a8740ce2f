"""`python -m bench host`: the host half of a 100-feature request natively, on NumPy and in TensorFlow, and
what a request costs the allocator (`bench/host_workload.py` says what the request is).

Tables are in huge pages (`jaxrank serve --table-memory huge`); "mapped" is the same with mapped files. Times
are taken in several fresh processes."""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from bench import host_workload
from bench.allocations import counter
from bench.allocations.measure import beside_glibc
from bench.allocations.subject import Report, report
from bench.destination import add_out, destination
from bench.processes import Status, fresh
from bench.results import Figure, NotMeasured, suite_command, write_results
from bench.timing import Timing, interleaved, mean_ratio
from converters.tensorflow_logs import import_quietly
from serving.allocator import find_jemalloc
from serving.host import HostProgramRunner

RESULTS = Path("bench/results/host.json")
_REQUESTS = 16
"""Different requests, in turn: one alone would have all of its rows in the caches."""


@dataclass(frozen=True)
class Sizes:
    """`rounds` are turns of each path in each of `processes`, `warm` the requests before those whose faults
    are `counted`, and `largest` the rows of the largest table."""

    candidates: int = 500
    processes: int = 5
    rounds: int = 10
    warm: int = 3000
    counted: int = 2000
    largest: int = host_workload.LARGEST


_SERVED = (
    ("allocations_per_request", "allocations/request"),
    ("page_faults_per_1000_requests", "faults/1000 requests"),
)
"""Figures of the allocator that the server takes, and their units."""
FULL = Sizes()
QUICK = Sizes(processes=3, rounds=2, warm=40, counted=20, largest=2000)


def measure(
    sizes: Sizes, *, beside: bool = True, say: Status = lambda text: None
) -> tuple[list[Figure], list[NotMeasured]]:
    """All figures of the suite; without `beside` under the allocator that the server takes alone."""
    with TemporaryDirectory() as work:
        host_workload.write_bundle(Path(work), sizes.largest)
        figures = _times([fresh(_time, Path(work), sizes, status=say) for _ in range(sizes.processes)], sizes)
        costs, not_measured = _costs(Path(work), sizes, beside)
    return [*figures, *costs], not_measured


def main(arguments: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench host", description=__doc__)
    add_out(parser, RESULTS)
    for name, what in (
        ("candidates", "of a request"),
        ("processes", "in which each path is timed"),
        ("rounds", "turns of each path in each of them"),
        ("warm", "requests before faults are counted"),
        ("counted", "requests whose faults are counted"),
        ("largest", "rows of the largest table"),
    ):
        parser.add_argument(f"--{name}", type=_positive, default=getattr(FULL, name), help=what)
    parser.add_argument("--quick", action="store_true", help="small tables, few requests: does it still run?")
    parser.add_argument("--subject", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = Sizes(**{name: getattr(options, name) for name in asdict(FULL)})
    if options.subject:
        _answer(options.subject, sizes)
        return
    out = destination(options.out, RESULTS, part=options.quick or sizes != FULL)
    figures, not_measured = measure(QUICK if options.quick else sizes, say=partial(print, flush=True))
    write_results(out, "host", suite_command("host", arguments), figures, not_measured)
    for figure in figures:
        print(f"{figure.name:45} {figure.value:12.4g} {figure.unit}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _time(say: Status, bundle: Path, sizes: Sizes) -> dict[str, Timing]:
    """Every path's in one process."""
    import_quietly()
    manifest = host_workload.manifest(sizes.largest)
    native = HostProgramRunner(bundle, manifest, memory="huge")
    mapped = HostProgramRunner(bundle, manifest)
    assert not native.not_native, native.not_native
    numpy = HostProgramRunner(bundle, manifest, native=False)
    tensorflow = host_workload.tensorflow_graph(bundle, sizes.largest)
    requests = [host_workload.request(sizes.candidates, seed, sizes.largest) for seed in range(_REQUESTS)]
    _check(native, numpy, tensorflow, requests[0])
    turn = {name: itertools.cycle(requests) for name in ("native", "mapped", "numpy", "tensorflow")}
    found = interleaved(
        {
            "native": lambda: native.run(next(turn["native"])),
            "mapped": lambda: mapped.run(next(turn["mapped"])),
            "numpy": lambda: numpy.run(next(turn["numpy"])),
            "tensorflow": lambda: tensorflow(next(turn["tensorflow"])),
        },
        rounds=sizes.rounds,
        per_round=5,
        warm=2,
    )
    say(", ".join(f"{name} {t.median:.2f} ms" for name, t in found.items()))
    return found


def _times(found: Sequence[dict[str, Timing]], sizes: Sizes) -> list[Figure]:
    """Of what each process found."""
    times = {name: Timing.joined([one[name] for one in found]) for name in found[0]}
    shape = f"100x{sizes.candidates}"
    ours = times["native"]
    return [
        ours.estimate.figure(f"host_program_ms_{shape}", "ms", ours.runs),
        *(t.estimate.figure(f"{name}_ms_{shape}", "ms", t.runs) for name, t in times.items()),
        mean_ratio([(times["numpy"], ours)]).figure("speedup_vs_numpy", "x", ours.runs),
        mean_ratio([(times["tensorflow"], ours)]).figure("speedup_vs_tf", "x", ours.runs),
    ]


def _check(native: HostProgramRunner, numpy: HostProgramRunner, tensorflow, request) -> None:
    """All three give the same blocks: means may round differently."""
    found, expected = native.run(request), numpy.run(request)
    for ours, theirs, tf in zip(
        (found.request, found.candidate),
        (expected.request, expected.candidate),
        tensorflow(request),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours, tf.numpy(), rtol=1e-5, atol=1e-6)


class Cost(msgspec.Struct):
    """What one process counted for the native executor."""

    before: Report
    after: Report
    shared_runs: int


def _answer(bundle: Path, sizes: Sizes) -> None:
    """The process under test: runs requests, and says what it counted before and after the last of them."""
    native = HostProgramRunner(bundle, host_workload.manifest(sizes.largest), memory="huge")
    drawn = [host_workload.request(sizes.candidates, seed, sizes.largest) for seed in range(_REQUESTS)]
    requests = itertools.cycle(drawn)
    for request in itertools.islice(requests, sizes.warm):
        native.run(request)
    before = report()
    for request in itertools.islice(requests, sizes.counted):
        native.run(request)
    after = report()
    sys.stdout.buffer.write(msgspec.json.encode(Cost(before, after, native.shared_runs)))


def no_compiler(error: Exception) -> str:
    """Why something that is built for a measurement is not there."""
    return f"no C++ compiler that builds it: {error}; install one, or name it in CXX"


def _costs(bundle: Path, sizes: Sizes, beside: bool) -> tuple[list[Figure], list[NotMeasured]]:
    def without(why: str) -> tuple[list[Figure], list[NotMeasured]]:
        return [], [NotMeasured(name=name, why=why) for name, _ in _SERVED]

    jemalloc = find_jemalloc()
    if jemalloc is None:
        return without("no libjemalloc was found")
    figures = []
    with TemporaryDirectory() as work:
        try:
            library = counter.build(Path(work))
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            return without(no_compiler(error))
        allocators = beside_glibc(jemalloc)
        for allocator in allocators if beside else [a for a in allocators if a.name == "jemalloc"]:
            preload = ":".join(str(x) for x in (library, allocator.library) if x)
            command = [sys.executable, "-m", "bench", "host", "--subject", str(bundle)]
            for name in ("candidates", "warm", "counted", "largest"):
                command += [f"--{name}", str(getattr(sizes, name))]
            environment = {**os.environ, "LD_PRELOAD": preload, "MALLOC_CONF": allocator.options}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            cost = msgspec.json.decode(done.stdout, type=Cost)
            allocations = cost.after.counted_allocations - cost.before.counted_allocations
            faults = cost.after.memory.minor_faults - cost.before.memory.minor_faults
            figures += [
                Figure(
                    name=f"{allocator.name}_allocations_per_request",
                    value=allocations / sizes.counted,
                    unit="allocations/request",
                ),
                Figure(
                    name=f"{allocator.name}_page_faults_per_1000_requests",
                    value=1000 * faults / sizes.counted,
                    unit="faults/1000 requests",
                ),
            ]
    by_name = {f.name: f.value for f in figures}
    served = [Figure(name=name, value=by_name[f"jemalloc_{name}"], unit=unit) for name, unit in _SERVED]
    return [*served, *figures], []
