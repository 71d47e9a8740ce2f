"""The process under test: answers a bundle's requests and says what they cost.

It reads commands from standard input, a line each, and answers each with a line of JSON. `run N` predicts N
requests in this process; with `--serve` the requests come over gRPC from outside and `report` asks for the
counters. Ends when its input does.
"""

import argparse
import ctypes
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from serving import memory
from serving.allocator import running_allocator
from serving.grpc_server import Server, ServerOptions
from serving.model import Model
from serving.validation import validate


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of the process, from its start; seconds of the last `run`."""

    allocator: str
    memory: memory.MemorySnapshot
    counted_allocations: int
    counted_bytes: int
    cpu_s: float
    run_s: float = 0.0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: where the process listens, if it serves."""

    address: str = ""


def read_requests(path: Path) -> list[dict[str, np.ndarray]]:
    """Requests of an .npz file whose arrays are named `<request>/<feature>`, as `jaxrank convert --examples`
    reads them."""
    with np.load(path) as stored:
        found: dict[str, dict[str, np.ndarray]] = {}
        for name in stored.files:
            number, _, feature = name.partition("/")
            value = stored[name]
            found.setdefault(number, {})[feature] = value.astype(object) if value.dtype.kind == "S" else value
    return list(found.values())


def report(run_s: float = 0.0) -> Report:
    """Counters now; the counting library must be preloaded."""
    counted = (ctypes.c_uint64 * 2)()
    ctypes.CDLL(None).jaxrank_allocations(counted)
    return Report(
        allocator=str(running_allocator()),
        memory=memory.snapshot(),
        counted_allocations=counted[0],
        counted_bytes=counted[1],
        cpu_s=time.process_time(),
        run_s=run_s,
    )


def _say(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def _predict(model: Model, requests: Iterator[dict[str, np.ndarray]], number: int) -> float:
    start = time.perf_counter()
    for request in itertools.islice(requests, number):
        model.predict(request)
    return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("path", type=Path, help="bundle; with --serve, a directory of models")
    parser.add_argument("requests", type=Path, help="requests, .npz")
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        server = Server(ServerOptions(models=arguments.path, host="127.0.0.1", port=0))
        _say(Ready(address=server.address))
        for _ in sys.stdin:
            _say(report())
        server.stop()
        return
    model = Model.load(arguments.path)
    checked = [
        validate(r, model.manifest.signature, model.manifest.max_candidates)
        for r in read_requests(arguments.requests)
    ]
    requests = itertools.cycle(checked)
    _say(Ready())
    for line in sys.stdin:
        _say(report(_predict(model, requests, int(line.split()[1]))))
    model.close()


if __name__ == "__main__":
    main()
