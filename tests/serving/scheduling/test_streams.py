"""Each call has a stream for itself, urgent requests go first, and small ones share calls."""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from serving.cores import affinity
from serving.errors import CancelledError, DeadlineError, OverloadedError
from serving.scheduling import ANY_TIME, Job, SchedulingOptions, StreamScheduler, Urgency
from serving.scheduling.streams import _level

PATIENCE = 30.0  # seconds; a test that waits so long has failed


@contextmanager
def _scheduler(streams: int = 1, **options: Any) -> Iterator[StreamScheduler]:
    scheduler = StreamScheduler(streams, on_cpu=True, options=SchedulingOptions(**options))
    try:
        yield scheduler
    finally:
        scheduler.close()


def _job(
    begin: Callable[[Job, int], Any],
    key: object = "model",
    urgency: Urgency = ANY_TIME,
    rows: int = 1,
    shared_rows: int = 0,
) -> Job:
    """Its result is what `begin` returns, for each member."""

    def run(job: Job, stream: int) -> None:
        found = begin(job, stream)
        job.finish = lambda: [found] * len(job.members)

    return Job(key, urgency, rows, None, run, shared_rows=shared_rows)


class Started:
    """A request on a thread of its own."""

    def __init__(self, scheduler: StreamScheduler, job: Job):
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(scheduler, job))
        self._thread.start()

    def _run(self, scheduler: StreamScheduler, job: Job) -> None:
        try:
            self.result = scheduler.run(job)
        except Exception as error:
            self.error = error

    def end(self) -> "Started":
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self


@contextmanager
def _busy(scheduler: StreamScheduler, key: object = "busy") -> Iterator[None]:
    """The only stream runs something until the block ends."""
    running, go_on = threading.Event(), threading.Event()
    other = Started(scheduler, _job(lambda job, stream: (running.set(), go_on.wait(PATIENCE)), key))
    assert running.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        other.end()


def _wait_for(scheduler: StreamScheduler, waiting: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(scheduler._waiting) < waiting:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a deadline goes after those with a deadline as far as tests have."""
    monkeypatch.setattr("serving.scheduling.urgency.PATIENCE", 2 * PATIENCE)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are pinned on Linux only")
def test_a_caller_is_lent_the_stream_of_its_core() -> None:
    """Whatever was lent last, and whichever core the thread moves to; each stream was opened on its core."""
    lent: list[tuple[int, int]] = []
    with _scheduler(affinity()) as scheduler:
        opened = scheduler.on_each(lambda stream: os.sched_getaffinity(0))

        def borrow() -> None:
            for core in sorted(os.sched_getaffinity(0)) * 3:
                os.sched_setaffinity(0, {core})
                lent.append((core, scheduler.run(_job(lambda job, stream: stream))))

        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join()
    assert len(lent) == 3 * affinity()
    assert all(opened[stream] == {core} for core, stream in lent)


def test_no_stream_runs_two_calls() -> None:
    """Six threads with requests of one call and of many, on two streams; every call runs once."""
    held, guard, ran = set(), threading.Lock(), []

    def call(stream: int) -> None:
        with guard:
            assert stream not in held
            held.add(stream)
        ran.append(stream)
        time.sleep(1e-5)  # others run meanwhile
        with guard:
            held.remove(stream)

    def begin(job: Job, stream: int) -> None:
        call(stream)
        for _ in range(job.rows - 1):
            job.add(call)

    with _scheduler(2) as scheduler:

        def requests() -> None:
            for number in range(100):
                scheduler.run(_job(begin, rows=1 + number % 5))

        threads = [threading.Thread(target=requests) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ran) == 6 * sum(1 + n % 5 for n in range(100))
    assert set(ran) == {0, 1}


def test_calls_of_a_request_run_side_by_side() -> None:
    together = threading.Barrier(2)

    def begin(job: Job, stream: int) -> None:
        for _ in range(2):
            job.add(lambda stream: together.wait(PATIENCE) and None)

    with _scheduler(2) as scheduler:
        scheduler.run(_job(begin))


def test_a_caller_runs_its_own_calls_while_no_other_request_goes_first(patient: None) -> None:
    """Its stream is nobody's meanwhile. One that is more urgent comes during the second of four calls: the
    stream's own thread runs it, and what is left then."""
    threads: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def call(stream: int) -> None:
        threads.append(threading.get_ident())
        if len(threads) == 2:
            begun.set()
            go_on.wait(PATIENCE)

    def begin(job: Job, stream: int) -> None:
        call(stream)
        for _ in range(3):
            job.add(call)

    with _scheduler() as scheduler:
        own = Started(scheduler, _job(begin))
        assert begun.wait(PATIENCE)
        urgent = Started(
            scheduler,
            _job(lambda job, stream: threads.append(threading.get_ident()), urgency=Urgency.within(PATIENCE)),
        )
        _wait_for(scheduler, 2)  # the job with calls left, and this one
        go_on.set()
        urgent.end(), own.end()
        (stream,) = (thread.ident for thread in scheduler._threads)
    assert threads[0] == threads[1] != stream
    assert threads[2:] == [stream] * 3


def test_an_urgent_request_overtakes_the_calls_of_a_large_one(patient: None) -> None:
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def begin(job: Job, stream: int) -> None:
        begun.set()
        go_on.wait(PATIENCE)
        for _ in range(5):
            job.add(lambda stream: order.append("large"))

    with _scheduler() as scheduler:
        large = Started(scheduler, _job(begin))
        assert begun.wait(PATIENCE)
        urgent = Started(
            scheduler, _job(lambda job, stream: order.append("urgent"), urgency=Urgency.within(PATIENCE))
        )
        _wait_for(scheduler, 1)
        go_on.set()
        urgent.end(), large.end()
    assert order == ["urgent", *["large"] * 5]


def test_a_model_with_few_requests_is_not_kept_waiting_by_one_with_many() -> None:
    order: list[str] = []

    def named(key: str) -> Job:
        return _job(lambda job, stream: (order.append(key), time.sleep(0.002)), key=key)

    with _scheduler() as scheduler:
        with _busy(scheduler):
            many = [Started(scheduler, named("many")) for _ in range(20)]
            _wait_for(scheduler, 20)
            few = Started(scheduler, named("few"))
            _wait_for(scheduler, 21)
        for request in [*many, few]:
            request.end()
    assert order.index("few") <= 1


def test_waiting_requests_share_a_call() -> None:
    """Those that may; others, and what is over the bound, have calls of their own."""
    calls: list[int] = []
    with _scheduler(max_shared_rows=64) as scheduler:
        with _busy(scheduler):
            begin = lambda job, stream: calls.append(len(job.members))  # noqa: E731
            together = [Started(scheduler, _job(begin, shared_rows=16)) for _ in range(6)]
            alone = Started(scheduler, _job(begin))
            _wait_for(scheduler, 7)
        for request in [*together, alone]:
            assert request.end().error is None
    assert sorted(calls) == [1, 2, 4]


def test_a_request_waits_for_others_to_share_its_call() -> None:
    """As long as `max_delay`, and no longer than its deadline allows."""
    begin = lambda job, stream: len(job.members)  # noqa: E731
    with _scheduler(max_delay=PATIENCE, max_shared_rows=32) as scheduler:
        together = [Started(scheduler, _job(begin, shared_rows=16)) for _ in range(2)]
        assert [request.end().result for request in together] == [2, 2]
        assert scheduler.run(_job(begin)) == 1
    with _scheduler(max_delay=0.05) as scheduler:
        start = time.monotonic()
        assert scheduler.run(_job(begin, shared_rows=16)) == 1
        assert time.monotonic() - start >= 0.05


def test_members_of_a_shared_call_fail_together() -> None:
    def broken(job: Job, stream: int) -> None:
        raise ValueError(f"{len(job.members)} requests")

    with _scheduler() as scheduler:
        with _busy(scheduler):
            requests = [Started(scheduler, _job(broken, shared_rows=8)) for _ in range(3)]
            _wait_for(scheduler, 3)
        assert [str(request.end().error) for request in requests] == ["3 requests"] * 3
        assert scheduler.run(_job(lambda job, stream: "works")) == "works"


def test_calls_after_one_that_fails_are_dropped() -> None:
    ran = []

    def begin(job: Job, stream: int) -> None:
        job.add(lambda stream: 1 // 0)
        job.add(ran.append)

    with _scheduler() as scheduler, pytest.raises(ZeroDivisionError):
        scheduler.run(_job(begin))
    assert not ran


def test_a_request_whose_deadline_passes_costs_no_call() -> None:
    """It is answered at its deadline, while the stream is still busy."""
    ran: list[int] = []
    with _scheduler() as scheduler:
        with _busy(scheduler):
            late = Started(
                scheduler, _job(lambda job, stream: ran.append(stream), urgency=Urgency.within(0.02))
            )
            assert isinstance(late.end().error, DeadlineError)
        with pytest.raises(DeadlineError):
            scheduler.run(_job(lambda job, stream: ran.append(stream), urgency=Urgency.within(-1.0)))
        scheduler.run(_job(lambda job, stream: None))
    assert not ran


def test_a_cancelled_request_costs_no_call() -> None:
    ran: list[int] = []
    left, told = threading.Event(), SimpleQueue[Callable[[], None]]()
    urgency = Urgency(left=left.is_set, on_leave=told.put)
    with _scheduler() as scheduler:
        with _busy(scheduler):
            request = Started(scheduler, _job(lambda job, stream: ran.append(stream), urgency=urgency))
            callback = told.get(timeout=PATIENCE)
            left.set()
            callback()  # it ends while the stream is still busy
            assert isinstance(request.end().error, CancelledError)
        callback()
        with pytest.raises(CancelledError):
            scheduler.run(_job(lambda job, stream: ran.append(stream), urgency=urgency))
    assert not ran


def test_no_more_wait_than_may() -> None:
    with _scheduler(max_waiting=3) as scheduler:
        with _busy(scheduler):
            waiting = [Started(scheduler, _job(lambda job, stream: "done")) for _ in range(3)]
            _wait_for(scheduler, 3)
            with pytest.raises(OverloadedError, match="3 requests wait already"):
                scheduler.run(_job(lambda job, stream: None))
            with pytest.raises(OverloadedError):
                scheduler.refuse_late("model", ANY_TIME)
        assert [request.end().result for request in waiting] == ["done"] * 3


def test_what_would_be_late_is_refused_at_once() -> None:
    """By what requests took before: 20 ms for each row."""
    with _scheduler() as scheduler:
        scheduler.run(_job(lambda job, stream: time.sleep(0.2), rows=10))
        with pytest.raises(OverloadedError, match=r"would take \d+ ms .* deadline is in \d+ ms"):
            scheduler.run(_job(lambda job, stream: None, rows=100, urgency=Urgency.within(1.0)))
        scheduler.run(_job(lambda job, stream: None, rows=10, urgency=Urgency.within(PATIENCE)))
        with _busy(scheduler):
            waiting = [Started(scheduler, _job(lambda job, stream: None, rows=50)) for _ in range(3)]
            _wait_for(scheduler, 3)
            urgent = Urgency.within(2.0)
            scheduler.refuse_late("another", urgent)
            with pytest.raises(OverloadedError):
                scheduler.refuse_late("model", Urgency.within(0.01))
        for request in waiting:
            request.end()


def test_one_call_that_took_long_is_forgotten() -> None:
    """On a device that does nothing, where every request would be refused by what that one took."""
    with _scheduler() as scheduler:
        scheduler.run(_job(lambda job, stream: time.sleep(1.0)))
        answered = 0
        for _ in range(400):
            with suppress(OverloadedError):
                scheduler.run(_job(lambda job, stream: None, urgency=Urgency.within(0.5)))
                answered += 1
        assert answered > 300


def test_a_job_that_nobody_waits_for_any_more_is_not_kept() -> None:
    """Neither in the queue, where nobody tells that its caller left, nor by what is called then."""
    told = SimpleQueue[Callable[[], None]]()
    with _scheduler(max_waiting=1) as scheduler, _busy(scheduler):
        job = _job(lambda job, stream: None, urgency=replace(Urgency.within(0.01), on_leave=told.put))
        assert isinstance(Started(scheduler, job).end().error, DeadlineError)
        kept = weakref.ref(job)
        del job
        gc.collect()
        assert kept() is None
        told.get(timeout=PATIENCE)()
        _wait_for(scheduler, 0)


def test_calls_that_run_count() -> None:
    """100 s of one model run on the only stream: another one's request ends after them. Of two streams the
    other one is free."""
    for streams, refused in ((1, True), (2, False)):
        with _scheduler(streams) as scheduler:
            scheduler.run(_job(lambda job, stream: time.sleep(0.1), rows=1, key="long"))
            running, go_on = threading.Event(), threading.Event()
            begin = lambda job, stream: (running.set(), go_on.wait(PATIENCE))  # noqa: E731, B023
            long = Started(scheduler, _job(begin, rows=1000, key="long"))
            assert running.wait(PATIENCE)
            try:
                scheduler.refuse_late("model", Urgency.within(50.0))
                assert not refused
            except OverloadedError:
                assert refused
            finally:
                go_on.set()
                long.end()


def test_one_call_is_not_spread_over_streams() -> None:
    """10 candidates of a model that mixes them took 0.2 s, and do so however many streams there are."""
    with _scheduler(2) as scheduler:
        scheduler.run(_job(lambda job, stream: time.sleep(0.2), rows=10))
        with pytest.raises(OverloadedError, match="would take"):
            scheduler.run(_job(lambda job, stream: None, rows=10, urgency=Urgency.within(0.19)))


def test_work_is_poured_over_the_streams() -> None:
    assert _level([0.0], 3.0) == 3.0
    assert _level([0.0, 10.0], 0.0) == 0.0
    assert _level([0.0, 10.0], 4.0) == 4.0
    assert _level([0.0, 10.0], 12.0) == 11.0
    assert _level([1.0, 2.0, 6.0], 3.0) == 3.0


def test_whoever_runs_needs_no_turn() -> None:
    """Neither on a stream that is free, nor while it waits for one."""
    over: SimpleQueue[str] = SimpleQueue()
    with _scheduler() as scheduler:
        first = Urgency(turn_over=lambda: over.put("first"))
        scheduler.run(_job(lambda job, stream: over.put("runs"), urgency=first))
        assert [over.get(timeout=PATIENCE) for _ in range(2)] == ["first", "runs"]
        with _busy(scheduler):
            waiting = Started(
                scheduler,
                _job(lambda job, stream: None, urgency=Urgency(turn_over=lambda: over.put("waits"))),
            )
            assert over.get(timeout=PATIENCE) == "waits"
        waiting.end()


def test_a_margin_counts_only_where_others_wait() -> None:
    """Estimates of this model were wrong by minutes. A request with a deadline in one is refused behind
    another that waits, and taken, and learned from, where none does. Other priorities have margins of their
    own."""
    soon = Urgency.within(60.0)
    with _scheduler() as scheduler:
        scheduler.run(_job(lambda job, stream: None, urgency=soon))
        lateness = scheduler._lateness["model", 0]
        lateness.observe(1000.0)
        before = lateness.margin
        scheduler.run(_job(lambda job, stream: None, urgency=soon))
        assert 60 < lateness.margin < before
        with _busy(scheduler):
            waiting = Started(scheduler, _job(lambda job, stream: None))
            _wait_for(scheduler, 1)
            with pytest.raises(OverloadedError, match="it would take"):
                scheduler.refuse_late("model", soon)
            scheduler.refuse_late("model", Urgency.within(60.0, priority=1))
        waiting.end()
        scheduler.forget("model")
        assert not scheduler._lateness


def test_load_counts_what_ran_and_what_it_waited() -> None:
    with _scheduler() as scheduler:
        before = scheduler.load_of("model")
        scheduler.run(_job(lambda job, stream: time.sleep(0.02)))
        with _busy(scheduler):
            waiting = Started(scheduler, _job(lambda job, stream: None))
            _wait_for(scheduler, 1)
            time.sleep(0.02)
        waiting.end()
        seen = scheduler.load_of("model").since(before)
        assert seen.started == 2 and seen.streams == 1
        assert seen.waited_seconds >= 0.02 and 0.02 <= seen.own_seconds < seen.all_seconds
        scheduler.forget("model")
        assert scheduler.load_of("model").since(seen).started == 0


def test_close_refuses_the_calls_that_a_running_one_adds() -> None:
    """The threads that would run them have ended."""
    scheduler = StreamScheduler(1, on_cpu=True)
    closing = threading.Thread(target=scheduler.close)
    ran: list[int] = []

    def begin(job: Job, stream: int) -> None:
        closing.start()
        closing.join(PATIENCE)
        job.add(ran.append)

    request = Started(scheduler, _job(begin)).end()
    assert isinstance(request.error, OverloadedError) and not ran and not scheduler._waiting


def test_close_refuses_what_waits_and_ends_the_threads() -> None:
    before = threading.active_count()
    scheduler = StreamScheduler(1, on_cpu=True)
    with _busy(scheduler):
        waiting = Started(scheduler, _job(lambda job, stream: None))
        _wait_for(scheduler, 1)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        assert isinstance(waiting.end().error, OverloadedError)
    closing.join(PATIENCE)
    assert threading.active_count() == before
    with pytest.raises(OverloadedError, match="stopping"):
        scheduler.run(_job(lambda job, stream: None))
