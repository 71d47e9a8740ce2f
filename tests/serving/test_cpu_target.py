"""The bucket of `--cpu-target` on a simulated clock, on this process's CPU time, and in a real server."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.background import background_seconds, in_background
from serving.client import PredictClient
from serving.cores import capacity
from serving.cpu_target import CpuTarget
from serving.errors import OverloadedError
from serving.scheduling import PROOF, Urgency
from tests.serving.scraping import scraped, value

CORES, SHARE = 4.0, 0.7


class Server:
    """Requests of a CPU cost each, answered where the target allows it; nothing here takes time."""

    def __init__(self) -> None:
        self.now = self.used = 0.0
        self.target = CpuTarget(CORES, SHARE, clock=lambda: self.now, used=lambda: self.used)
        self.answered: Counter[int] = Counter()

    def second(self, cost: float, rates: dict[int, int]) -> float:
        """One second of so many requests by priority. Returns the share of the cores that was used."""
        before = self.used
        requests = sorted((i / rate, priority) for priority, rate in rates.items() for i in range(rate))
        began = self.now
        for at, priority in requests:
            self.now = began + at
            try:
                self.target.check(Urgency(priority=priority))
            except OverloadedError as error:
                assert error.reason == "cpu_target" and "70% of 4 CPUs" in str(error)
                continue
            self.used += cost
            self.answered[priority] += 1
        self.now = began + 1
        return (self.used - before) / CORES


@pytest.mark.parametrize("rate", [500, 2000])
def test_use_stays_under_the_target_whatever_comes(rate: int) -> None:
    """Up to the burst at the beginning; and as much as the target allows is answered."""
    server = Server()
    used = [server.second(0.01, {0: rate}) for _ in range(30)]
    assert np.mean(used[5:]) == pytest.approx(SHARE, abs=0.02)
    assert max(used[5:]) < SHARE + 0.05


def test_less_than_the_target_is_never_refused() -> None:
    server = Server()
    for _ in range(30):
        server.second(0.01, {0: 270, -1: 5})
    assert server.answered == {0: 30 * 270, -1: 30 * 5}


def test_low_priority_is_refused_first_and_high_last() -> None:
    server = Server()
    for _ in range(30):
        server.second(0.01, {1: 50, 0: 1000, -1: 1000})
    assert server.answered[1] == 30 * 50
    assert server.answered[-1] < 0.1 * server.answered[0]


def test_a_debt_is_bounded() -> None:
    """Whatever happened, two seconds later requests are answered again."""
    server = Server()
    server.second(1000.0, {0: 1})
    with pytest.raises(OverloadedError):
        server.target.check(Urgency())
    server.now += 2.1
    server.target.check(Urgency())


def _burn(seconds: float) -> None:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        sum(range(1000))


def test_work_of_low_priority_does_not_count() -> None:
    """A version that loads must not cost requests."""
    target = CpuTarget(1.0, 0.01)  # 20 ms may be used at once
    before = background_seconds()
    in_background(_burn, 0.3)
    assert 0.3 <= background_seconds() - before < 0.6
    target.check(Urgency())
    _burn(0.3)
    with pytest.raises(OverloadedError):
        target.check(Urgency())


def test_background_work_is_counted_while_it_runs() -> None:
    burnt, done = threading.Event(), threading.Event()

    def work() -> None:
        _burn(0.05)
        burnt.set()
        done.wait(60)

    before = background_seconds()
    thread = threading.Thread(target=in_background, args=(work,))
    thread.start()
    try:
        assert burnt.wait(60)
        assert background_seconds() - before >= 0.05
    finally:
        done.set()
        thread.join()


def test_without_a_target_nothing_is_refused() -> None:
    target = CpuTarget(0.001)
    _burn(0.05)
    target.check(Urgency(priority=PROOF))


def test_a_server_refuses_beyond_its_target(example_models: Path, start_server: Callable) -> None:
    """Of a server whose target is less than its own threads take."""
    server = start_server(example_models / "models", rest_port=0, cpu_target=1e-4)
    client = PredictClient(server.address)
    _burn(0.05)
    with pytest.raises(grpc.RpcError, match="--cpu-target") as refused:
        for _ in range(100):
            client.predict("half_plus_three", {"x": np.ones(1, np.float32)})
    client.close()
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    of = {"model": "half_plus_three", "version": "1", "reason": "cpu_target"}
    assert value(scraped(server), "jaxrank_refusals_total", **of) == 1


@pytest.mark.parametrize(
    ("quota", "processes", "cores"),
    [("150000 100000", 1, 1.5), ("20000 100000", 2, 0.1), ("max 100000", 1, None)],
)
def test_the_cores_are_those_of_the_control_group(
    tmp_path: Path, quota: str, processes: int, cores: float | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{quota}\n")
    everything = capacity(tmp_path / "nowhere")
    assert capacity(tmp_path, processes) == min(cores or everything, everything)
