"""The latency of a served model while another one loads: `python -m bench loading`.

A `jaxrank serve` process answers one client in a closed loop, in phases: quiet ones, and ones in which
another bundle, with the tables and the packed weights of a larger model, is loaded and unloaded without a
pause. A second server does the same and loads at normal priority. Phases of both take turns.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console

from bench.destination import add_out, destination
from bench.results import Figure, suite_command, write_results
from jaxrank import bundle as files
from jaxrank.certificate import load_examples
from serving.client import PredictClient
from serving.wire import kserve_pb2
from serving.wire.reflection import INFERENCE_SERVICE

RESULTS = Path("bench/results/loading.json")
SERVED, LOADED = "din", "dlrm"
"""Of the dense suite: requests with attention; and a module that packs its matrices when it loads."""

_SERVERS = {
    "low": "from jaxrank.cli import app; app()",
    "normal": "import serving.background as b; b.NICENESS = 0; from jaxrank.cli import app; app()",
}
"""By the priority at which they load: as it is, and as it would be without a thought."""


@dataclass(frozen=True)
class Sizes:
    rounds: int
    seconds: float
    """Of a phase."""
    table_mib: int
    """Added to the bundle that loads."""


FULL = Sizes(rounds=8, seconds=3.0, table_mib=256)
QUICK = Sizes(rounds=1, seconds=0.5, table_mib=4)


@dataclass
class Phases:
    """Latencies in milliseconds, an array for each phase, and how long the loads took."""

    quiet: list[np.ndarray] = field(default_factory=list)
    loading: list[np.ndarray] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class System:
    """A server and its client."""

    client: PredictClient
    load: Callable[[], None]
    unload: Callable[[], None]


@contextmanager
def serving(models: Path, script: str) -> Iterator[System]:
    """A server of its own process, whose model `other` is unloaded."""
    command = [sys.executable, "-c", script, "serve", str(models), "--host", "127.0.0.1", "--port", "0"]
    # A model that was loaded by hand does not come back by itself.
    command += ["--poll-seconds", "0", "--rollback-requests", "0", "--engine", "iree"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            if found := re.search(r"serving on (\S+): .*ranker", line):
                break
        if found is None:
            raise RuntimeError(f"the server did not start: {process.wait()}")
        errors = threading.Thread(target=_show_errors, args=(process.stderr,), daemon=True)
        errors.start()
        client = PredictClient(found[1])
        load = _call(client.channel, "RepositoryModelLoad", kserve_pb2.RepositoryModelLoadRequest)
        unload = _call(client.channel, "RepositoryModelUnload", kserve_pb2.RepositoryModelUnloadRequest)
        unload()
        try:
            yield System(client, load, unload)
        finally:
            client.close()
            process.terminate()
            errors.join()  # until the server has ended


def _show_errors(lines: Iterable[str]) -> None:
    for line in lines:
        if " ERROR " in line:
            sys.stderr.write(line)


def _call(channel: grpc.Channel, method: str, kind: type) -> Callable[[], None]:
    call = channel.unary_unary(
        f"/{INFERENCE_SERVICE}/{method}", kind.SerializeToString, response_deserializer=bytes
    )

    def run() -> None:
        call(kind(model_name="other"), timeout=300)

    return run


def phase(system: System, request: dict[str, np.ndarray], seconds: float, loads: list[float] | None):
    """Milliseconds of each request of a closed loop, `[requests]`. With `loads`, the other bundle loads and
    unloads meanwhile, and their seconds are added."""
    stop = threading.Event()

    def load() -> None:
        while loads is not None and not stop.is_set():
            began = time.perf_counter()
            system.load()
            loads.append(time.perf_counter() - began)
            system.unload()

    found: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        ends = time.perf_counter() + seconds
        try:
            while (began := time.perf_counter()) < ends:
                system.client.predict("ranker", request)
                found.append((time.perf_counter() - began) * 1e3)
        finally:
            stop.set()
        loading.result()
    return np.array(found)


def measure(
    models: Path, request: dict[str, np.ndarray], sizes: Sizes, console: Console
) -> dict[str, Phases]:
    """The phases of each server, in turns."""
    found = {name: Phases() for name in _SERVERS}
    with serving(models, _SERVERS["low"]) as low, serving(models, _SERVERS["normal"]) as normal:
        for system in (low, normal):
            phase(system, request, sizes.seconds, [])
        for turn in range(sizes.rounds):
            for name, system in (("low", low), ("normal", normal)):
                phases = found[name]
                phases.quiet.append(phase(system, request, sizes.seconds, None))
                phases.loading.append(phase(system, request, sizes.seconds, phases.load_seconds))
                quiet, loading = phases.quiet[-1], phases.loading[-1]
                console.print(
                    f"round {turn + 1} of {sizes.rounds}, loads at {name} priority: p99 "
                    f"{np.percentile(quiet, 99):.2f} ms quiet, {np.percentile(loading, 99):.2f} ms loading"
                )
    return found


def figures(found: dict[str, Phases], what: str) -> list[Figure]:
    """p99 of all phases of a kind together; `lo` and `hi` of the ratio are of single rounds."""
    made: list[Figure] = []
    for name, phases in found.items():
        suffix = "" if name == "low" else "_normal_priority"
        quiet, loading = (np.concatenate(kind) for kind in (phases.quiet, phases.loading))
        ratios = [
            np.percentile(a, 99) / np.percentile(b, 99)
            for a, b in zip(phases.loading, phases.quiet, strict=True)
        ]
        lo, hi = np.percentile(ratios, [5, 95])
        p99 = [float(np.percentile(kind, 99)) for kind in (quiet, loading)]
        p50 = [float(np.median(kind)) for kind in (quiet, loading)]
        made += [
            Figure(
                name=f"load_p99_ratio{suffix}",
                value=p99[1] / p99[0],
                unit="x",
                lo=float(lo),
                hi=float(hi),
                runs=len(ratios),
                note=f"{what}; p50 {p50[1] / p50[0]:.2f}x",
            ),
            Figure(name=f"p99_while_loading{suffix}", value=p99[1], unit="ms", runs=len(loading)),
            Figure(name=f"p99_quiet{suffix}", value=p99[0], unit="ms", runs=len(quiet)),
            Figure(
                name=f"load_seconds{suffix}",
                value=float(np.median(phases.load_seconds)),
                unit="s",
                runs=len(phases.load_seconds),
                note="of the other bundle, beside requests",
            ),
        ]
    return made


def with_table(bundle: Path, copy: Path, mib: int) -> None:
    """A copy of a bundle with so much more to read and verify, as a model with large tables has."""
    shutil.copytree(bundle, copy)
    rng = np.random.default_rng(0)
    with (copy / "tables" / "more").open("wb") as file:
        for _ in range(mib):
            file.write(rng.bytes(1 << 20))
    files.write_manifest(copy, files.read_manifest(copy))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench loading", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round and a small table")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where models are built")
    parser.add_argument("--served", type=Path, help=f"a bundle to serve instead of {SERVED}")
    parser.add_argument("--loaded", type=Path, help=f"a bundle to load instead of {LOADED}")
    add_out(parser, RESULTS)
    options = parser.parse_args(arguments)
    part = options.quick or options.served or options.loaded
    options.out = destination(options.out, RESULTS, part=part)
    sizes, console = QUICK if options.quick else FULL, Console()
    served, loaded = (
        given or _built(name, options.work, console)
        for given, name in ((options.served, SERVED), (options.loaded, LOADED))
    )
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        shutil.copytree(served, models / "ranker" / "1")
        (models / "other").mkdir()
        with_table(loaded, models / "other" / "1", sizes.table_mib)
        example = max((e for e in load_examples(served) if e.rows <= 200), key=lambda e: e.rows)
        found = measure(models, dict(example.features), sizes, console)
    what = f"{example.rows} candidates; {sizes.table_mib} MiB of tables load beside them"
    made = figures(found, what)
    for figure in made:
        console.print(f"{figure.name}: {figure.value:.3g} {figure.unit}")
    write_results(options.out, "loading", suite_command("loading", arguments), made)


def _built(name: str, work: Path, console: Console) -> Path:
    from bench.dense_build import build
    from bench.dense_models import MODELS

    return build(next(m for m in MODELS if m.name == name), work, console.print).bundle
