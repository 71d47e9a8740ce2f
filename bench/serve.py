"""A server under load, beside TensorFlow behind the same wire: `python -m bench serve`.

Requests arrive over gRPC (bench/serve_load.py) as a Poisson process or another one (bench/workloads.py), from
a process on the same machine, each of another user. For each model (bench/serve_throughput.py): TensorFlow's
best setting of threads is found, both servers' scores are compared with TensorFlow's, and the largest rate at
which 99% of all requests are answered within the promise is searched for both in turns, with requests of
500 candidates. Then (bench/serve_overload.py) what a request of 200 costs beside the model, and how much is
still answered in time beyond saturation, with degradation of the models and without. Each is measured in
several rounds, with new server processes in each. Writes `bench/results/serve.json` after every round; what
`python -m bench soak`, `python -m bench loading` and `make faults` wrote is put into it, too.

With a bundle or a SavedModel of your own (bench/user_models.py), that model is measured instead, without
request state: its certificate has few users. A real TensorFlow Serving can be measured beside it, and
recorded traffic sent as it came.
"""

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.dense import add_model_arguments
from bench.destination import add_out, destination
from bench.results import NotMeasured, suite_command, write_results
from bench.serve_found import FULL, OWN, QUICK, Found, Model, Session
from bench.serve_load import LoadClient
from bench.serve_overload import overhead, overload
from bench.serve_report import figures, table
from bench.serve_throughput import throughput
from bench.timing import pinned
from bench.user_models import UserModel, open_model
from bench.workloads import ARRIVALS, read_traffic
from jaxrank.cli.console import results_console
from jaxrank.errors import JaxrankError
from jaxrank.manifest import DEFAULT_MAX_CANDIDATES

RESULTS, WORK = Path("bench/results/serve.json"), Path(".cache/bench")
MODELS = ("din", "mmoe", "dlrm")
CANDIDATES = 500
"""Of a request to one of our models where throughput and overload are measured: 2 to 5 GFLOP."""
OVERHEAD_MODEL = "dcn_v2"
"""Its request of 200 candidates has 62 KB."""
OVERLOAD_MODEL = "mmoe"
PARTS = ("throughput", "overhead", "overload")
_OTHER_FIGURES = ("parts", "candidates", "slo_ms", "arrivals", "cores", "overhead_model", "overload_model")
"""Options with which figures are others than those of `python -m bench serve`."""
_INTERRUPTED = 130
"""Exit code, as a shell gives it to what SIGINT ended."""


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
    """Measures, writes and reports. Raises `WorkloadError` for recorded traffic that cannot be sent.
    Interrupted, it writes what there is, and exits with 130."""
    console = results_console()
    effort = QUICK if arguments.quick else FULL if arguments.model is None else OWN
    slo_ms = arguments.slo_ms or min(zoo[name].slo_ms for name in arguments.models or zoo)
    arguments.traffic = None
    if arguments.replay is not None:
        arguments.traffic = read_traffic(arguments.replay)
        arguments.traffic.timed()
    asked = tuple(arguments.models) if "throughput" in arguments.parts else ()
    found = Found(slo_ms, arguments.out.parent, asked=asked)
    command = suite_command("serve", arguments.argv or ())

    def save() -> None:
        write_results(arguments.out, "serve", command, *figures(found))

    sized = {name: _sized(model, arguments.candidates) for name, model in zoo.items()}
    parts: list[tuple[str, Callable[[Session], None]]] = [
        (name, lambda session, name=name: throughput(session, sized[name])) for name in asked
    ]
    if "overhead" in arguments.parts:
        parts.append(("overhead", lambda session: overhead(session, zoo[arguments.overhead_model])))
    if "overload" in arguments.parts:
        parts.append(("overload", lambda session: overload(session, sized[arguments.overload_model])))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress, LoadClient() as client:
            task, failed = progress.add_task("", total=len(parts)), 0
            for name, part in parts:

                def status(text: str, name: str = name) -> None:
                    progress.update(task, description=f"{name}: {text}")

                try:
                    part(Session(found, arguments, effort, client, status, save))
                except Exception as error:  # one part less is no reason to lose the others
                    failed += 1
                    why = f"{type(error).__name__}: {error}"[:300]
                    found.missing.append(NotMeasured(name=name, why=why))
                save()
                progress.advance(task)
    except KeyboardInterrupt:
        save()
        console.print(f"interrupted; what was measured is in {arguments.out}", highlight=False)
        raise SystemExit(_INTERRUPTED) from None
    measured, missing = figures(found)
    console.print(table(found))
    for figure in (f for f in measured if "/" not in f.name):
        console.print(f"{figure.name:32} {figure.value:.4g} {figure.unit}  {figure.note}", highlight=False)
    for one in missing:
        console.print(f"not measured: {one.name}: {one.why}", highlight=False)
    console.print(f"figures are in {arguments.out}; `jaxrank bench report` draws them", highlight=False)
    if failed == len(parts):
        raise SystemExit(1)


def _sized(model: Model, candidates: int | None) -> Model:
    """The model with requests of so many candidates. By default they are `CANDIDATES`, but for a profile,
    which says how many its service has, and a model of one's own, whose requests are as recorded."""
    if isinstance(model, UserModel):
        return model
    from bench.profiles import ProfiledModel

    if candidates is None:
        return model if isinstance(model, ProfiledModel) else replace(model, candidates=CANDIDATES)
    return replace(model, candidates=candidates)


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
    parser.add_argument(
        "--candidates", type=_candidates, metavar="N",
        help=f"of a request to our models where throughput and overload are measured ({CANDIDATES}; those of "
        "a profile)",
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
    add_out(parser, RESULTS)
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    if arguments.replay is not None and arguments.model is None:
        parser.error("--replay needs the MODEL that the requests are to")
    if arguments.candidates is not None and arguments.model is not None:
        parser.error("--candidates is for our models; requests to MODEL are those that its bundle has")
    part = arguments.model or arguments.models is not None or arguments.quick
    part = part or any(getattr(arguments, name) != parser.get_default(name) for name in _OTHER_FIGURES)
    arguments.out = destination(arguments.out, RESULTS, part=part)
    if arguments.models is None:
        arguments.models = list(MODELS[:1] if arguments.quick else MODELS)
    return arguments


def _candidates(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= DEFAULT_MAX_CANDIDATES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {DEFAULT_MAX_CANDIDATES}")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
