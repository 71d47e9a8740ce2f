"""Our server under load on the machine that a kit of `pack_serve.py` was carried to.

    pip install --no-index --find-links kit_serve jaxrank
    python -m bench.gpu.serve --kit kit_serve --out gpu/serve.json

Needs what a server of ours needs, and neither TensorFlow nor the compiler. The server is a process with the
kit's bundle on its target, which keeps nothing of a user; its scores are TensorFlow's before it is measured.
As in the suite `serve`, requests arrive open-loop from a process on the same machine: the largest rate that
keeps the promise is searched for, then it is sent more than it can answer. Figures have the suite's names,
and are written after every part; a part that has no time left, or fails, is listed with the reason.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.dense import TOLERANCE, largest_error
from bench.gpu.run import device_name
from bench.results import Figure, NotMeasured, ResultsError, write_results
from bench.serve_found import FULL, OURS, PLAIN, QUICK, TENSORFLOW, Effort, Measured, Overload
from bench.serve_load import Load, LoadClient, Requests, Sample
from bench.serve_processes import jaxrank_server
from bench.serve_report import of_model, of_overload
from bench.serve_requests import scores
from bench.serve_search import HEADROOM, Search
from bench.workloads import poisson
from serving.cores import usable_cores

KIT, REQUESTS, SCORES = "kit.json", "requests.msgpack", "scores.npz"
MULTIPLES = (0.9, 1.1, 2.0)
"""Of saturation, at which goodput is taken."""
_CLOSED_DEADLINE = 20.0


class Packed(msgspec.Struct, frozen=True):
    """One model of a kit."""

    name: str
    slo_ms: float
    request_bytes: int
    engine: str
    driver: str
    """IREE's, of the target."""


class Kit(msgspec.Struct, frozen=True):
    """kit.json."""

    target: str
    commit: str
    models: list[Packed]


@dataclass(frozen=True)
class Run:
    """One model's server and its client, with the time that there is for them."""

    directory: Path
    slo_ms: float
    effort: Effort
    client: LoadClient
    address: str
    ends: float
    """Of the monotonic clock."""

    def time_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.ends

    def closed(self) -> Sample:
        """Twice as many clients as cores, each waiting for its answers."""
        clients, seconds = 2 * usable_cores(), self.effort.closed_seconds
        return self.client.send(self._load(clients=clients, seconds=seconds, deadline=_CLOSED_DEADLINE))

    def arriving(self, rate: float, seed: int, settle: float = 0.0) -> Sample:
        """A Poisson process."""
        seconds = settle + self.effort.seconds
        times, deadline = poisson(rate, seconds, seed), self.slo_ms / 1e3
        return self.client.send(self._load(times=times, seconds=seconds, settle=settle, deadline=deadline))

    def _load(self, **how: Any) -> Load:
        return Load(address=self.address, requests=str(self.directory / REQUESTS), **how)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 1 where a model was not served with TensorFlow's scores."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.serve", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("gpu/serve.json"), metavar="FILE")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="no load is begun that would end later (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="seconds of load instead of minutes")
    parser.add_argument("--slo-ms", type=float, help="the promise, at p99 (that of the models)")
    arguments = parser.parse_args(argv)
    try:
        kit = msgspec.json.decode((arguments.kit / KIT).read_bytes(), type=Kit)
    except (OSError, msgspec.DecodeError) as error:
        raise SystemExit(f"error: {arguments.kit} is no kit of bench.gpu.pack_serve: {error}") from error
    effort = QUICK if arguments.quick else FULL
    slo_ms = arguments.slo_ms or min(model.slo_ms for model in kit.models)
    figures = [Figure(name="slo_ms", value=slo_ms, unit="ms", note="the promise, at the 99th percentile")]
    missing: list[NotMeasured] = []
    ends = time.monotonic() + arguments.seconds
    # The kit's path belongs to one machine, not to the figures.
    command = f"python -m bench.gpu.serve --seconds {arguments.seconds:g}"
    command += " --quick" if arguments.quick else ""
    command += f" --slo-ms {arguments.slo_ms:g}" if arguments.slo_ms else ""
    refused = False
    for number, model in enumerate(kit.models):
        share = (ends - time.monotonic()) / (len(kit.models) - number)
        until = time.monotonic() + share
        try:
            made, left_out = measure(arguments.kit, kit, model, slo_ms, effort, until)
        except Exception as error:  # one model less is no reason to lose the others
            refused = True
            why = " ".join(str(error).split())[-300:]
            made, left_out = [], [NotMeasured(name=model.name, why=f"{type(error).__name__}: {why}")]
        for figure in made:
            print(f"{figure.name:44} {figure.value:12.4g} {figure.unit}  {figure.note}", flush=True)
        figures, missing = [*figures, *made], [*missing, *left_out]
        write_results(arguments.out, "serve", command, figures, missing, of_commit=kit.commit)
    for one in missing:
        print(f"not measured: {one.name}: {one.why}")
    raise SystemExit(1 if refused else 0)


def measure(
    kit: Path, packed: Kit, model: Packed, slo_ms: float, effort: Effort, ends: float
) -> tuple[list[Figure], list[NotMeasured]]:
    """One model's figures, and what was left out; beyond saturation only the kit's first model is asked.

    Raises `RuntimeError`: the server does not start. `ResultsError`: its scores are not TensorFlow's, or it
    does not answer. `grpc.RpcError`: the first request fails.
    """
    directory = kit / model.name
    options = ("--target", packed.target, "--state-cache-mb", "0")
    why = "the kit has no TensorFlow; `jaxrank bench serve` measures it beside our server"
    missing = [NotMeasured(name=f"{model.name}/throughput/{TENSORFLOW}", why=why)]
    late = "the time of --seconds was over"
    with LoadClient() as client, jaxrank_server({model.name: directory / "bundle"}, *options) as server:
        run = Run(directory, slo_ms, effort, client, server.address, ends)
        engine = f"{model.engine} on {packed.target}, {device_name(model.driver)}"
        measured = Measured(model.name, engine, _error(run), model.request_bytes)
        run.closed()  # warm
        saturation = run.closed().goodput(math.inf)
        measured.closed[OURS] = [saturation]
        if not saturation:
            raise ResultsError("the server answered no request of a closed loop")
        search = Search(HEADROOM * saturation, slo_ms)
        measured.searches[OURS] = {0: search}
        for step in range(effort.steps):
            if not run.time_for(effort.seconds):
                why = f"{late} after {step} of {effort.steps} rates"
                missing.append(NotMeasured(name=f"{model.name}/p99/{OURS}", why=why))
                break
            search.record(run.arriving(search.next_rate(), step))
        samples: dict[float, Sample] = {}
        for multiple in MULTIPLES if model == packed.models[0] else ():
            if run.time_for(effort.settle + effort.seconds):
                samples[multiple] = run.arriving(multiple * saturation, int(10 * multiple), effort.settle)
            else:
                missing.append(NotMeasured(name=f"{model.name}/goodput/plain/{multiple:g}", why=late))
    overload = Overload(model.name, engine, [{PLAIN: samples}])
    return [*of_model(measured), *(of_overload(overload, slo_ms) if samples else ())], missing


def _error(run: Run) -> float:
    """The largest difference of a score from TensorFlow's, of the first request. Raises `ResultsError` where
    it is too large."""
    requests = msgspec.msgpack.decode((run.directory / REQUESTS).read_bytes(), type=Requests)
    with np.load(run.directory / SCORES) as held:
        wanted = dict(held)
    found = scores(run.address, requests.message(0))
    error = largest_error([found.get(name, np.zeros(0)) for name in wanted], list(wanted.values()))
    if not error <= TOLERANCE:
        raise ResultsError(
            f"refused: scores differ from TensorFlow's by {error:.1e}, more than {TOLERANCE:.0e}"
        )
    return error


if __name__ == "__main__":
    main()
