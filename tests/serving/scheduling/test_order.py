"""Which job goes first: priority, then the key that was served least, then the deadline."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.scheduling.costs import Costs
from serving.scheduling.jobs import Job
from serving.scheduling.order import PROOF_SHARE, Waiting
from serving.scheduling.urgency import PATIENCE, PROOF, SHADOW, Urgency


def _job(key: str, deadline: float = math.inf, priority: int = 0) -> Job:
    return Job(key, Urgency(deadline, priority), 1, None, lambda job, stream: None)


def _first(waiting: Waiting) -> Job:
    return next(waiting.in_order(0.0))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=20))
def test_a_keys_jobs_go_by_priority_deadline_and_arrival(urgencies: list[tuple[int, int]]) -> None:
    waiting, jobs = Waiting(1), [_job("m", deadline, priority) for priority, deadline in urgencies]
    for job in jobs:
        waiting.add(job)
    order = []
    while waiting:
        order.append(_first(waiting))
        waiting.remove(order[-1])
    assert order == sorted(jobs, key=lambda j: (-j.urgency.priority, j.urgency.deadline))


def test_priority_goes_before_fairness() -> None:
    waiting, low, high = Waiting(1), _job("served little"), _job("served much", priority=1)
    waiting.charge(_job("served much"), 9.0)
    waiting.add(low)
    waiting.add(high)
    assert _first(waiting) is high


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5), st.integers(20, 60))
def test_keys_share_the_time_whatever_their_calls_take(seconds: list[float], rounds: int) -> None:
    """While all have work, no two differ by more than a call of each."""
    waiting = Waiting(1)
    served = dict.fromkeys(map(str, range(len(seconds))), 0.0)
    for key in served:
        waiting.add(_job(key, deadline=float(key)))
    for _ in range(rounds):
        key = str(_first(waiting).key)
        waiting.charge(_job(key), seconds[int(key)])
        served[key] += seconds[int(key)]
    assert max(served.values()) - min(served.values()) <= 2 * max(seconds) + 1e-9


def test_idleness_earns_nothing() -> None:
    """One that comes back after a while does not keep the others waiting for as long as it was away."""
    waiting, busy, back = Waiting(1), _job("busy"), _job("back")
    waiting.add(busy)
    waiting.charge(busy, 100.0)
    waiting.add(back)
    waiting.charge(back, 0.5)
    assert _first(waiting) is busy


@settings(deadline=None, max_examples=30)
@given(st.floats(0.002, 0.02), st.floats(0.002, 0.02), st.integers(1, 4), st.booleans())
def test_a_version_that_proves_itself_has_a_share(
    call: float, proof: float, streams: int, idle_before: bool
) -> None:
    """Of the time of all streams, whatever the calls take and however long it had all of the time before; a
    version that is only compared has none."""
    waiting, now, ends = Waiting(streams), 100.0, [100.0] * streams
    proving, seconds = _job("proof", priority=PROOF), {"clients": call, "proof": proof}
    waiting.add(proving)
    if idle_before:
        waiting.charge(proving, 100.0)
    waiting.add(_job("clients"))
    waiting.add(_job("shadow", priority=SHADOW))
    spent = 0.0
    while now < 120.0:
        now, stream = min((end, n) for n, end in enumerate(ends))
        job = next(waiting.in_order(now))
        waiting.charge(job, seconds[str(job.key)])
        ends[stream] = now + seconds[str(job.key)]
        spent += proof * (job is proving)
    assert abs(spent / (20.0 * streams) - PROOF_SHARE) < 0.015


def test_a_job_without_a_deadline_does_not_starve() -> None:
    waiting, patient, soon, later = Waiting(1), _job("m"), _job("m", PATIENCE - 1), _job("m", PATIENCE + 2)
    later.arrived = PATIENCE + 1
    for job in (later, patient, soon):
        waiting.add(job)
    assert list(waiting.of("m")) == [soon, patient, later]


def test_costs_follow_what_ran() -> None:
    costs = Costs()
    assert costs.seconds("m", 100) == 0.0
    costs.observe("m", 100, 1.0, 4)
    assert math.isclose(costs.seconds("m", 50), 0.5) and math.isclose(costs.seconds("m"), 1.0)
    for _ in range(200):
        costs.observe("m", 10, 0.2, 1)
    assert math.isclose(costs.seconds("m", 50), 1.0, rel_tol=0.01)
    assert math.isclose(costs.seconds("m"), 0.2, rel_tol=0.05)


def test_calls_are_as_large_as_those_that_ran() -> None:
    """A model that is cut into slices has more calls for more candidates; one that mixes them has one."""
    costs = Costs()
    assert costs.calls("sliced", 1000) == 1
    for rows, calls in ((30, 1), (200, 4), (64, 1)):
        costs.observe("sliced", rows, 1.0, calls)
        costs.observe("mixing", rows, 1.0, 1)
    assert [costs.calls("sliced", rows) for rows in (1, 64, 65, 640)] == [1, 1, 2, 10]
    assert costs.calls("mixing", 200) == costs.calls("mixing") == 1
    costs.forget("sliced")
    assert costs.calls("sliced", 1000) == 1
