"""The part `throughput` of the suite `serve`: the largest rates that keep the promise."""

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.dense_build import Built, build
from bench.results import NotMeasured
from bench.serve_found import (
    OURS,
    TENSORFLOW,
    TFS,
    TRITON,
    Measured,
    Model,
    Session,
    closed_loop,
    server_options,
)
from bench.serve_load import Load, Sample
from bench.serve_processes import Memory, Setting, jaxrank_server, memory, settings, tensorflow_server
from bench.serve_requests import KEPT_SECONDS, USERS, replayed, requests
from bench.serve_scores import compare, not_served
from bench.serve_search import HEADROOM, Search
from bench.user_models import UserModel
from bench.workloads import ARRIVALS, WorkloadError
from jaxrank.errors import JaxrankError
from jaxrank.targets import choose_target
from serving.cores import usable_cores

_TUNING_STEPS = 3
"""Of the search for each setting of TensorFlow."""
_CLOSED = 2
"""Closed loops before a search, of which the best counts."""


@dataclass
class _Server:
    """One server in one round."""

    address: str
    process: int | None
    """None of one that is not ours to start."""
    search: Search | None = None
    closed: float = 0.0
    memory: Memory | None = None

    def look(self) -> None:
        """Keeps the most memory that was seen."""
        found = memory(self.process) if self.process is not None else None
        if found is not None and (self.memory is None or found.total > self.memory.total):
            self.memory = found


def throughput(session: Session, model: Model) -> None:
    """The largest rates that keep the promise, and recorded traffic as it came."""
    found, arguments, effort = session.found, session.arguments, session.effort
    found.missing += _not_run(model, arguments.tfs_address)
    built = build(model, session.work, session.status)
    messages, first = requests(model, session.work)
    engine = choose_target(built.bundle, built.manifest, "cpu").engine
    measured = Measured(model.name, engine, request_bytes=len(first), candidates=model.candidates)
    try:
        measured.setting = _tuned(measured, built, session, messages)
    except (JaxrankError, RuntimeError) as error:
        found.missing.append(not_served(model, TENSORFLOW, error))
    found.models.append(measured)
    for round in range(effort.rounds):
        with ExitStack() as stack:
            of = f"round {round + 1} of {effort.rounds}"
            session.status(f"{of}: starting servers")
            servers = _started(stack, session, measured, model, built)
            addresses = {name: server.address for name, server in servers.items()}
            compare(found, measured, model, built, addresses, first)
            servers = {name: servers[name] for name in addresses}
            _search(session, measured, model, servers, messages, round)
            if arguments.traffic is not None and isinstance(model, UserModel) and round == 0:
                _replay(session, measured, model, servers)
        session.save()


def _not_run(model: Model, tfs_address: str | None) -> list[NotMeasured]:
    """Servers that a team may know, and that this run does not have."""
    missing = []
    if tfs_address is None:
        why = "no --tfs-address: TensorFlow Serving is a program of its own, in no package that pip installs"
        missing.append(NotMeasured(name=f"{model.name}/throughput/{TFS}", why=why))
    try:
        importlib.import_module("pytriton")
    except Exception as error:  # a package that is there and does not fit raises whatever it likes
        why = f"nvidia-pytriton does not load: {type(error).__name__}: {error}"
    else:
        why = "this suite does not start nvidia-pytriton, whose last release needs NumPy below 2"
    return [*missing, NotMeasured(name=f"{model.name}/throughput/{TRITON}", why=why[:300])]


def _started(
    stack: ExitStack, session: Session, measured: Measured, model: Model, built: Built
) -> dict[str, _Server]:
    ours = stack.enter_context(jaxrank_server({model.name: built.bundle}, *server_options(model)))
    servers = {OURS: _Server(ours.address, ours.process)}
    if measured.setting is not None:
        server = tensorflow_server(built.saved, measured.setting, built.manifest.signature.name)
        try:
            theirs = stack.enter_context(server)
            servers[TENSORFLOW] = _Server(theirs.address, theirs.process)
        except RuntimeError as error:
            session.found.missing.append(not_served(model, TENSORFLOW, error))
    if session.arguments.tfs_address is not None:
        servers[TFS] = _Server(session.arguments.tfs_address, None)
    return servers


def _tuned(measured: Measured, built: Built, session: Session, messages: Path) -> Setting:
    """TensorFlow's setting with the largest rate that keeps the promise, by a short search, or else with the
    most answers. Raises `UserModelError` without its model, `RuntimeError` where it does not serve it."""
    effort, tried, saved = session.effort, settings(usable_cores()), built.saved
    if not effort.tuned:
        return tried[0]
    rates: dict[Setting, tuple[float, float]] = {}
    for setting in tried:
        session.status(f"TensorFlow with {setting}")
        name = f"{TENSORFLOW}, {setting}"
        try:
            with tensorflow_server(saved, setting, built.manifest.signature.name) as server:
                for _ in range(2):  # the first warms it
                    closed = closed_loop(session, messages, server.address)
                search = Search(closed, session.found.slo_ms)
                for step in range(_TUNING_STEPS):
                    _step(session, search, server.address, messages, effort.seconds / 2, step)
            rates[setting] = search.throughput, closed
            measured.closed[name] = [closed]
        except RuntimeError as error:
            missing = NotMeasured(name=f"{measured.name}/closed_loop/{name}", why=str(error)[:300])
            session.found.missing.append(missing)
    if not rates:
        raise RuntimeError("it answered with none of its settings")
    return max(rates, key=rates.__getitem__)


def _step(session: Session, search: Search, address: str, messages: Path, seconds: float, seed: int) -> None:
    """Sends a load at the search's next rate."""
    rate, slo_ms = search.next_rate(), session.found.slo_ms
    times = ARRIVALS[session.arguments.arrivals](rate, seconds, seed)
    load = Load(address=address, requests=str(messages), seconds=seconds, times=times, deadline=slo_ms / 1e3)
    search.record(session.client.send(load))


def _search(
    session: Session,
    measured: Measured,
    model: Model,
    servers: dict[str, _Server],
    messages: Path,
    round: int,
) -> None:
    """One round's search, servers in turns. One that fails twice at one load has no search of this round."""
    effort, slo_ms = session.effort, session.found.slo_ms
    of = f"round {round + 1} of {effort.rounds}"

    def begin(server: _Server) -> None:
        closed_loop(session, messages, server.address)  # warm
        tries = [closed_loop(session, messages, server.address) for _ in range(_CLOSED)]
        server.closed = max(tries)
        server.search = Search(HEADROOM * server.closed, slo_ms)

    def step(server: _Server, number: int) -> None:
        search = server.search
        assert search is not None
        rate = search.next_rate()
        if not isinstance(model, UserModel) and rate > USERS / KEPT_SECONDS:
            raise WorkloadError(
                f"{USERS} users come twice within {KEPT_SECONDS:g} s at {rate:.0f}/s: draw more"
            )
        _step(session, search, server.address, messages, effort.seconds, round * effort.steps + number)
        server.look()

    left = dict(servers)
    for number in range(-1, effort.steps):
        for name, server in list(left.items()):
            what = "closed loop" if number < 0 else f"step {number + 1} of {effort.steps}"
            rate = f" at {server.search.next_rate():.0f} requests/s" if server.search is not None else ""
            session.status(f"{of}, {what}: {name}{rate}")
            try:
                _twice(lambda s=server, n=number: begin(s) if n < 0 else step(s, n))
            except RuntimeError as error:
                error = RuntimeError(f"{of} is left out, it failed twice: {error}")
                session.found.missing.append(not_served(model, name, error))
                del left[name]
    for name, server in left.items():
        assert server.search is not None
        measured.closed.setdefault(name, []).append(server.closed)
        measured.searches.setdefault(name, {})[round] = server.search
        if server.memory is not None:
            measured.memory.setdefault(name, {})[round] = server.memory


def _twice(what: Callable[[], None]) -> None:
    """Once more where it raises `RuntimeError`."""
    try:
        what()
    except RuntimeError:
        what()


def _replay(session: Session, measured: Measured, model: UserModel, servers: dict[str, _Server]) -> None:
    arguments = session.arguments
    times = [t for t in arguments.traffic.timed() if t < arguments.replay_seconds]
    recorded = replayed(arguments.traffic, model, session.work)
    for name, server in servers.items():
        session.status(f"{name}: {len(times)} recorded requests")
        load = Load(
            address=server.address, requests=str(recorded), times=times, seconds=max(times[-1], 1.0),
            deadline=session.found.slo_ms / 1e3, from_first=True,
        )  # fmt: skip
        sample: Sample = session.client.send(load)
        measured.replayed[name] = sample
