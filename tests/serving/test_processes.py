"""Several server processes on one port: kills, drains, and refusals to start."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.numa import nodes_of
from serving.processes import Share, Supervisor, WorkersError, shares_of
from serving.wire.reflection import MODEL_SERVICE
from tests import models
from tests.shared import killed

JAXRANK = str(Path(sys.executable).parent / "jaxrank")
CLIENTS, REQUESTS = 6, 60


@contextmanager
def _serve(models_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """A supervisor, its address, and its log, which grows."""
    command = [JAXRANK, "serve", str(models_dir), "--host", "127.0.0.1", "--port", "0", "--workers", "2"]
    with killed(subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)) as process:
        stderr, lines = process.stderr, []
        assert stderr is not None
        address = ""
        for line in stderr:
            lines.append(line)
            if found := re.search(r"all 2 workers serve on (\S+)", line):
                address = found[1]
                break
        reader = threading.Thread(target=lambda: lines.extend(stderr), daemon=True)
        reader.start()
        try:
            yield process, address, lines
        finally:
            process.terminate()
            process.wait(30)
            reader.join(30)


def _children(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def _connect(address: str) -> PredictClient:
    """A client with a connection of its own, which the channels of a process otherwise share."""
    return PredictClient(address, [("grpc.use_local_subchannel_pool", 1)])


def _eventually(true) -> None:  # noqa: ANN001
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(models_dir: Path) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    with _serve(models_dir) as running:
        yield running


def test_the_cores_are_divided(fleet: tuple) -> None:
    cores = sorted(os.sched_getaffinity(0))
    theirs = [os.sched_getaffinity(pid) for pid in _children(fleet[0])]
    assert len(theirs) == 2 and theirs[0] | theirs[1] <= set(cores)
    assert len(cores) == 1 or not theirs[0] & theirs[1]
    assert [share.cores for share in shares_of(range(8), 3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [share.cores for share in shares_of([4, 5], 3)] == [[4], [5], [4]]


def test_numa_nodes_are_divided(tmp_path: Path) -> None:
    for node, cores in (("node0", "0-2,6"), ("node1", "3-5,7\n"), ("node10", "8"), ("node2", "\n")):
        (tmp_path / "sys/devices/system/node" / node).mkdir(parents=True)
        (tmp_path / "sys/devices/system/node" / node / "cpulist").write_text(cores)
    nodes = nodes_of(range(8), tmp_path)
    assert nodes == {0: [0, 1, 2, 6], 1: [3, 4, 5, 7]}
    assert shares_of(range(8), 4, nodes) == [
        Share([0, 1], 0), Share([2, 6], 0), Share([3, 4], 1), Share([5, 7], 1),
    ]  # fmt: skip
    with pytest.raises(WorkersError, match="3 workers cannot be divided over 2 NUMA nodes; give --workers 2"):
        shares_of(range(8), 3, nodes)
    assert shares_of(range(2), 1, nodes_of(range(2), tmp_path / "none")) == [Share([0, 1])]


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
def test_a_worker_takes_memory_of_its_node() -> None:
    """Node 0 is there on every machine, and the supervisor goes back to what it had."""
    worker = """
print(open("/proc/self/numa_maps").read().split()[1] + "\\n", end="", flush=True)
member.wait_for_others()
member.serving(when_alone=alone.set)
alone.wait()
"""
    with killed(_supervise(worker, node=0)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [process.stdout.readline() for _ in range(2)] == ["prefer:0\n"] * 2
        own = Path(f"/proc/{process.pid}/numa_maps").read_text()
        assert "prefer:" not in own


def test_root_is_warned_once(fleet: tuple) -> None:
    warned = [line for line in fleet[2] if "running as root" in line]
    assert len(warned) == (os.geteuid() == 0)


def test_a_call_that_would_reach_one_worker_is_refused(fleet: tuple) -> None:
    with grpc.insecure_channel(fleet[1]) as channel, pytest.raises(grpc.RpcError, match="--workers 1") as no:
        channel.unary_unary(f"/{MODEL_SERVICE}/HandleReloadConfigRequest")(b"", timeout=20)
    assert no.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_killed_worker_loses_only_its_requests_in_flight(fleet: tuple) -> None:
    """Clients that retry what is UNAVAILABLE: each connection breaks at most once, every answer is right, and
    there are two workers again afterwards."""
    process, address, log = fleet
    features = [models.ranker_request(20, seed) for seed in range(4)]
    first = PredictClient(address)
    expected = [first.predict("ranker", f)["click"] for f in features]
    first.close()
    lost, wrong = [0] * CLIENTS, []
    halfway = threading.Barrier(CLIENTS + 1)

    def use(number: int) -> None:
        client = _connect(address)
        for turn in range(REQUESTS):
            if turn == REQUESTS // 3:
                halfway.wait(60)
            for _ in range(3):
                try:
                    found = client.predict("ranker", features[turn % 4])["click"]
                    break
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
                    lost[number] += 1
                    time.sleep(0.05)
            if not np.array_equal(found, expected[turn % 4]):
                wrong.append((number, turn))
        client.close()

    threads = [threading.Thread(target=use, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    before = set(_children(process))
    halfway.wait(60)
    os.kill(min(before), signal.SIGKILL)
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong and max(lost) <= 1
    _eventually(lambda: any("ended with signal SIGKILL; started again in 0.1 s" in line for line in log))
    _eventually(lambda: len([line for line in log if "worker" in line and "serving on" in line]) == 3)
    assert len(set(_children(process)) & before) == 1 and len(_children(process)) == 2


def test_a_signal_drains_all_workers(fleet: tuple) -> None:
    process, address, log = fleet
    client = PredictClient(address)
    answers: list[dict] = []
    features = models.ranker_request(5000, 1)
    client.predict("ranker", features)
    request = threading.Thread(target=lambda: answers.append(client.predict("ranker", features)))
    request.start()
    process.send_signal(signal.SIGTERM)
    request.join(30)
    assert process.wait(30) == 0, "".join(log)
    assert [len(a["click"]) for a in answers] == [5000]
    _eventually(lambda: len([line for line in log if "stopped" in line]) == 2)
    client.close()


_SUPERVISOR = """
import sys
from serving import processes
processes._LAST_DELAY = 0.5
supervisor = processes.Supervisor(
    [processes.Share((), NODE)] * 2, host="127.0.0.1", port=0, rest_port=0, grace_seconds=1,
    command=[sys.argv[1], "-c", *sys.argv[2:]],
)
print(supervisor.port, supervisor.rest_port, flush=True)
sys.exit(supervisor.run())
"""
_WORKER = """
import os, sys, threading
from serving.processes import Member
alone = threading.Event()
member = Member.from_environment(os.environ)
"""


def _supervise(
    worker: str, *arguments: str, node: int | None = None, python: str = sys.executable
) -> subprocess.Popen:
    """A supervisor of two small workers that keep its protocol."""
    supervisor = _SUPERVISOR.replace("NODE", repr(node))
    command = [sys.executable, "-c", supervisor, python, _WORKER + worker, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_workers_end_with_their_supervisor() -> None:
    worker = """
member.wait_for_others()
member.serving(when_alone=alone.set)
print("serving\\n", end="", flush=True)
alone.wait()
"""
    with killed(_supervise(worker)) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert said[1:] == ["serving\n"] * 2
        workers = _children(process)
        process.kill()
        assert len(workers) == 2
        _eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """Its program is gone for a while, as memory or process numbers may be; the other worker goes on."""
    worker = """
member.wait_for_others()
member.serving(when_alone=alone.set)
print(f"{os.getpid()}\\n", end="", flush=True)
alone.wait()
"""
    python, hidden = tmp_path / "python", tmp_path / "hidden"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with killed(_supervise(worker, python=str(python))) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        first, second = (int(process.stdout.readline()) for _ in range(2))
        python.rename(hidden)
        os.kill(first, signal.SIGKILL)
        assert any(
            re.search(r"cannot start: .*python.*; tried again in 0.5 s", line) for line in process.stderr
        )
        assert Path(f"/proc/{second}/exe").exists()
        hidden.rename(python)
        assert int(process.stdout.readline()) not in (first, second)


def test_none_answers_before_all_can(tmp_path: Path) -> None:
    """One worker is slow to load; the other one waits for it."""
    worker = """
from pathlib import Path
if member.place.index == 1:
    while not Path(sys.argv[1]).exists():
        alone.wait(0.05)
print("loaded\\n", end="", flush=True)
member.wait_for_others()
member.serving(when_alone=alone.set)
print(f"serving {Path(sys.argv[1]).exists()}\\n", end="", flush=True)
alone.wait()
"""
    with killed(_supervise(worker, str(tmp_path / "go on"))) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.stdout.readline() == "loaded\n"
        (tmp_path / "go on").touch()
        assert [process.stdout.readline() for _ in range(3)] == ["loaded\n", *["serving True\n"] * 2]


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        ("sys.exit('no such directory')", "status 1 before all workers were ready"),
        ("os.kill(os.getpid(), 9)", "signal SIGKILL before all workers were ready"),
        (
            """
member.wait_for_others()
try:
    open(sys.argv[1], "x")
except FileExistsError:
    if os.path.exists(sys.argv[1] + str(member.place.index)):
        sys.exit("broken since it was started")
open(sys.argv[1] + str(member.place.index), "x")
member.serving(when_alone=alone.set)
alone.wait(1)
sys.exit(3)
""",
            "no worker serves after 5 attempts",
        ),
    ],
)
def test_workers_that_do_not_start_end_the_server(worker: str, words: str, tmp_path: Path) -> None:
    process = _supervise(worker, str(tmp_path / "started"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and words in stderr


def test_a_socket_cannot_be_shared(models_dir: Path) -> None:
    from typer.testing import CliRunner

    from jaxrank.cli import app

    options = ["--workers", "2", "--grpc-socket-path", "/x", "--jemalloc", "off"]
    done = CliRunner().invoke(app, ["serve", str(models_dir), *options])
    assert done.exit_code == 2 and "one process at a time" in re.sub(r"[│\s]+", " ", done.stderr)


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_in_use(shares: bool) -> None:
    """Also one whose server shares it with others of its own."""
    with socket.socket() as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkersError, match=f"cannot listen on 127.0.0.1:{port}"):
            Supervisor([Share(())] * 2, host="127.0.0.1", port=port, rest_port=None, grace_seconds=1)
