"""What a request costs the server beside its two programs: `python -m bench.serve_overhead MODELS_DIR`.

jaxrank's server in this process with its default engine and the allocator of `jaxrank serve`, the clock of
each thread read around the native host program and around every invocation of a compiled function. Each line
on its input is answered with the CPU time so far (`Spent`): what the process took beyond these two is gRPC,
decoding, checks, moving data to and from the device's buffers, scheduling and Python. Threads that help a
host program count as overhead, too.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iree.runtime as rt
import msgspec

from serving.allocator import decide, running_allocator, start_again
from serving.grpc_server import Server, ServerOptions
from serving.native import _core


class Spent(msgspec.Struct, frozen=True):
    """CPU microseconds since the start, requests that were answered, and bytes that these copied by the
    steps of the copy budget (docs/monitoring.md)."""

    process: float
    host: float
    dense: float
    requests: int
    copied: int

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(
            self.process - earlier.process,
            self.host - earlier.host,
            self.dense - earlier.dense,
            self.requests - earlier.requests,
            self.copied - earlier.copied,
        )

    @property
    def overhead_us(self) -> float:
        """Of each request."""
        return (self.process - self.host - self.dense) / self.requests


class _Clock:
    """CPU time of every thread inside of one method, which it takes the place of."""

    def __init__(self, owner: type, name: str) -> None:
        self.ns = 0
        self._lock = threading.Lock()
        setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.thread_time_ns()
            try:
                return method(*args)
            finally:
                spent = time.thread_time_ns() - start
                with self._lock:
                    self.ns += spent

        return timed


def main() -> None:
    decision = decide("auto", os.environ, running_allocator())
    if decision.environment is not None:
        raise SystemExit(start_again(decision.environment))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Neither calls the other: nothing is counted twice.
    host, dense = _Clock(_core.HostProgram, "run"), _Clock(rt.VmContext, "invoke")
    options = ServerOptions(models=Path(sys.argv[1]), host="127.0.0.1", port=0, poll_seconds=0, engine="iree")
    server = Server(options)
    print(f"serving on {server.address}:", flush=True)
    for _ in sys.stdin:
        counts = server._monitor.counts.of_versions().values()
        spent = Spent(
            time.process_time_ns() / 1e3,
            host.ns / 1e3,
            dense.ns / 1e3,
            sum(c.success for c in counts),
            sum(sum(c.copied) for c in counts),
        )
        print(msgspec.json.encode(spent).decode(), flush=True)
    server.stop()


if __name__ == "__main__":
    main()
