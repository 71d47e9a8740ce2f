"""`jaxrank serve` as a process of its own, and what can be seen of it from outside."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.client import PredictClient
from tests.shared import killed

JAXRANK = str(Path(sys.executable).parent / "jaxrank")


class ServerProcess:
    """A running server: its addresses, its log, and its process."""

    def __init__(self, process: subprocess.Popen, rest_port: int):
        """Returns when the server says that it serves."""
        self.process, self.log = process, []
        self.rest = ("127.0.0.1", rest_port)
        self._stderr = process.stderr
        assert self._stderr is not None
        for line in self._stderr:
            self.log.append(line)
            if found := re.search(r"serving on (\S+):(\d+): ", line):
                self.address = f"{found[1]}:{found[2]}"
                self.grpc = (found[1], int(found[2]))
                break
        else:
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=lambda: self.log.extend(self._stderr or ()), daemon=True)
        self._reader.start()

    def client(self) -> PredictClient:
        """A client with a connection of its own."""
        return PredictClient(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def rss_mib(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    def open_files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def faults(self) -> list[str]:
        """Lines of the log that tell of a fault of ours."""
        return [line for line in self.log if "Traceback" in line or "request failed, error" in line]


@contextmanager
def serve(
    models: Path,
    *options: str,
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """A server of a models directory, gRPC and HTTP on free ports. `before` is a command that runs it."""
    rest = free_port()
    command = [*before, JAXRANK, "serve", str(models), "--host", "127.0.0.1", "--port", "0"]
    command += ["--rest-api-port", str(rest), "--jemalloc", "off", *options]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    with killed(process):
        yield ServerProcess(process, rest)


def free_port() -> int:
    """A TCP port that was free just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something is so."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it never was so"
        time.sleep(0.05)
