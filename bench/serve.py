"""A server under load, beside TensorFlow behind the same wire: `python -m bench serve`.

Requests of 200 candidates arrive over gRPC (bench/serve_load.py) as a Poisson process or another one
(bench/workloads.py), from a process on the same machine, each of another user. For each model: TensorFlow's
best setting of threads is found, both servers' scores are compared with TensorFlow's, and the largest rate at
which 99% of all requests are answered within the promise is searched for both in turns. Then what a request
costs beside the model, and how much is still answered in time beyond saturation, with degradation of the
models and without. Each is measured in several rounds, with new server processes in each. Writes
`bench/results/serve.json` after every part; what `python -m bench soak`, `python -m bench loading` and `make
faults` wrote is put into it, too.

With a bundle or a SavedModel of your own (bench/user_models.py), that model is measured instead, without
request state: its certificate has few users. A real TensorFlow Serving can be measured beside it, and
recorded traffic sent as it came.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import msgspec
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.dense import TOLERANCE, add_model_arguments, largest_error
from bench.dense_build import Built, build
from bench.results import NotMeasured, suite_command, write_results
from bench.serve_load import Load, LoadClient, Sample
from bench.serve_overhead import Spent
from bench.serve_processes import Setting, clocked_server, jaxrank_server, settings, tensorflow_server
from bench.serve_requests import (
    KEPT_SECONDS,
    USERS,
    answer,
    degradation_config,
    first_scores,
    replayed,
    requests,
    scores,
)
from bench.serve_search import Search
from bench.timing import pinned
from bench.user_models import UserModel, open_model
from bench.workloads import ARRIVALS, read_traffic
from jaxrank.cli.console import results_console
from jaxrank.errors import JaxrankError
from jaxrank.targets import choose_target
from serving.cores import usable_cores

if TYPE_CHECKING:
    from bench.dense_models import DenseModel

RESULTS, WORK = Path("bench/results/serve.json"), Path(".cache/bench")
MODELS = ("din", "mmoe", "dlrm")
OVERHEAD_MODEL = "dcn_v2"
"""Its request of 200 candidates has 62 KB."""
OVERLOAD_MODEL = "mmoe"
OURS, TENSORFLOW, TFS = "jaxrank", "tensorflow", "tensorflow_serving"
PLAIN, DEGRADED = "without degradation", "with degradation"
_NO_DEADLINE = 60.0

PARTS = ("throughput", "overhead", "overload")
Status = Callable[[str], None]
Model = Union["DenseModel", UserModel]


@dataclass(frozen=True)
class Effort:
    """How long each part takes. Times in seconds."""

    rounds: int
    """Of each part, with new server processes in each."""
    steps: int
    """Of a bisection."""
    seconds: float
    """Of one rate."""
    closed_seconds: float
    """Of one measurement with requests that wait for answers."""
    settle: float
    """At the start of a rate beyond saturation, in which a server finds its way."""
    multiples: tuple[float, ...]
    """Of saturation, at which goodput is taken."""
    tuned: bool
    """Whether TensorFlow's settings are tried; the first of them is taken otherwise."""


FULL = Effort(3, 5, 2.5, 1.5, 4.0, (0.9, 1.1, 2.0, 3.0), tuned=True)
OWN = Effort(3, 4, 2.0, 1.0, 3.0, (0.9, 2.0), tuned=True)
"""Within 5 minutes on two cores."""
QUICK = Effort(3, 2, 0.5, 0.25, 0.25, (0.7, 2.0), tuned=False)
_HEADROOM = 1.2, 0.05
"""A search ends at so many times the closed loop's rate, and so much more in each round after the first: no
two rounds try the same rates."""


@dataclass
class Measured:
    """What was found out about one model."""

    name: str
    engine: str
    """That was the fastest here when the model was compiled."""
    error: float = 0.0
    """Largest difference of a score from TensorFlow's."""
    request_bytes: int = 0
    setting: Setting | None = None
    closed: dict[str, float] = field(default_factory=dict)
    """Answers per second by server, with twice as many clients as cores; TensorFlow's by setting."""
    searches: dict[str, list[Search]] = field(default_factory=dict)
    """By server, one of each round."""
    replayed: dict[str, Sample] = field(default_factory=dict)
    """Recorded traffic with its own timing, by server."""


@dataclass
class Overhead:
    """What a request costs beside its programs."""

    model: str
    request_bytes: int
    answer_bytes: int
    rounds: list[Spent]
    """Of the requests of each."""


@dataclass
class Overload:
    """What is answered in time at multiples of saturation."""

    model: str
    engine: str
    rounds: list[dict[str, dict[float, Sample]]] = field(default_factory=list)
    """By kind of server and multiple, one of each round."""


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
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    arguments = parse(argv)
    try:
        with pinned(arguments.cores):
            run(arguments, _zoo(arguments))
    except JaxrankError as error:
        raise SystemExit(f"error: {error}") from error


def _zoo(arguments: argparse.Namespace) -> dict[str, Model]:
    """Models by name: one's own, or ours."""
    if arguments.model is not None:
        own = open_model(arguments.model, arguments.work, print, arguments.saved_model, arguments.name)
        arguments.models = [own.name]
        arguments.overhead_model = arguments.overload_model = own.name
        return {own.name: own}
    from bench.dense_models import MODELS as ZOO
    from bench.profiles import PROFILES

    known = {m.name: m for m in (*ZOO, *(p.model() for p in PROFILES))}
    named = [*arguments.models, arguments.overhead_model, arguments.overload_model]
    if unknown := sorted(set(named) - set(known)):
        raise SystemExit(f"there is no model {', '.join(unknown)}; models are: {', '.join(known)}")
    return {name: known[name] for name in named}


def run(arguments: argparse.Namespace, zoo: Mapping[str, Model]) -> None:
    """Measures, writes and reports. Raises `WorkloadError` for recorded traffic that cannot be sent."""
    from bench.serve_report import figures, table

    console = results_console()
    effort = QUICK if arguments.quick else FULL if arguments.model is None else OWN
    slo_ms = arguments.slo_ms or min(zoo[name].slo_ms for name in arguments.models or zoo)
    arguments.traffic = None
    if arguments.replay is not None:
        arguments.traffic = read_traffic(arguments.replay)
        arguments.traffic.timed()
    found = Found(slo_ms, arguments.out.parent)
    command = suite_command("serve", arguments.argv or ())
    parts: list[tuple[str, Callable[[Status], None]]] = [
        (name, lambda status, name=name: _throughput(found, zoo[name], arguments, effort, client, status))
        for name in (arguments.models if "throughput" in arguments.parts else ())
    ]
    parts.append(
        ("overhead", lambda status: _overhead(found, zoo[arguments.overhead_model], arguments.work, effort,
                                              client, status))
    )  # fmt: skip
    parts.append(
        ("overload", lambda status: _overload(found, zoo[arguments.overload_model], arguments, effort, client,
                                              status))
    )  # fmt: skip
    parts = [(name, part) for name, part in parts if name in arguments.parts or name in arguments.models]
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
    console.print(f"figures are in {arguments.out}; `jaxrank bench report` draws them", highlight=False)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The suite's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m bench serve                                          everything\n"
        "  python -m bench serve --models article                         40 GFLOP a request, 300 ms\n"
        "  python -m bench serve models/ranker/1 --out mine/serve.json    your model, in 5 minutes\n"
        "  python -m bench serve models/ranker/1 --tfs-address tfs:8500 --replay recorded.tfrecord",
    )
    add_model_arguments(parser)
    parser.add_argument("--name", help="of MODEL in requests and figures (its directory's)")
    parser.add_argument(
        "--models", nargs="*", metavar="NAME",
        help=f"whose throughput is compared ({', '.join(MODELS)}; with --quick {MODELS[0]}): those of the "
        "suite dense, and bench/profiles.py's",
    )  # fmt: skip
    parser.add_argument("--overhead-model", default=OVERHEAD_MODEL, metavar="NAME", help="(%(default)s)")
    parser.add_argument("--overload-model", default=OVERLOAD_MODEL, metavar="NAME", help="(%(default)s)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help="throughput, overhead, overload (all)",
    )  # fmt: skip
    parser.add_argument("--slo-ms", type=_positive, help="the promise, at p99 (that of the models: 100)")
    parser.add_argument(
        "--arrivals", choices=list(ARRIVALS), default="poisson",
        help="how requests come (%(default)s; bench/workloads.py)",
    )  # fmt: skip
    parser.add_argument(
        "--replay", type=Path, metavar="FILE",
        help="recorded requests to MODEL (jaxrank serve --record, or a TFRecord file of PredictionLog), sent "
        "with their own timing, too",
    )  # fmt: skip
    parser.add_argument(
        "--replay-seconds", type=_positive, default=60.0, metavar="S", help="from its start (%(default)s)"
    )
    parser.add_argument(
        "--tfs-address", metavar="HOST:PORT",
        help="a TensorFlow Serving, or another server of its protocol, that has the model by that name",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="seconds of load instead of minutes")
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="models and bundles, kept for the next run (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"figures ({RESULTS}; of a part of it serve.json)"
    )
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    if arguments.replay is not None and arguments.model is None:
        parser.error("--replay needs the MODEL that the requests are to")
    # What is not the whole suite does not take the place of its results.
    part = arguments.model or arguments.models is not None or arguments.quick
    part = part or arguments.parts != list(PARTS)
    arguments.out = arguments.out or (Path(RESULTS.name) if part else RESULTS)
    if arguments.models is None:
        arguments.models = list(MODELS[:1] if arguments.quick else MODELS)
    return arguments


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _throughput(
    found: Found,
    model: Model,
    arguments: argparse.Namespace,
    effort: Effort,
    client: LoadClient,
    status: Status,
) -> None:
    """The largest rates that keep the promise, and recorded traffic as it came."""
    built = build(model, arguments.work, status)
    messages, first = requests(model, arguments.work)
    engine = choose_target(built.bundle, built.manifest, "cpu").engine
    measured = Measured(model.name, engine, request_bytes=len(first))

    def closed(address: str) -> float:
        load = Load(
            address=address, requests=str(messages), seconds=effort.closed_seconds, deadline=_NO_DEADLINE,
            clients=2 * usable_cores(),
        )  # fmt: skip
        return client.send(load).goodput(math.inf)

    try:
        measured.setting = _tuned(measured, built, effort, closed, status)
    except (JaxrankError, RuntimeError) as error:
        found.missing.append(_not_served(model, TENSORFLOW, error))
    found.models.append(measured)
    for round in range(effort.rounds):
        with ExitStack() as stack:
            of = f"round {round + 1} of {effort.rounds}"
            status(f"{of}: starting servers")
            ours = jaxrank_server({model.name: built.bundle}, *_options(model))
            addresses = {OURS: stack.enter_context(ours).address}
            if measured.setting is not None:
                theirs = tensorflow_server(built.saved, measured.setting, built.manifest.signature.name)
                try:
                    addresses[TENSORFLOW] = stack.enter_context(theirs).address
                except RuntimeError as error:
                    found.missing.append(_not_served(model, TENSORFLOW, error))
            if arguments.tfs_address is not None:
                addresses[TFS] = arguments.tfs_address
            _compare(found, measured, model, built, addresses, first)
            for name, address in addresses.items():
                closed(address)  # warm
                if name not in measured.closed:
                    measured.closed[name] = closed(address)
                high = (_HEADROOM[0] + round * _HEADROOM[1]) * measured.closed[name]
                measured.searches.setdefault(name, []).append(Search(high, found.slo_ms))
            most = measured.searches[OURS][-1].high
            if not isinstance(model, UserModel) and most > USERS / KEPT_SECONDS:
                raise RuntimeError(
                    f"{USERS} users come twice within {KEPT_SECONDS:g} s at {most:.0f}/s: draw more"
                )
            for step in range(effort.steps):
                for name, address in addresses.items():
                    search = measured.searches[name][-1]
                    rate, seed = search.next_rate(), round * effort.steps + step
                    status(f"{of}, step {step + 1} of {effort.steps}: {name} at {rate:.0f} requests/s")
                    load = Load(
                        address=address, requests=str(messages), seconds=effort.seconds,
                        times=ARRIVALS[arguments.arrivals](rate, effort.seconds, seed),
                        deadline=found.slo_ms / 1e3,
                    )  # fmt: skip
                    search.record(client.send(load))
            if arguments.traffic is not None and isinstance(model, UserModel) and round == 0:
                times = [t for t in arguments.traffic.timed() if t < arguments.replay_seconds]
                recorded = replayed(arguments.traffic, model, arguments.work)
                for name, address in addresses.items():
                    status(f"{name}: {len(times)} recorded requests")
                    load = Load(
                        address=address, requests=str(recorded), times=times, seconds=max(times[-1], 1.0),
                        deadline=found.slo_ms / 1e3, from_first=True,
                    )  # fmt: skip
                    measured.replayed[name] = client.send(load)


def _options(model: Model) -> tuple[str, ...]:
    """A user's own model has few users: what is kept of them would be found in every request."""
    return ("--state-cache-mb", "0") if isinstance(model, UserModel) else ()


def _tuned(
    measured: Measured, built: Built, effort: Effort, closed: Callable[[str], float], status: Status
) -> Setting:
    """TensorFlow's fastest setting. Raises `UserModelError` without its model, `RuntimeError` where it does
    not serve it."""
    tried, saved = settings(usable_cores()), built.saved
    best = tried[0]
    for setting in tried if effort.tuned else ():
        status(f"TensorFlow with {setting}")
        with tensorflow_server(saved, setting, built.manifest.signature.name) as server:
            closed(server.address)  # warm
            measured.closed[f"{TENSORFLOW}, {setting}"] = rate = closed(server.address)
        if rate > measured.closed.get(TENSORFLOW, 0.0):
            measured.closed[TENSORFLOW], best = rate, setting
    return best


def _compare(
    found: Found, measured: Measured, model: Model, built: Built, addresses: dict[str, str], first: bytes
) -> None:
    """Takes servers out whose scores are not TensorFlow's, and says so. Raises `RuntimeError` where ours are
    not, or nobody knows TensorFlow's."""
    answered: dict[str, dict[str, np.ndarray]] = {}
    for name in list(addresses):
        try:
            answered[name] = scores(addresses[name], first)
        except grpc.RpcError as error:
            found.missing.append(_not_served(model, name, error))
            measured.closed.pop(name, None)
            del addresses[name]
    ours = answered.pop(OURS, None)
    known = answered.get(TENSORFLOW) or first_scores(model) or answered.get(TFS)
    if ours is None or not known:
        raise RuntimeError(
            "our server did not answer" if ours is None else "TensorFlow's scores are not known"
        )
    tolerance = max(TOLERANCE, built.manifest.certificate.tolerance)
    wanted = [known.get(name, np.zeros(0)) for name in ours]
    measured.error = largest_error(list(ours.values()), wanted)
    if not measured.error <= tolerance:
        raise RuntimeError(f"{model.name}: scores differ from TensorFlow's by {measured.error:.1e}")
    if TFS in answered:
        error = largest_error([answered[TFS].get(name, np.zeros(0)) for name in ours], wanted)
        if not error <= tolerance:
            why = f"refused: the scores of {addresses.pop(TFS)} differ from the model's by {error:.1e}"
            found.missing.append(NotMeasured(name=f"{model.name}/throughput/{TFS}", why=why))


def _not_served(model: Model, server: str, error: Exception) -> NotMeasured:
    if isinstance(error, grpc.RpcError):
        why = f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    else:
        why = " ".join(str(error).split())
    return NotMeasured(name=f"{model.name}/throughput/{server}", why=why[:300])


def _overhead(
    found: Found, model: Model, work: Path, effort: Effort, client: LoadClient, status: Status
) -> None:
    """CPU time of a request beside the host program and the dense program."""
    built = build(model, work, status)
    messages, first = requests(model, work)
    load = Load(
        address="", requests=str(messages), seconds=effort.closed_seconds, deadline=_NO_DEADLINE, clients=1
    )
    for round in range(effort.rounds):
        status(f"round {round + 1} of {effort.rounds}: CPU time of requests, one at a time")
        with clocked_server({model.name: built.bundle}) as server:
            load = msgspec.structs.replace(load, address=server.address)
            client.send(load)
            before = server.spent()
            client.send(load)
            spent = server.spent().since(before)
            if found.overhead is None:
                answered = answer(server.address, first)
                found.overhead = Overhead(model.name, len(first), len(answered), [])
            found.overhead.rounds.append(spent)


def _overload(
    found: Found,
    model: Model,
    arguments: argparse.Namespace,
    effort: Effort,
    client: LoadClient,
    status: Status,
) -> None:
    """Answers in time at multiples of saturation, from servers that differ in degradation only."""
    built = build(model, arguments.work, status)
    messages, _ = requests(model, arguments.work)
    config, path = degradation_config(model), arguments.work / model.name / "degradation.json"
    path.write_text(json.dumps(config))
    if config is None:
        why = "the model has no number for each candidate that could stand for recall's score"
        found.missing.append(NotMeasured(name="goodput_at_2x_degraded", why=why))
    servers = {PLAIN: _options(model)}
    if config is not None:
        servers[DEGRADED] = (*_options(model), "--degradation-config", str(path))
    overload = found.overload = Overload(
        model.name, choose_target(built.bundle, built.manifest, "cpu").engine
    )

    def send(address: str, **load: Any) -> Sample:
        return client.send(Load(address=address, requests=str(messages), **load))

    for round in range(effort.rounds):
        with ExitStack() as stack:
            of = f"round {round + 1} of {effort.rounds}"
            status(f"{of}: finding saturation")
            addresses = {
                kind: stack.enter_context(jaxrank_server({model.name: built.bundle}, *options)).address
                for kind, options in servers.items()
            }
            rates = [
                send(
                    addresses[PLAIN], seconds=effort.closed_seconds, deadline=_NO_DEADLINE,
                    clients=2 * usable_cores(),
                )
                for _ in range(2)
            ]  # fmt: skip
            saturation = rates[-1].goodput(math.inf)
            if not saturation:
                raise RuntimeError(f"{model.name}: nothing was answered: {rates[-1].statuses}")
            samples: dict[str, dict[float, Sample]] = {kind: {} for kind in addresses}
            for multiple in effort.multiples:
                for kind, address in addresses.items():
                    status(f"{of}: {kind}, {multiple:g} of saturation")
                    seconds = effort.settle + effort.seconds
                    seed = int(10 * multiple) + 100 * round
                    samples[kind][multiple] = send(
                        address, times=ARRIVALS[arguments.arrivals](multiple * saturation, seconds, seed),
                        seconds=seconds, settle=effort.settle, deadline=found.slo_ms / 1e3,
                    )  # fmt: skip
            overload.rounds.append(samples)
