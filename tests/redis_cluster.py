"""A real Redis Cluster on this machine: Debian's redis-server, installed, or unpacked into the cache without
root."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

import pytest
import redis

_SLOTS = 16384
NODE_TIMEOUT_MS = 800
_SECONDS = 30.0


def server_command(cache: Path) -> tuple[list[str], dict[str, str]]:
    """What starts redis-server, and the environment that it needs."""
    installed = which("redis-server")
    if installed is not None:
        return [installed], dict(os.environ)
    root = cache / "root"
    if not (root / "usr/bin/redis-check-rdb").exists():
        cache.mkdir(parents=True, exist_ok=True)
        _download(cache)
    if not (root / "usr/bin/redis-check-rdb").exists():
        pytest.fail(
            "no redis-server: it is not installed, and apt-get could not download it; install it (Debian, "
            "Ubuntu: apt-get install redis-server) and run the tests again"
        )
    libraries = ":".join(str(p) for p in sorted((root / "usr/lib").glob("*-linux-gnu")))
    # Debian's redis-server is a link to this program, which goes by the name that it is called.
    link = cache / "redis-server"
    if not link.exists():
        link.symlink_to((root / "usr/bin/redis-check-rdb").resolve())
    return [str(link)], {**os.environ, "LD_LIBRARY_PATH": libraries}


def _download(cache: Path) -> None:
    own = cache / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    # What is installed is known to dpkg; only what is missing is downloaded. No lock: nothing is installed.
    common = ["-o", f"Dir::Cache={own.absolute()}", "-o", "Debug::NoLocking=1"]
    lists = ["-o", f"Dir::State::Lists={(own / 'lists').absolute()}"]
    install = ["--yes", "--no-install-recommends", "--download-only", "install", "redis-server"]
    if not _run(["apt-get", *common, *install]) and _run(["apt-get", *common, *lists, "update"]):
        _run(["apt-get", *common, *lists, *install])
    for package in (own / "archives").glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(cache / "root")])


def _run(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass
class Cluster:
    """Running nodes. `masters` are indexes of `ports`; the rest replicate them in turn."""

    command: list[str]
    environment: dict[str, str]
    directory: Path
    ports: list[int]
    masters: int
    options: tuple[str, ...]
    password: str | None
    processes: dict[int, subprocess.Popen] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def client(self, index: int) -> redis.Redis:
        return redis.Redis(
            port=self.ports[index], password=self.password, socket_timeout=5, decode_responses=True
        )

    def start(self, index: int) -> None:
        port = self.ports[index]
        home = self.directory / str(port)
        home.mkdir(exist_ok=True)
        secret = ["--requirepass", self.password, "--masterauth", self.password] if self.password else []
        command = [
            *self.command,
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--logfile", "log"),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            *("--cluster-require-full-coverage", "no", "--save", "", "--appendonly", "yes"),
            *("--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0"),
            *secret,
            *self.options,
        ]
        self.processes[index] = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self, index: int) -> None:
        self.processes[index].send_signal(signal.SIGKILL)
        self.processes[index].wait()

    def wait_until_well(self) -> None:
        """Every running node says that the cluster is."""
        for index, process in self.processes.items():
            if process.poll() is None:
                _until(lambda index=index: _info(self.client(index))["cluster_state"] == "ok")

    def wait_until_answering(self, index: int) -> None:
        _until(lambda: self.client(index).ping())

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextmanager
def running_cluster(
    cache: Path,
    directory: Path,
    *,
    masters: int = 3,
    replicas: int = 0,
    password: str | None = None,
    options: Sequence[str] = (),
) -> Iterator[Cluster]:
    """A cluster of `masters` nodes with equal ranges of slots, and `replicas` in all."""
    command, environment = server_command(cache)
    ports = _free_ports(masters + replicas)
    cluster = Cluster(command, environment, directory, ports, masters, tuple(options), password)
    try:
        for index in range(len(ports)):
            cluster.start(index)
        for index in range(len(ports)):
            cluster.wait_until_answering(index)
        edges = [_SLOTS * i // masters for i in range(masters + 1)]
        for index in range(masters):
            cluster.client(index).execute_command("CLUSTER ADDSLOTSRANGE", edges[index], edges[index + 1] - 1)
            cluster.client(index).execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for index in range(1, len(ports)):
            cluster.client(0).execute_command("CLUSTER MEET", "127.0.0.1", ports[index])
        for index in range(len(ports)):
            _until(lambda index=index: _info(cluster.client(index))["cluster_known_nodes"] == str(len(ports)))
        for index in range(masters, len(ports)):
            master = cluster.client((index - masters) % masters).execute_command("CLUSTER MYID")
            _until(lambda index=index, master=master: _replicate(cluster.client(index), master))
            _until(lambda index=index: _linked(cluster.client(index)))
        cluster.wait_until_well()
        yield cluster
    finally:
        cluster.stop()


def _info(client: redis.Redis) -> dict[str, str]:
    return client.execute_command("CLUSTER INFO")  # type: ignore[return-value]


def _replicate(client: redis.Redis, master: str) -> bool:
    try:
        client.execute_command("CLUSTER REPLICATE", master)
    except redis.ResponseError:  # it has not heard of its master yet
        return False
    return True


def _linked(client: redis.Redis) -> bool:
    return client.info("replication").get("master_link_status") == "up"  # type: ignore[union-attr]


def _until(condition) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            pass
        assert time.monotonic() < end, "the Redis Cluster does not get well"
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    """Ports whose bus port (10,000 above) is free too."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] % 20000 + 20000
            try:
                with socket.socket() as exact:
                    exact.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found
