"""Who works next: the most urgent call first, and nobody waits for what cannot come."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from serving.errors import CancelledError, DeadlineError, OverloadedError
from serving.monitoring.timeline import PHASES
from serving.scheduling import ANY_TIME, Turns, Urgency

PATIENCE = 30.0  # seconds; a test that waits so long has failed


class Asking:
    """A call on a thread of its own, which takes a turn and ends it."""

    def __init__(self, turns: Turns, urgency: Urgency = ANY_TIME, then: Callable[[], object] = lambda: None):
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(turns, urgency, then))
        self._thread.start()

    def _run(self, turns: Turns, urgency: Urgency, then: Callable[[], object]) -> None:
        try:
            with turns.turn(urgency):
                then()
        except Exception as error:
            self.error = error

    def end(self) -> "Asking":
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self


@contextmanager
def _all_held(turns: Turns) -> Iterator[None]:
    with turns.turn(ANY_TIME):
        yield


def _take(turns: Turns, urgency: Urgency) -> None:
    with turns.turn(urgency):
        pass


def _wait_for(turns: Turns, waiting: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(turns._waiting) != waiting:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_most_urgent_call_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By priority, then by deadline, then as they came; one without a deadline has a far one."""
    monkeypatch.setattr("serving.scheduling.urgency.PATIENCE", 1.5 * PATIENCE)
    turns, order = Turns(1), list[str]()
    soon, later = time.monotonic() + PATIENCE, time.monotonic() + 2 * PATIENCE
    calls = {
        "low": Urgency(soon, -1),
        "no deadline": ANY_TIME,
        "later": Urgency(later),
        "soon": Urgency(soon),
        "as soon": Urgency(soon),
        "high": Urgency(priority=1),
    }
    with _all_held(turns):
        asking = []
        for number, (name, urgency) in enumerate(calls.items(), 1):
            asking.append(Asking(turns, urgency, lambda name=name: order.append(name)))
            _wait_for(turns, number)
    assert [call.end().error for call in asking] == [None] * len(calls)
    assert order == ["high", "soon", "as soon", "no deadline", "later", "low"]


def test_so_many_work_at_once() -> None:
    turns, together, beyond = Turns(2), threading.Barrier(3), threading.Event()
    with turns.turn(ANY_TIME), turns.turn(ANY_TIME):
        third = Asking(turns, then=beyond.set)
        _wait_for(turns, 1)
        assert not beyond.is_set()
    third.end()
    both = [Asking(turns, then=lambda: together.wait(PATIENCE)) for _ in range(2)]
    together.wait(PATIENCE)
    assert [call.end().error for call in both] == [None] * 2


def test_a_call_whose_client_leaves_is_out_at_once() -> None:
    """While the turn is still held."""
    turns, gone = Turns(1), threading.Event()
    told: list[Callable[[], None]] = []
    with _all_held(turns):
        call = Asking(turns, Urgency(left=gone.is_set, on_leave=told.append))
        _wait_for(turns, 1)
        while not told:
            time.sleep(0.001)
        gone.set()
        told[0]()
        assert isinstance(call.end().error, CancelledError)
        assert not turns._waiting
    told[0]()  # and when the call ends


def test_a_call_waits_until_its_deadline() -> None:
    turns, ran = Turns(1), threading.Event()
    with _all_held(turns):
        late = Asking(turns, Urgency.within(0.02), ran.set).end()
        assert isinstance(late.error, DeadlineError)
        assert not turns._waiting
    assert not ran.is_set()
    Asking(turns, then=ran.set).end()
    assert ran.is_set()


def test_what_would_be_late_is_refused_when_it_comes() -> None:
    """Turns were held for 0.2 s. With two calls before it, a third one has its turn after three."""
    turns = Turns(1)
    turns._held = 0.2
    _take(turns, Urgency.within(0.1))  # nobody has to end before it
    turns._held = 0.2
    with _all_held(turns):
        with pytest.raises(OverloadedError, match="its turn would come in 200 ms, and its deadline") as e:
            _take(turns, Urgency.within(0.1))
        assert e.value.reason == "would_be_late"
        waiting = [Asking(turns, Urgency.within(PATIENCE)) for _ in range(2)]
        _wait_for(turns, 2)
        with pytest.raises(OverloadedError, match="in 600 ms"):
            _take(turns, Urgency(time.monotonic() + 0.3, priority=-1))
        urgent = Asking(turns, Urgency(time.monotonic() + PATIENCE, priority=1))
        _wait_for(turns, 3)
    assert [call.end().error for call in (*waiting, urgent)] == [None] * 3


def test_the_time_that_turns_are_held_is_learned() -> None:
    turns = Turns(1)
    with turns.turn(ANY_TIME):
        time.sleep(0.05)
    assert turns._held >= 0.05
    before = turns._held
    for _ in range(50):
        with turns.turn(ANY_TIME) as urgency:
            urgency.turn_over()
    assert turns._held < before / 2


def test_no_more_are_inside_than_may() -> None:
    """Also those that wait for a device, whose turn is over."""
    turns = Turns(1, max_waiting=1)
    with turns.turn(ANY_TIME) as first:
        first.turn_over()
        with turns.turn(ANY_TIME):
            with pytest.raises(OverloadedError, match="2 requests are being answered or wait") as full:
                _take(turns, ANY_TIME)
            assert full.value.reason == "queue_full"
    with turns.turn(ANY_TIME):
        pass


def test_a_turn_that_is_over_goes_to_the_next() -> None:
    turns, go = Turns(1), threading.Event()
    with turns.turn(ANY_TIME) as urgency:
        other = Asking(turns, then=lambda: go.wait(PATIENCE))
        _wait_for(turns, 1)
        urgency.turn_over()
        _wait_for(turns, 0)
        third = Asking(turns)
        _wait_for(turns, 1)
        urgency.turn_over()  # again: nothing
    assert len(turns._waiting) == 1
    go.set()
    assert other.end().error is None and third.end().error is None


def test_waits_are_counted_and_told() -> None:
    turns = Turns(1)
    with turns.turn(ANY_TIME):
        urgency = Urgency.within(PATIENCE)
        call = Asking(turns, urgency)
        _wait_for(turns, 1)
        time.sleep(0.02)
    call.end()
    started, waited = turns.waits()
    assert started == 2 and waited >= 0.02
    assert urgency.timeline.turn is not None
    assert urgency.timeline.turn[1] - urgency.timeline.turn[0] >= 0.02
    assert (
        urgency.timeline.phases()[PHASES.index("queue")]
        == urgency.timeline.turn[1] - urgency.timeline.turn[0]
    )


def test_a_turn_is_given_back_for_a_while() -> None:
    """Another call has it meanwhile, and it is waited for again, behind what is more urgent."""
    turns, order = Turns(1), list[str]()
    with turns.turn(Urgency.within(PATIENCE)) as urgency:
        with urgency.turn_given_back():
            _take(turns, ANY_TIME)
            go, has = threading.Event(), threading.Event()
            other = Asking(turns, then=lambda: (has.set(), go.wait(PATIENCE), order.append("other")))
            assert has.wait(PATIENCE)
            high = Asking(turns, Urgency(priority=1), lambda: order.append("high"))
            _wait_for(turns, 1)
            go.set()
        order.append("again")
        last = Asking(turns)
        _wait_for(turns, 1)
    assert [call.end().error for call in (other, high, last)] == [None] * 3
    assert order == ["other", "high", "again"]
    assert turns._free == 1


def test_a_turn_is_not_taken_again_in_vain() -> None:
    """By a call whose turn was over before, that fails meanwhile, or whose deadline passes."""
    turns = Turns(1)
    with turns.turn(ANY_TIME) as urgency:
        urgency.turn_over()
        with urgency.turn_given_back(), turns.turn(ANY_TIME):
            pass
        assert turns._free == 1
    with pytest.raises(OverloadedError), turns.turn(ANY_TIME) as urgency, urgency.turn_given_back():
        raise OverloadedError("no")
    assert turns._free == 1
    late = (DeadlineError, OverloadedError)  # the second on a machine that is slower than the deadline
    with (
        ExitStack() as held,
        pytest.raises(late),
        turns.turn(Urgency.within(0.05)) as urgency,
        urgency.turn_given_back(),
    ):
        held.enter_context(turns.turn(ANY_TIME))
    assert turns._free == 1 and not turns._inside
