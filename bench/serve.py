"""A server under load, beside TensorFlow behind the same wire: `python -m bench serve`.

Requests of 200 candidates arrive as a Poisson process over gRPC (bench/serve_load.py), from a process on the
same machine, each of another user. For each model: TensorFlow's best setting of threads is found, both
servers' scores are compared with TensorFlow's, and the largest rate at which 99% of all requests are answered
within the promise is searched for both in turns. Then what a request costs beside the model, and how much is
still answered in time beyond saturation, with degradation of the models and without. Writes
`bench/results/serve.json` after every part, and a plot beside it; what `python -m bench soak`, `python -m
bench loading` and `make faults` wrote is put into it, too.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.dense import TOLERANCE, largest_error
from bench.results import NotMeasured, write_results
from bench.serve_load import Load, LoadClient, Requests, Sample, write_requests
from bench.serve_processes import Setting, clocked_server, jaxrank_server, settings, tensorflow_server
from bench.serve_search import Point, Search
from jaxrank.cli.console import results_console
from serving.cores import usable_cores

if TYPE_CHECKING:
    from bench.dense_build import Built
    from bench.dense_models import DenseModel

RESULTS, WORK = Path("bench/results/serve.json"), Path(".cache/bench")
CANDIDATES = 200
MODELS = ("din", "mmoe", "dlrm")
OVERHEAD_MODEL = "dcn_v2"
"""Its request of 200 candidates has 62 KB."""
OVERLOAD_MODEL = "mmoe"
SLO_MS = 100.0
OURS, TENSORFLOW = "jaxrank", "tensorflow"
PLAIN, DEGRADED = "without degradation", "with degradation"
_USERS = 4096
"""Of one load. What a server makes of a user is kept for 5 s: at up to 819 requests a second nobody is
found there again."""
_CANDIDATES = 64
"""Lists of candidates."""
_KEPT_SECONDS = 5.0
_SEED = 8_500
_NO_DEADLINE = 60.0

Status = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long each part takes. Times in seconds."""

    steps: int
    """Of a bisection."""
    seconds: float
    """Of one rate."""
    closed_seconds: float
    """Of one measurement with requests that wait for answers."""
    settle: float
    """At the start of a rate beyond saturation, in which a server finds its way."""
    rounds: int
    """Of the measurement of overhead."""
    multiples: tuple[float, ...]
    """Of saturation, at which goodput is taken."""
    tuned: bool
    """Whether TensorFlow's settings are tried; the first of them is taken otherwise."""


FULL = Effort(6, 5.0, 2.5, 4.0, 5, (0.7, 0.9, 1.1, 2.0, 3.0), tuned=True)
QUICK = Effort(2, 0.5, 0.25, 0.25, 2, (0.7, 2.0), tuned=False)


@dataclass
class Measured:
    """What was found out about one model."""

    name: str
    error: float = 0.0
    """Largest difference of a score from TensorFlow's."""
    request_bytes: int = 0
    setting: Setting | None = None
    closed: dict[str, float] = field(default_factory=dict)
    """Answers per second by server, with twice as many clients as cores; TensorFlow's by setting."""
    searches: dict[str, Search] = field(default_factory=dict)


@dataclass
class Overhead:
    """CPU microseconds of a request beside its programs, one value for each round."""

    model: str
    request_bytes: int
    answer_bytes: int
    rounds: list[float]
    host_us: float
    dense_us: float
    copied: float
    """Bytes that the copy budget counts."""


@dataclass
class Overload:
    """What is answered in time at multiples of saturation."""

    model: str
    saturation: float
    points: dict[str, list[Point]] = field(default_factory=dict)
    """By kind of server."""


@dataclass
class Found:
    """Everything so far."""

    slo_ms: float
    results: Path
    """Directory of the results of other suites."""
    models: list[Measured] = field(default_factory=list)
    overhead: Overhead | None = None
    overload: Overload | None = None
    missing: list[NotMeasured] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    from bench.dense_models import MODELS as ZOO
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    arguments = parse(argv)
    known = {m.name: m for m in ZOO}
    named = [*arguments.models, arguments.overhead_model, arguments.overload_model]
    if unknown := sorted(set(named) - set(known)):
        raise SystemExit(f"there is no model {', '.join(unknown)}; models are: {', '.join(known)}")
    run(arguments, known)


def run(arguments: argparse.Namespace, zoo: dict[str, "DenseModel"]) -> None:
    """Measures, writes and reports."""
    from bench.serve_report import figures, plot, table

    console = results_console()
    effort = QUICK if arguments.quick else FULL
    found = Found(arguments.slo_ms, arguments.out.parent)
    command = " ".join(["python -m bench serve", *(arguments.argv or ())])
    parts: list[tuple[str, Callable[[Status], None]]] = [
        (
            name,
            lambda status, name=name: _throughput(found, zoo[name], arguments.work, effort, client, status),
        )
        for name in arguments.models
    ]
    parts.append(
        ("overhead", lambda status: _overhead(found, zoo[arguments.overhead_model], arguments.work, effort,
                                              client, status))
    )  # fmt: skip
    parts.append(
        ("overload", lambda status: _overload(found, zoo[arguments.overload_model], arguments.work, effort,
                                              client, status))
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, LoadClient() as client:
        task = progress.add_task("", total=len(parts))
        for name, part in parts:
            try:
                part(lambda text, name=name: progress.update(task, description=f"{name}: {text}"))
            except KeyboardInterrupt:
                console.print(f"interrupted; what was measured is in {arguments.out}")
                break
            except Exception as error:  # one part less is no reason to lose the others
                found.missing.append(NotMeasured(name=name, why=f"{type(error).__name__}: {error}"[:300]))
            write_results(arguments.out, "serve", command, *figures(found))
            progress.advance(task)
    measured, missing = figures(found)
    console.print(table(found))
    for figure in (f for f in measured if "/" not in f.name):
        console.print(f"{figure.name:32} {figure.value:.4g} {figure.unit}  {figure.note}", highlight=False)
    for one in missing:
        console.print(f"not measured: {one.name}: {one.why}", highlight=False)
    plot(found, arguments.out.with_suffix(".png"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The suite's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), metavar="NAME",
        help="whose throughput is compared (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--overhead-model", default=OVERHEAD_MODEL, metavar="NAME", help="(%(default)s)")
    parser.add_argument("--overload-model", default=OVERLOAD_MODEL, metavar="NAME", help="(%(default)s)")
    parser.add_argument("--slo-ms", type=float, default=SLO_MS, help="the promise, at p99 (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="seconds of load instead of minutes")
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="models and bundles, kept for the next run (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="figures (%(default)s)")
    return parser.parse_args(argv, argparse.Namespace(argv=argv))


def _throughput(
    found: Found, model: "DenseModel", work: Path, effort: Effort, client: LoadClient, status: Status
) -> None:
    """The largest rates that keep the promise."""
    cores = usable_cores()
    built = _built(model, work, status)
    messages, first = requests(model, work)
    measured = Measured(model.name, request_bytes=len(first))

    def closed(address: str) -> float:
        load = Load(
            address=address, requests=str(messages), seconds=effort.closed_seconds, deadline=_NO_DEADLINE,
            clients=2 * cores,
        )  # fmt: skip
        return client.send(load).goodput(math.inf)

    for setting in settings(cores) if effort.tuned else ():
        status(f"TensorFlow with {setting}")
        with tensorflow_server(built.saved, setting) as server:
            closed(server.address)  # warm
            measured.closed[f"{TENSORFLOW}, {setting}"] = rate = closed(server.address)
        if rate > measured.closed.get(TENSORFLOW, 0.0):
            measured.closed[TENSORFLOW], measured.setting = rate, setting
    measured.setting = measured.setting or settings(cores)[0]
    with ExitStack() as stack:
        addresses = {
            OURS: stack.enter_context(jaxrank_server({model.name: built.bundle})).address,
            TENSORFLOW: stack.enter_context(tensorflow_server(built.saved, measured.setting)).address,
        }
        status("comparing scores")
        scores = [_scores(address, first) for address in addresses.values()]
        measured.error = largest_error(*scores)
        if not measured.error <= TOLERANCE:
            raise RuntimeError(f"{model.name}: scores differ from TensorFlow's by {measured.error:.1e}")
        for name, address in addresses.items():
            closed(address)  # warm
            if name not in measured.closed:
                measured.closed[name] = closed(address)
        found.models.append(measured)
        for name in addresses:
            measured.searches[name] = Search(1.2 * measured.closed[name], found.slo_ms)
        if (most := measured.searches[OURS].high) > _USERS / _KEPT_SECONDS:
            raise RuntimeError(
                f"{_USERS} users come twice within {_KEPT_SECONDS:g} s at {most:.0f}/s: draw more"
            )
        for step in range(effort.steps):
            for name, address in addresses.items():
                search = measured.searches[name]
                status(f"{name} at {search.next_rate():.0f} requests/s, step {step + 1} of {effort.steps}")
                search.record(
                    client.send(
                        Load(
                            address=address,
                            requests=str(messages),
                            rate=search.next_rate(),
                            seconds=effort.seconds,
                            deadline=found.slo_ms / 1e3,
                            seed=step,
                        )  # fmt: skip
                    )
                )


def _overhead(
    found: Found, model: "DenseModel", work: Path, effort: Effort, client: LoadClient, status: Status
) -> None:
    """CPU time of a request beside the host program and the dense program."""
    built = _built(model, work, status)
    messages, first = requests(model, work)
    status("CPU time of requests, one at a time")
    with clocked_server({model.name: built.bundle}) as server:
        load = Load(
            address=server.address, requests=str(messages), seconds=effort.closed_seconds,
            deadline=_NO_DEADLINE, clients=1,
        )  # fmt: skip
        client.send(load)
        spent = []
        for _ in range(effort.rounds):
            before = server.spent()
            client.send(load)
            spent.append(server.spent().since(before))
        answer = _answer(server.address, first)
    found.overhead = Overhead(
        model.name,
        len(first),
        len(answer),
        [s.overhead_us for s in spent],
        float(np.median([s.host / s.requests for s in spent])),
        float(np.median([s.dense / s.requests for s in spent])),
        float(np.median([s.copied / s.requests for s in spent])),
    )


def _overload(
    found: Found, model: "DenseModel", work: Path, effort: Effort, client: LoadClient, status: Status
) -> None:
    """Answers in time at multiples of saturation, from servers that differ in degradation only."""
    built = _built(model, work, status)
    messages, _ = requests(model, work)
    config = work / model.name / "degradation.json"
    config.write_text(json.dumps(degradation_config(model)))
    with ExitStack() as stack:
        bundles = {model.name: built.bundle}
        addresses = {
            PLAIN: stack.enter_context(jaxrank_server(bundles)).address,
            DEGRADED: stack.enter_context(
                jaxrank_server(bundles, "--degradation-config", str(config))
            ).address,
        }

        def send(address: str, **load: float) -> Sample:
            return client.send(Load(address=address, requests=str(messages), **load))  # type: ignore[arg-type]

        clients = 2 * usable_cores()
        status("finding saturation")
        rates = [
            send(addresses[PLAIN], seconds=effort.closed_seconds, deadline=_NO_DEADLINE, clients=clients)
            for _ in range(2)
        ]
        found.overload = Overload(model.name, rates[-1].goodput(math.inf))
        for multiple in effort.multiples:
            for kind, address in addresses.items():
                rate = multiple * found.overload.saturation
                status(f"{kind}, {multiple:g} of saturation")
                sample = send(
                    address, rate=rate, seconds=effort.settle + effort.seconds, settle=effort.settle,
                    deadline=found.slo_ms / 1e3, seed=int(10 * multiple),
                )  # fmt: skip
                found.overload.points.setdefault(kind, []).append(Point(rate, sample))


def degradation_config(model: "DenseModel") -> dict:
    """Half of the candidates, then a quarter, are scored exactly; the first candidate feature stands for a
    score that recall gave."""
    name, shape = next((n, s) for n, s in model.inputs.items() if s[0] is None)
    prior = {"prior": name, **({"column": 0} if len(shape) > 1 else {})}
    steps = [{"kind": "candidates", "exact": CANDIDATES // n, **prior} for n in (2, 4)]
    return {"models": {model.name: {"steps": steps}}}


def _built(model: "DenseModel", work: Path, status: Status) -> "Built":
    from bench.dense_build import build

    return build(model, work, status)


def requests(model: "DenseModel", work: Path) -> tuple[Path, bytes]:
    """A file of requests, and the first of them."""
    from serving.wire import predict_pb2 as pb
    from serving.wire.codec import encode_content

    def drawn(rows: int, seed: int, candidates: bool) -> bytes:
        request = pb.PredictRequest()
        for name, value in model.request(rows, seed).items():
            if (model.inputs[name][0] is None) == candidates:
                request.inputs[name].CopyFrom(encode_content(value))
        return request.SerializeToString()

    named = pb.PredictRequest(model_spec=pb.ModelSpec(name=model.name)).SerializeToString()
    made = Requests(
        [named + drawn(1, _SEED + seed, candidates=False) for seed in range(_USERS)],
        [drawn(CANDIDATES, _SEED + seed, candidates=True) for seed in range(_CANDIDATES)],
    )
    return write_requests(work / model.name / "requests.msgpack", made), made.message(0)


def _answer(address: str, request: bytes) -> bytes:
    import grpc

    from serving.wire.reflection import PREDICTION_SERVICE

    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")(request, timeout=_NO_DEADLINE)


def _scores(address: str, request: bytes) -> list[np.ndarray]:
    from serving.wire import predict_pb2 as pb
    from serving.wire.codec import decode

    outputs = pb.PredictResponse.FromString(_answer(address, request)).outputs
    return [decode(name, outputs[name]) for name in sorted(outputs)]
