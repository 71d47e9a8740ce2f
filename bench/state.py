"""Request state across calls: `python -m bench state`.

Two servers in this process on one bundle, one that keeps request sides and one that does not, are asked in
turns over gRPC. Every timed run is of a user that the server has not seen: 5,000 candidates in 10 and in 100
calls, and Rank of a prepared request against Predict of the same candidates. Milliseconds of CPU are those of
all threads of the process, client and server; of the clock, what a client waits.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.dense import WORK
from bench.dense_build import build
from bench.dense_models import MODELS, DenseModel
from bench.destination import add_out, destination
from bench.results import Figure, suite_command, write_results
from bench.timing import Timing, interleaved
from serving.client import PredictClient
from serving.engines import StatefulEngine
from serving.grpc_server import Server, ServerOptions
from serving.model import Model
from serving.state.digest import digest

RESULTS = Path("bench/results/state.json")
CANDIDATES = 5000
CALLS = (10, 100)
AT_ONCE = 10
RANK_SIZES = (50, 500)
MEASURED = ("din", "mmoe")
"""Unless other models are named: a request tower with attention, and one with a pooled history."""

Features = dict[str, np.ndarray]
ByClock = dict[str, dict[str, Timing]]


@dataclass(frozen=True)
class Sizes:
    rounds: int
    costs: int


FULL = Sizes(rounds=15, costs=200)
QUICK = Sizes(rounds=3, costs=20)


class Users:
    """Requests of one user after another, with the same candidates."""

    def __init__(self, model: DenseModel):
        features = model.request(CANDIDATES, seed=0)
        self.names = [name for name, dims in model.inputs.items() if dims[0] == 1]
        self.candidates = {n: v for n, v in features.items() if n not in self.names}
        self._model, self._seeds = model, itertools.count(1)

    def __iter__(self) -> Iterator[Features]:
        return self

    def __next__(self) -> Features:
        """The features of a user that was not drawn before."""
        request = self._model.request(1, seed=next(self._seeds))
        return {name: request[name] for name in self.names}

    def rows(self, start: int, stop: int) -> Features:
        """Some candidates."""
        return {n: v[start:stop] for n, v in self.candidates.items()}


def in_slices(users: Users, servers: dict[str, PredictClient], calls: int, rounds: int) -> ByClock:
    """All candidates in so many calls of equal size, ten of them at once."""
    rows = CANDIDATES // calls
    slices = [users.rows(start, start + rows) for start in range(0, CANDIDATES, rows)]
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def ask(client: PredictClient, waiting: list[Features]) -> None:
            user = waiting.pop()
            for _ in pool.map(lambda part: client.predict("model", {**user, **part}), slices):
                pass

        drawn = {name: list(itertools.islice(users, rounds)) for name in servers}
        asked = {name: lambda name=name: ask(servers[name], drawn[name]) for name in servers}
        return both_clocks(asked, rounds, warm=0)


def after_recall(users: Users, servers: dict[str, PredictClient], rows: int, rounds: int) -> ByClock:
    """What is left when the candidates are known: Rank of a request that was prepared, or Predict."""
    candidates = users.rows(0, rows)
    predicted = list(itertools.islice(users, 2 * rounds))
    prepared = [servers["kept"].prepare("model", user) for user in itertools.islice(users, 2 * rounds)]
    return both_clocks(
        {
            "rank": lambda: servers["kept"].rank("model", prepared.pop(), candidates),
            "predict": lambda: servers["alone"].predict("model", {**predicted.pop(), **candidates}),
        },
        rounds,
        warm=1,
    )


def both_clocks(calls: Mapping[str, Callable[[], object]], rounds: int, warm: int) -> ByClock:
    """Times calls in turn, by what a client waits and by the CPU of all threads, in the same runs."""
    cpu: dict[str, list[float]] = {name: [] for name in calls}

    def timed(name: str) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            calls[name]()
            cpu[name].append((time.process_time() - start) * 1e3)

        return run

    wait = interleaved({name: timed(name) for name in calls}, rounds=rounds, warm=warm)
    runs = {name: np.array(found).reshape(rounds, warm + 1)[:, warm:] for name, found in cpu.items()}
    return {"cpu": {name: Timing(found) for name, found in runs.items()}, "wait": wait}


def costs(bundle: Path, users: Users, count: int) -> dict[str, Timing]:
    """CPU of a digest, and of the request tower that a hit saves, in this process."""
    model, features = Model.load(bundle, engine="iree"), next(users)
    engine, block = model._engine, model._host.run({**features, **users.rows(0, 1)}).request
    assert isinstance(engine, StatefulEngine)
    found = interleaved(
        {
            "digest": lambda: digest([features[name] for name in users.names]),
            "request_tower": lambda: engine.prepare(block),
        },
        rounds=count,
        pause_s=0.0,
        clock=time.process_time,
    )
    model.close()
    return found


def measure(model: DenseModel, bundle: Path, sizes: Sizes, console: Console) -> list[Figure]:
    """All figures of one model."""
    users, figures = Users(model), list[Figure]()

    def add(name: str, timings: dict[str, Timing], unit: str = "ms", scale: float = 1.0) -> None:
        for key, t in timings.items():
            found, full = t.scaled(scale).estimate, f"{model.name}_{name.format(key)}"
            figures.append(found.figure(full, unit, t.runs))
            console.print(f"{full}: {found.value:.3g} {unit} ({found.lo:.3g} to {found.hi:.3g})")

    add("{}", costs(bundle, users, sizes.costs), "us", 1e3)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "model").mkdir()
        (Path(directory) / "model" / "1").symlink_to(bundle.absolute())
        options = ServerOptions(
            models=Path(directory),
            engine="iree",
            host="127.0.0.1",
            port=0,
            poll_seconds=0.0,
            workers=AT_ONCE,
            state_cache_mb=1024.0,
            state_ttl_ms=3.6e6,
        )
        servers = {"kept": Server(options), "alone": Server(replace(options, state_cache_mb=0.0))}
        clients = {name: PredictClient(server.address) for name, server in servers.items()}
        in_slices(users, clients, CALLS[0], 1)  # brings the weights into memory
        for calls in CALLS:
            for clock, times in in_slices(users, clients, calls, sizes.rounds).items():
                add(f"{CANDIDATES}_in_{calls}_{{}}_{clock}", times)
        for rows in RANK_SIZES:
            for clock, times in after_recall(users, clients, rows, 3 * sizes.rounds).items():
                add(f"{{}}_{rows}_{clock}", times)
        with servers["kept"].repository.lend("model") as (served, _):
            counts = served.state_counts
        assert counts is not None
        kept = counts.bytes / counts.entries
        figures.append(Figure(name=f"{model.name}_kept_bytes", value=kept, unit="bytes a request"))
        for client in clients.values():
            client.close()
        for server in servers.values():
            server.stop()
    return figures


def main(arguments: list[str]) -> None:
    models = {model.name: model for model in MODELS if model.request_side}
    parser = argparse.ArgumentParser(prog="python -m bench state", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MEASURED), choices=list(models))
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--work", type=Path, default=WORK, help="bundles, kept for the next run")
    add_out(parser, RESULTS)
    options = parser.parse_args(arguments)
    part = options.quick or options.models != list(MEASURED)
    options.out = destination(options.out, RESULTS, part=part)
    sizes, console, figures = QUICK if options.quick else FULL, Console(), []
    for name in options.models:
        bundle = build(models[name], options.work, console.print).bundle
        figures += measure(models[name], bundle, sizes, console)
        write_results(options.out, "state", suite_command("state", arguments), figures)
