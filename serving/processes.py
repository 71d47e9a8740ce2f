"""Several server processes on one port: `jaxrank serve --workers N`.

The supervisor starts the same command N times, each with a part of the cores, and restarts what ends. All
workers listen on the same ports (SO_REUSEPORT), so the kernel spreads connections over them. Tables and
weights are mapped files, which all of them share through the page cache.

A worker has a link to its supervisor: `LOADED` says that its models are loaded, the supervisor's `GO` that
all others are, too, and `SERVING` that it listens. Nothing answers before every worker can. The end of a link
is the end of the process behind it.
"""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import msgspec

from jaxrank.errors import JaxrankError
from serving.numa import memory_of

log = logging.getLogger("jaxrank")

ENVIRONMENT = "JAXRANK_WORKER"
"""Tells a process that it is a worker; JSON of its `Place`."""

LOADED, SERVING, GO = b"l", b"s", b"g"

_FIRST_DELAY, _LAST_DELAY = 0.1, 30.0
"""Seconds before a worker is started again; doubled as long as it does not stay."""
_STAYED_SECONDS = 60.0
_ATTEMPTS = 5
"""Starts in a row that may fail while no other worker serves."""
_KILL_SECONDS = 5.0
"""What a worker gets beyond its grace period."""


class WorkersError(JaxrankError):
    """The workers cannot be started, or one of them ended before all were ready."""


class Place(msgspec.Struct, frozen=True):
    """What is different about each worker: its number from 0, how many there are, the ports that the
    supervisor holds for all, and the file descriptor of its link."""

    index: int
    count: int
    port: int
    rest_port: int | None
    link: int

    def share(self, streams: int | None) -> int | None:
        """This worker's part of `--streams`; None stays the device's default."""
        return None if streams is None else max(1, streams // self.count)


class Member:
    """A worker's end of the link."""

    def __init__(self, place: Place):
        self.place = place
        self._link = socket.socket(fileno=place.link)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Member | None":
        """The member that the environment describes; None in a process without a supervisor."""
        text = environment.get(ENVIRONMENT)
        return None if text is None else cls(msgspec.json.decode(text, type=Place))

    def wait_for_others(self) -> None:
        """Returns when every worker has loaded its models. Raises `WorkersError` if the supervisor ends."""
        self._link.send(LOADED)
        if self._link.recv(1) != GO:
            raise WorkersError("the supervisor of this worker ended while the worker started; start it again")

    def serving(self, when_alone: Callable[[], None]) -> None:
        """Tells the supervisor that this worker answers. `when_alone` is called, on a thread, when the
        supervisor ends."""
        self._link.send(SERVING)

        def watch() -> None:
            self._link.recv(1)
            when_alone()

        threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


@dataclass(frozen=True)
class Share:
    """What a worker runs on: its cores, and the NUMA node that its memory comes from, if it matters."""

    cores: Sequence[int]
    node: int | None = None


@dataclass
class _Worker:
    """One place, and the process that fills it now. Times of the monotonic clock, in seconds."""

    place: Place
    share: Share
    process: subprocess.Popen[bytes] | None = None
    link: socket.socket | None = None
    loaded: bool = False
    serving_since: float | None = None
    failures: int = 0
    again_at: float = 0.0


class Supervisor:
    """Starts workers, watches them, and ends with them."""

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        host: str,
        port: int,
        rest_port: int | None,
        grace_seconds: float,
        command: Sequence[str] | None = None,
    ):
        """Holds the ports. Raises `WorkersError` for one that is taken.

        Args:
            shares: one for each worker.
            port, rest_port: 0 is any free port; None: no HTTP.
            grace_seconds: that a worker's requests get at the end.
            command: what to start; this process's own command by default.
        """
        self._command = list(command or (sys.executable, *sys.orig_argv[1:]))
        self._grace_seconds, self._host = grace_seconds, host
        self._held = [_hold(host, p) for p in (port, rest_port) if p is not None]
        self.port, *rest = (held.getsockname()[1] for held in self._held)
        self.rest_port: int | None = rest[0] if rest else None
        self._workers = [
            _Worker(Place(i, len(shares), self.port, self.rest_port, -1), share)
            for i, share in enumerate(shares)
        ]
        self._selector = selectors.DefaultSelector()
        self._started = False
        self._ends_at: float | None = None
        self._statuses: list[int] = []

    def run(self) -> int:
        """Runs until SIGINT or SIGTERM, then drains the workers. Returns the exit status: 0 if every worker
        finished its requests. Raises `WorkersError` where a worker cannot start."""
        signals, wake = socket.socketpair()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: wake.send(bytes([number])))
        self._selector.register(signals, selectors.EVENT_READ, None)
        try:
            for worker in self._workers:
                self._start(worker)
            while self._ends_at is None or any(w.process for w in self._workers):
                for key, _ in self._selector.select(self._wait_seconds()):
                    if key.data is None:
                        self._signalled(signals.recv(1)[0])
                    else:
                        self._heard(key.data)
                self._look_at_the_clock()
        except OSError as error:
            raise WorkersError(f"the workers cannot be started: {error}") from error
        finally:
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.wait()
            for held in self._held:
                held.close()
        return 0 if not any(self._statuses) else 1

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        place = msgspec.structs.replace(worker.place, link=theirs.fileno())
        environment = {**os.environ, ENVIRONMENT: msgspec.json.encode(place).decode()}
        try:
            with theirs, _placed(worker.share):
                # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes it on.
                worker.process = subprocess.Popen(
                    self._command, env=environment, pass_fds=[place.link], start_new_session=True
                )
        except OSError:
            ours.close()
            raise
        worker.link, worker.loaded, worker.serving_since = ours, False, None
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _heard(self, worker: _Worker) -> None:
        assert worker.link is not None
        try:
            said = worker.link.recv(1)
        except ConnectionResetError:
            said = b""
        if said == LOADED:
            worker.loaded = True
            if self._started:
                _tell(worker)
            elif all(w.loaded for w in self._workers):
                for each in self._workers:
                    _tell(each)
        elif said == SERVING:
            worker.serving_since = time.monotonic()
            if not self._started and all(w.serving_since is not None for w in self._workers):
                self._started = True
                log.info("all %d workers serve on %s:%d", len(self._workers), self._host, self.port)
        else:
            self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        assert worker.process is not None and worker.link is not None
        self._selector.unregister(worker.link)
        worker.link.close()
        status = worker.process.wait()
        worker.process = None
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        number, now = worker.place.index + 1, time.monotonic()
        if self._ends_at is not None:
            if worker.serving_since is not None:  # one that was starting had nothing to finish
                self._statuses.append(status)
            return
        if not self._started:
            raise WorkersError(
                f"worker {number} ended with {how} before all workers were ready; its message is above"
            )
        since, worker.serving_since = worker.serving_since, None
        stayed = since is not None and now - since > _STAYED_SECONDS
        worker.failures = 1 if stayed else worker.failures + 1
        if since is None and worker.failures > _ATTEMPTS and not any(w.serving_since for w in self._workers):
            raise WorkersError(
                f"worker {number} ended with {how}, and no worker serves after {_ATTEMPTS} attempts; the "
                "messages above say why"
            )
        delay = min(_LAST_DELAY, _FIRST_DELAY * 2 ** (worker.failures - 1))
        worker.again_at = now + delay
        log.error("worker %d ended with %s; started again in %g s", number, how, delay)

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if self._ends_at is None and worker.process is None and now >= worker.again_at:
                self._restart(worker)
            elif self._ends_at is not None and worker.process is not None and now >= self._ends_at:
                worker.process.kill()

    def _restart(self, worker: _Worker) -> None:
        try:
            self._start(worker)
        except OSError as error:  # no memory, processes or descriptors: the others serve on
            worker.again_at = time.monotonic() + _LAST_DELAY
            log.error(
                "worker %d cannot start: %s; tried again in %g s", worker.place.index + 1, error, _LAST_DELAY
            )

    def _wait_seconds(self) -> float | None:
        now = time.monotonic()
        if self._ends_at is not None:
            return max(0.0, self._ends_at - now) or 0.1
        waiting = [w.again_at for w in self._workers if w.process is None]
        return max(0.0, min(waiting) - now) if waiting else None

    def _signalled(self, number: int) -> None:
        """The first signal drains, a second one does not wait."""
        if self._ends_at is not None:
            self._ends_at = time.monotonic()
            return
        log.info("stopping %d workers", len(self._workers))
        self._ends_at = time.monotonic() + self._grace_seconds + _KILL_SECONDS
        for worker in self._workers:
            if worker.process is not None:
                worker.process.terminate()


def shares_of(
    cores: Sequence[int], workers: int, nodes: Mapping[int, Sequence[int]] | None = None
) -> list[Share]:
    """Each worker's share: neighbouring cores, and each core once where there are enough.

    `nodes` are the cores by NUMA node, of which each gets as many workers. Raises `WorkersError` where that
    does not come out even.
    """
    if not nodes:
        return [Share(_part(cores, i, workers)) for i in range(workers)]
    if workers % len(nodes):
        raise WorkersError(
            f"--numa: {workers} workers cannot be divided over {len(nodes)} NUMA nodes; give --workers "
            f"{len(nodes)}, or a multiple of it"
        )
    each = workers // len(nodes)
    return [Share(_part(own, i, each), node) for node, own in nodes.items() for i in range(each)]


def _part(cores: Sequence[int], index: int, count: int) -> list[int]:
    if len(cores) < count:
        return [cores[index % len(cores)]] if cores else []
    return list(cores[index * len(cores) // count : (index + 1) * len(cores) // count])


@contextmanager
def _placed(share: Share) -> Iterator[None]:
    """Processes that are started inside run there."""
    before = os.sched_getaffinity(0) if share.cores else set[int]()
    if share.cores:
        os.sched_setaffinity(0, share.cores)
    try:
        with memory_of(share.node) if share.node is not None else nullcontext():
            yield
    finally:
        if share.cores:
            os.sched_setaffinity(0, before)


def _tell(worker: _Worker) -> None:
    assert worker.link is not None
    try:
        worker.link.send(GO)
    except OSError:
        return  # it has just ended, which its link says next


def _hold(host: str, port: int) -> socket.socket:
    """A socket bound to the port that never listens: it keeps the port for the workers, also while none
    lives. Raises `WorkersError` if another server has it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # First alone: with SO_REUSEPORT the port of another server that shares its own would be taken.
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        return held
    except OSError as error:
        raise WorkersError(
            f"cannot listen on {host}:{port}: {error}; is another server there? (--port, --rest_api_port)"
        ) from error
