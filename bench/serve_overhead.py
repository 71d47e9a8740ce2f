"""What a request costs the server beside its two programs: `python -m bench.serve_overhead MODELS_DIR`.

jaxrank's server in this process, with the clock of each thread read around the host program and around every
call of the dense program. Each line on its input is answered with the CPU time so far (`Spent`): what the
process took beyond these two is the wire, decoding, checks, scheduling and Python.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from serving.engines.streams import Stream
from serving.grpc_server import Server, ServerOptions
from serving.host import HostProgramRunner


class Spent(msgspec.Struct, frozen=True):
    """CPU microseconds since the start, and requests that were answered."""

    process: float
    host: float
    dense: float
    requests: int

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(
            self.process - earlier.process,
            self.host - earlier.host,
            self.dense - earlier.dense,
            self.requests - earlier.requests,
        )

    @property
    def overhead_us(self) -> float:
        """Of each request."""
        return (self.process - self.host - self.dense) / self.requests


class _Clock:
    """CPU time of every thread inside of one function."""

    def __init__(self) -> None:
        self.ns, self.calls = 0, 0
        self._lock = threading.Lock()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time_ns() - start
                with self._lock:
                    self.ns += spent
                    self.calls += 1

        return timed


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    host, request_side, dense = _Clock(), _Clock(), _Clock()
    # A request is one call of `run` or, where its side is kept, of `rank`.
    HostProgramRunner.run = host.around(HostProgramRunner.run)
    HostProgramRunner.rank = host.around(HostProgramRunner.rank)
    HostProgramRunner.prepare = request_side.around(HostProgramRunner.prepare)
    Stream.run = dense.around(Stream.run)
    server = Server(ServerOptions(models=Path(sys.argv[1]), host="127.0.0.1", port=0, poll_seconds=0))
    print(f"serving on {server.address}:", flush=True)
    for _ in sys.stdin:
        in_host = host.ns + request_side.ns
        spent = Spent(time.process_time_ns() / 1e3, in_host / 1e3, dense.ns / 1e3, host.calls)
        print(msgspec.json.encode(spent).decode(), flush=True)
    server.stop()


if __name__ == "__main__":
    main()
