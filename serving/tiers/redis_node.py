"""One node of a Redis Cluster: a few connections, each with a thread, and a circuit breaker."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ClusterDownError, ResponseError
from redis.retry import Retry

from serving.tiers.breaker import Breaker
from serving.tiers.config import RedisStore
from serving.tiers.redis_keys import command

_FAIR_SECONDS = 0.005
"""A node that did not answer within less than this did not fail."""


class Credentials(CredentialProvider):
    """The user and password of a store, read for each new connection; never in a message or a log."""

    def __init__(self, config: RedisStore, read_password: Callable[[], str]):
        self._username = config.username
        self._read_password = read_password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._read_password()
        return (password,) if self._username is None else (self._username, password)


def connection_options(config: RedisStore, credentials: Credentials | None) -> dict[str, Any]:
    """Keyword arguments that redis-py's connections and clients share: no retries of their own."""
    options: dict[str, Any] = {
        "socket_timeout": config.connect_ms / 1e3,
        "socket_connect_timeout": config.connect_ms / 1e3,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if credentials is not None:
        options["credential_provider"] = credentials
    if config.tls and config.tls_ca_file is not None:
        options["ssl_ca_certs"] = str(config.tls_ca_file)
    return options


class Node:
    """Sends commands to one node. Thread-safe."""

    def __init__(
        self,
        host: str,
        port: int,
        config: RedisStore,
        credentials: Credentials | None,
        probe: Callable[["Node"], None],
    ):
        self.name = f"{host}:{port}"
        self.breaker = Breaker(
            f"Redis node {self.name}",
            lambda: probe(self),
            failures_to_open=config.failures_to_open,
            pause_s=config.probe_ms / 1e3,
        )
        self._connection_class = redis.SSLConnection if config.tls else redis.Connection
        self._options = {"host": host, "port": port, **connection_options(config, credentials)}
        self._pool = ThreadPoolExecutor(config.connections_per_node, thread_name_prefix=f"redis {self.name}")
        self._own = threading.local()
        self._run_id: bytes | None = None

    def submit(self, commands: Sequence[bytes], deadline: float | None) -> Future[list[Any]]:
        """Runs `ask` on one of the node's threads."""
        return self._pool.submit(self.ask, commands, deadline)

    def ask(self, commands: Sequence[bytes], deadline: float | None) -> list[Any]:
        """The answers that came until the deadline, in order; Redis's errors are answers.

        A node that fails is reported to its breaker, and the answers end there.
        """
        started, answers = time.monotonic(), []
        if deadline is not None and started >= deadline:
            return answers
        try:
            self._exchange(commands, deadline, answers)
        except redis.TimeoutError:
            if deadline is None or deadline - started >= _FAIR_SECONDS:
                self.breaker.failed("it does not answer in time", at_once=False)
            return answers
        except (redis.RedisError, OSError) as error:
            self.breaker.failed(str(error), at_once=True)
            return answers
        down = next((a for a in answers if isinstance(a, ClusterDownError)), None)
        if down is None:
            self.breaker.succeeded()
        else:
            self.breaker.failed(str(down), at_once=True)
        return answers

    def look(self) -> None:
        """For a probe: whether the node answers on a new connection. Raises what redis-py raises."""
        connection = self._connection_class(**self._options)
        try:
            connection.connect()
            self._run_id = _run_id(connection)
        finally:
            connection.disconnect()

    def close(self) -> None:
        self.breaker.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _exchange(self, commands: Sequence[bytes], deadline: float | None, answers: list[Any]) -> None:
        connection = getattr(self._own, "connection", None)
        fresh = connection is None
        if connection is None:
            connection = self._own.connection = self._connect()
        data = [b"".join(commands)]
        try:
            connection.send_packed_command(data, check_health=False)
            self._read(connection, len(commands), deadline, answers)
        except redis.TimeoutError:
            self._drop(connection)
            raise
        except (redis.ConnectionError, OSError):
            self._drop(connection)
            if fresh or answers:
                raise
            # An idle connection may have been closed by the server, which is no failure.
            connection = self._own.connection = self._connect()
            connection.send_packed_command(data, check_health=False)
            self._read(connection, len(commands), deadline, answers)

    def _read(self, connection: Any, count: int, deadline: float | None, answers: list[Any]) -> None:
        for _ in range(count):
            options = {}
            if deadline is not None:
                options["timeout"] = deadline - time.monotonic()
                if options["timeout"] <= 0:
                    raise redis.TimeoutError("the deadline passed")
            try:
                answers.append(connection.read_response(**options))
            except ResponseError as error:
                answers.append(error)

    def _connect(self) -> Any:
        connection = self._connection_class(**self._options)
        connection.connect()
        run_id = _run_id(connection)
        if self._run_id not in (None, run_id):
            # It may have come back without some of its rows: the probe looks.
            connection.disconnect()
            raise redis.ConnectionError("it was restarted")
        self._run_id = run_id
        return connection

    def _drop(self, connection: Any) -> None:
        connection.disconnect()
        self._own.connection = None


def _run_id(connection: Any) -> bytes:
    """A number that a node draws when it starts."""
    connection.send_packed_command([command(b"INFO", b"server")], check_health=False)
    lines = connection.read_response().split(b"\r\n")
    return next((line for line in lines if line.startswith(b"run_id:")), b"")
