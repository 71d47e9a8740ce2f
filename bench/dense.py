"""The dense half against what a team would otherwise run: `python -m bench dense`.

Models of production width (bench/dense_models.py) are saved by TensorFlow, converted and compiled, each only
where something has changed, then timed beside five other engines (bench/peers.py), and those of
bench/optional_peers.py that are installed, at several numbers of candidates, in turns in one process, and
again in other fresh processes. No engine is timed before its scores are TensorFlow's. Writes
`bench/results/dense.json` after every process, and a table at the end.

With a bundle or a SavedModel of your own (bench/user_models.py), that model is measured instead, on requests
that its certificate has.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.destination import add_out, destination
from bench.processes import ProcessError, Status, fresh
from bench.results import NotMeasured, suite_command, write_results
from bench.timing import Timing, interleaved, pinned
from jaxrank.cli.console import results_console
from jaxrank.errors import JaxrankError
from jaxrank.targets import choose_target

if TYPE_CHECKING:
    from bench.dense_build import Built
    from bench.dense_models import DenseModel
    from bench.dense_threads import Threads
    from bench.peers import Prepare, Task
    from bench.user_models import UserModel

RESULTS = Path("bench/results/dense.json")
WORK = Path(".cache/bench")
PROCESSES = 3
"""Of each model, one after another with those of other models between."""
SIZES = (1, 50, 200, 1000, 5000)
STATIC_SIZES = (200, 1000)
TOLERANCE = 1e-5
"""Largest difference from TensorFlow of an engine that is timed: absolute up to 1, relative beyond. float32
sums in another order need that much."""
OUR_NAME, TF_NAME, XLA_NAME = "jaxrank", "tensorflow", "tensorflow_xla"
_SEED = 4_100
LARGE = 200
"""Ratios of the suite are over sizes from here up: what a ranking request has."""


@dataclass
class Measured:
    """Everything that was found out about one model."""

    name: str
    shape: str
    request_side: bool
    threads: str = ""
    """TensorFlow's."""
    columns: tuple[int, int] = (0, 0)
    """Columns of the request block and of the candidate block."""
    mflop: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the source for each candidate, of our request tower, of our candidate tower for each candidate."""
    seconds: dict[str, float] = field(default_factory=dict)
    times: dict[int, dict[str, Timing]] = field(default_factory=dict)
    """By number of candidates, by engine."""
    dynamic: dict[int, Timing] = field(default_factory=dict)
    """By number of candidates, our module on one stream."""
    static: dict[int, Timing] = field(default_factory=dict)
    """By number of candidates, a module for exactly that number."""
    engine: str = ""
    """That `--engine auto` chose."""
    error: float = 0.0
    """Largest of our engine's differences from TensorFlow."""
    tolerance: float = TOLERANCE
    """Largest that an engine may have to be timed."""
    missing: list[NotMeasured] = field(default_factory=list)

    def speedup(self, rows: int, engine: str) -> float | None:
        """How many times longer the engine takes than ours."""
        times = self.times.get(rows, {})
        if OUR_NAME not in times or engine not in times:
            return None
        return times[engine].median / times[OUR_NAME].median

    def best_peer(self, rows: int) -> str | None:
        """The fastest of the engines that are neither ours nor TensorFlow as it is."""
        times = self.times.get(rows, {})
        peers = [name for name in times if name not in (OUR_NAME, TF_NAME)]
        return min(peers, key=lambda name: times[name].median, default=None)


@dataclass(frozen=True)
class Effort:
    """How long a size is timed in one process: `rounds` turns of `per_round` runs each."""

    rounds: int
    per_round: int
    warm: int = 1


def effort(rows: int, quick: bool) -> Effort:
    """More runs where a run is short."""
    if quick:
        return Effort(2, 1)
    return Effort(4, 5) if rows <= 50 else Effort(3, 2) if rows <= 1000 else Effort(1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parse(argv)
    try:
        with pinned(arguments.cores):
            _run(arguments)
    except JaxrankError as error:
        raise SystemExit(f"error: {error}") from error


def _run(arguments: argparse.Namespace) -> None:
    console = results_console()
    from bench.dense_threads import Threads, fastest
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    # One's own model is opened where it is measured, with TensorFlow's threads as they are to be.
    names = [m.name for m in models(arguments)] if arguments.model is None else [arguments.model.name]
    threads, how = Threads(), f"{Threads()}, not tuned"
    if not arguments.quick:
        threads, how = fastest(arguments.argv, status=console.print)
    measured: dict[str, list[Measured]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=PROCESSES * len(names))
            for process in range(1, PROCESSES + 1):
                for number, name in enumerate(names):
                    of = f"process {process} of {PROCESSES}"

                    def status(text: str, of: str = of) -> None:
                        progress.update(bar, description=f"{of}: {text}")

                    status(f"{name}: starting")
                    try:
                        found = fresh(measured_here, arguments, number, threads, how, status=status)
                    except ProcessError as error:  # one model less is no reason to lose the others
                        found = Measured(name, "", False)
                        found.missing.append(NotMeasured(name=name, why=f"{of}: {error}"))
                    measured.setdefault(name, []).append(found)
                    _write(arguments.out, [joined(all_of) for all_of in measured.values()], arguments)
                    progress.advance(bar)
    except KeyboardInterrupt:
        console.print(f"interrupted; what was measured is in {arguments.out}")
    found = [joined(all_of) for all_of in measured.values()]
    _report(console, found, arguments)
    if not any(m.times for m in found):
        raise SystemExit("error: no engine was timed; the reasons are above")


def measured_here(
    status: Status, arguments: argparse.Namespace, number: int, threads: "Threads", how: str
) -> Measured:
    """One of the suite's models, in this process. Raises `JaxrankError` where it is one's own and cannot be
    opened."""
    from bench.dense_threads import limit_tensorflow_threads
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    limit_tensorflow_threads(threads)
    model = models(arguments)[number]
    found = Measured(model.name, model.shape, model.request_side, threads=how)
    try:
        measure(found, model, arguments.work, arguments.sizes, arguments.quick, status)
    except Exception as error:  # the sizes before are kept
        found.missing.append(
            NotMeasured(name=model.name, why=f"{type(error).__name__}: {_first_line(error)}")
        )
    return found


def joined(processes: Sequence[Measured]) -> Measured:
    """What several processes found out about one model. A size has times of those that timed it, and an
    engine where all of these did: the times of one size are of the same processes."""
    timed = [m for m in processes if m.times] or processes[:1]

    def shared(times: Sequence[Mapping[Any, Timing]]) -> dict[Any, Timing]:
        return {
            name: Timing.joined([t[name] for t in times])
            for name in times[0]
            if all(name in t for t in times)
        }

    def of_sizes(times: Sequence[Mapping[int, Any]]) -> dict[int, list[Any]]:
        return {n: [t[n] for t in times if n in t] for n in dict.fromkeys(n for t in times for n in t)}

    return replace(
        timed[0],
        times={rows: shared(held) for rows, held in of_sizes([m.times for m in timed]).items()},
        dynamic={rows: Timing.joined(held) for rows, held in of_sizes([m.dynamic for m in timed]).items()},
        static={rows: Timing.joined(held) for rows, held in of_sizes([m.static for m in timed]).items()},
        error=max(m.error for m in processes),
        missing=list(dict.fromkeys(one for m in processes for one in m.missing)),
    )


def models(arguments: argparse.Namespace) -> "Sequence[DenseModel | UserModel]":
    """Those of the suite's arguments."""
    if arguments.model is not None:
        from bench.user_models import open_model

        return [open_model(arguments.model, arguments.work, print, arguments.saved_model)]
    from bench.dense_models import MODELS
    from bench.profiles import PROFILES

    known = {m.name: m for m in (*MODELS, *(p.model() for p in PROFILES))}
    if unknown := sorted(set(arguments.models) - set(known)):
        raise SystemExit(f"there is no model {', '.join(unknown)}; models are: {', '.join(known)}")
    return [known[name] for name in arguments.models] or list(MODELS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The suite's options; `argv` is what they came from."""
    parser = argparse.ArgumentParser(
        prog="python -m bench dense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m bench dense                                    everything, in a quarter of an hour\n"
        "  python -m bench dense --quick --models din               is it still fast?\n"
        "  python -m bench dense --models mmoe ple --sizes 200 1000 --out /tmp/dense.json\n"
        "  python -m bench dense models/ranker/1 --out mine/dense.json",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="din, bst, mmoe, ple, dlrm, dcn_v2 (all of these), or a profile: feed, ads, article",
    )
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=list(SIZES), metavar="N",
        help="numbers of candidates (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two runs of each in a process, no static modules, TensorFlow's threads not tuned",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="models, bundles and modules, kept for the next run (%(default)s)",
    )  # fmt: skip
    add_out(parser, RESULTS)
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(given, argparse.Namespace(argv=given))
    if arguments.model is not None and arguments.models:
        parser.error("give either MODEL or --models")
    part = arguments.model or arguments.models or arguments.quick or arguments.sizes != list(SIZES)
    arguments.out = destination(arguments.out, RESULTS, part=part or arguments.cores is not None)
    return arguments


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and what belongs to it, and the cores."""
    parser.add_argument(
        "--cores", type=int, metavar="N", help="keep everything on the first N cores (all that there are)"
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="a bundle or SavedModel to measure instead of ours",
    )
    parser.add_argument(
        "--saved-model", type=Path, metavar="DIR",
        help="the SavedModel that the bundle MODEL was made of, if it is not where the bundle says",
    )  # fmt: skip


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 5000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of candidates from 1 to 5000")
    return int(text)


def measure(
    found: Measured,
    model: "DenseModel | UserModel",
    work: Path,
    sizes: Sequence[int],
    quick: bool,
    status: Status = lambda text: None,
) -> None:
    """Builds a model, checks every engine and times them; what is found is put into `found` as it is found.

    Raises `JaxrankError` where the model cannot be built.
    """
    from bench.dense_build import Scores, build
    from bench.optional_peers import OPTIONAL
    from bench.peers import ENGINES, Task
    from bench.user_models import UserModel, UserModelError
    from serving.host import HostProgramRunner

    built = build(model, work, status)
    target = choose_target(built.bundle, built.manifest, "cpu")
    found.engine = target.engine
    found.tolerance = max(TOLERANCE, built.manifest.certificate.tolerance)
    host = HostProgramRunner(built.bundle, built.manifest)
    found.columns = (host.program.width("request"), host.program.width("candidate"))
    if flops := built.manifest.flops:
        found.mflop = (flops.source_per_candidate / 1e6, flops.request / 1e6, flops.candidate / 1e6)
    found.seconds = built.seconds
    status(f"{model.name}: preparing engines")
    task = Task.of(built)
    if not task.outputs:
        raise UserModelError("the host makes every output of this model: there is no dense half to measure")
    engines = prepare_engines({**ENGINES, **OPTIONAL}, task, found)
    scores = Scores(model, built)
    for rows in sizes:
        try:
            features, expected = scores.request(rows, _SEED + rows)
        except JaxrankError as error:
            found.missing.append(NotMeasured(name=f"{found.name}/{rows}", why=_first_line(error)))
            continue
        wanted = [expected[name] for name in task.outputs]
        status(f"{model.name}: checking engines at {rows} candidates")
        calls = {}
        for name, prepare in engines.items():
            call = checked(name, prepare, host.run(features), wanted, rows, found)
            if call is not None:
                calls[name] = call
        status(f"{model.name}: timing {rows} candidates")
        how = effort(rows, quick)
        found.times[rows] = interleaved(calls, rounds=how.rounds, per_round=how.per_round, warm=how.warm)
    if not quick and not isinstance(model, UserModel):
        for rows in STATIC_SIZES:
            found.dynamic[rows], found.static[rows] = dynamic_and_static(built, model, rows, status)
    found.seconds = built.seconds


def prepare_engines(
    engines: Mapping[str, Callable[["Task"], "Prepare"]], task: "Task", found: Measured
) -> dict[str, "Prepare"]:
    """The engines that can run the task here; the others are listed as not measured, with the reason."""
    from bench.optional_peers import PACKAGES

    ready = {}
    for name, make in engines.items():
        try:
            ready[name] = make(task)
        except ImportError as error:
            package = PACKAGES.get(name, "'jaxrank[bench]'")
            why = f"{error}; pip install {package}"
            found.missing.append(NotMeasured(name=f"{found.name}/{name}", why=why))
        except Exception as error:  # engines raise whatever they like
            found.missing.append(NotMeasured(name=f"{found.name}/{name}", why=_first_line(error)))
    return ready


def checked(
    name: str, prepare: "Prepare", blocks: Any, wanted: Sequence[np.ndarray], rows: int, found: Measured
) -> Callable[[], Any] | None:
    """The engine's call for a request, if its scores are TensorFlow's; otherwise it is listed as not
    measured."""
    figure = f"{found.name}/{name}/{rows}"
    try:
        call = prepare(blocks)
        error = largest_error(call(), wanted)
    except Exception as reason:  # engines raise whatever they like
        found.missing.append(NotMeasured(name=figure, why=_first_line(reason)))
        return None
    if name == OUR_NAME:
        found.error = max(found.error, error)
    if not error <= found.tolerance:
        why = f"refused: its scores differ from TensorFlow's by {error:.1e}, more than {found.tolerance:.0e}"
        found.missing.append(NotMeasured(name=figure, why=why))
        return None
    return call


def largest_error(outputs: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Largest difference of any score: absolute up to 1, relative to TensorFlow's beyond; infinite where a
    shape is another or a score is not a number."""
    if len(outputs) != len(wanted) or any(o.size != w.size for o, w in zip(outputs, wanted, strict=True)):
        return float("inf")
    worst = 0.0
    for output, want in zip(outputs, wanted, strict=True):
        error = np.abs(output.reshape(want.shape).astype(np.float64) - want) / np.maximum(np.abs(want), 1.0)
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max(initial=0.0)))
    return worst


def dynamic_and_static(
    built: "Built", model: "DenseModel", rows: int, status: Status
) -> tuple[Timing, Timing]:
    """A request of `rows` candidates on one stream of IREE's engine, as it plans it for the module that takes
    any number, and on a module compiled for exactly `rows`, which takes them in one call."""
    from bench.dense_build import build_static
    from serving.engines import load_engine
    from serving.host import HostProgramRunner

    manifest = build_static(built, rows, status)
    status(f"{model.name}: timing against a module for exactly {rows} candidates")
    blocks = HostProgramRunner(built.bundle, built.manifest).run(model.request(rows, _SEED + rows))
    target = built.manifest.target("cpu", "iree")
    assert target is not None
    dynamic = load_engine(built.bundle, built.manifest, target, streams=1)
    static = load_engine(built.directory / f"static_{rows}", manifest, manifest.targets[0], streams=1)
    try:
        calls = {"dynamic": lambda: dynamic.run(blocks), "static": lambda: static.run(blocks)}
        times = interleaved(calls, rounds=4, per_round=2)
        return times["dynamic"], times["static"]
    finally:
        dynamic.close()
        static.close()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else type(error).__name__


def _write(path: Path, measured: Sequence[Measured], arguments: argparse.Namespace) -> None:
    from bench.dense_report import figures

    command = suite_command("dense", arguments.argv)
    found, missing = figures(measured)
    write_results(path, "dense", command, found, missing)


def _report(console: Console, measured: Sequence[Measured], arguments: argparse.Namespace) -> None:
    from bench.dense_report import figures, table

    console.print(table(measured))
    for figure in figures(measured)[0]:
        if "/" not in figure.name:
            console.print(f"{figure.name:42} {figure.value:.4g} {figure.unit}", highlight=False)
    for missing in figures(measured)[1]:
        console.print(f"not measured: {missing.name}: {missing.why}", highlight=False)
    console.print(f"figures are in {arguments.out}; `jaxrank bench report` draws them", highlight=False)
