"""The cache of request sides: its bounds, its clock, and one computation for all who ask at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from serving.errors import DeadlineError, OverloadedError
from serving.scheduling import ANY_TIME, Urgency
from serving.state.cache import Entry, StateCache

TTL = 10.0


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> StateCache:
    return StateCache(1000, TTL, clock)


def _entry(value: object = "state", size: int = 100, epoch: int = 0) -> Entry:
    return Entry(epoch, {}, value, size)


def _ask(cache: StateCache, owner: int, name: bytes, entry: Entry, **options: float) -> tuple[object, bool]:
    found, hit = cache.get((owner, name), entry.epoch, lambda: entry, ANY_TIME, **options)
    return found.value, hit


def test_the_least_recently_used_makes_room(cache: StateCache) -> None:
    owner = cache.new_owner()
    names = [bytes([i]) for i in range(10)]
    for name in names:
        _ask(cache, owner, name, _entry())
    assert cache.bytes == 1000
    _ask(cache, owner, names[0], _entry())
    _ask(cache, owner, b"large", _entry(size=250))
    assert cache.find((owner, names[0])) and not any(cache.find((owner, n)) for n in names[1:4])
    counts = cache.counts(owner)
    assert (counts.hits, counts.misses, counts.evictions, counts.entries) == (1, 11, 3, 8)
    assert counts.bytes == cache.bytes == 950


def test_what_is_larger_than_the_cache_is_not_kept(cache: StateCache) -> None:
    owner = cache.new_owner()
    _ask(cache, owner, b"small", _entry())
    huge, hit = cache.get((owner, b"huge"), 0, lambda: _entry("huge", 1001), ANY_TIME)
    assert (huge.value, hit, cache.remaining(huge)) == ("huge", False, 0.0)
    assert cache.find((owner, b"small")) and not cache.find((owner, b"huge"))
    assert cache.bytes == 100


def test_what_is_there_stays_for_its_time_when_it_is_made_anew_and_not_kept(
    cache: StateCache, clock: Clock
) -> None:
    owner = cache.new_owner()
    there, _ = cache.get((owner, b"a"), 1, lambda: _entry("there", epoch=1), ANY_TIME)
    clock.now = 1.0
    huge, _ = cache.get((owner, b"a"), 2, lambda: _entry("huge", 1001, epoch=2), ANY_TIME)
    earlier, _ = cache.get((owner, b"a"), 0, lambda: _entry("earlier"), ANY_TIME)
    assert cache.remaining(huge) == cache.remaining(earlier) == TTL - 1.0
    assert cache.find((owner, b"a")) is there
    unkept, _ = cache.get((owner, b"huge"), 0, lambda: _entry("huge", 1001), ANY_TIME)
    clock.now = 1.1
    assert cache.remaining(unkept) == 0.0


def test_what_is_found_is_used(cache: StateCache) -> None:
    owner = cache.new_owner()
    for name in (b"a", b"b"):
        _ask(cache, owner, name, _entry(size=500))
    assert cache.find((owner, b"a"))
    _ask(cache, owner, b"c", _entry(size=500))
    assert cache.find((owner, b"a")) and not cache.find((owner, b"b"))


def test_nothing_is_used_after_its_time(cache: StateCache, clock: Clock) -> None:
    owner = cache.new_owner()
    _ask(cache, owner, b"a", _entry("old"))
    clock.now = TTL - 0.1
    assert _ask(cache, owner, b"a", _entry("new")) == ("old", True)
    clock.now = TTL
    assert cache.find((owner, b"a")) is None
    assert _ask(cache, owner, b"a", _entry("new")) == ("new", False)
    assert cache.counts(owner).expirations == 1
    clock.now = 2 * TTL
    _ask(cache, owner, b"b", _entry())
    counts = cache.counts(owner)
    assert (counts.entries, counts.expirations, cache.bytes) == (1, 2, 100), "an old one keeps no room"


def test_one_that_ends_soon_is_made_again_for_who_needs_it_longer(cache: StateCache, clock: Clock) -> None:
    owner = cache.new_owner()
    _ask(cache, owner, b"a", _entry("old"))
    clock.now = 0.6 * TTL
    assert _ask(cache, owner, b"a", _entry("new"), for_seconds=TTL / 2) == ("new", False)
    assert cache.remaining(cache.find((owner, b"a")) or _entry()) == pytest.approx(TTL)


def test_an_earlier_epoch_is_not_given_and_does_not_come_back(cache: StateCache) -> None:
    owner = cache.new_owner()
    _ask(cache, owner, b"a", _entry("epoch 1", epoch=1))
    assert _ask(cache, owner, b"a", _entry("epoch 2", epoch=2)) == ("epoch 2", False)
    assert _ask(cache, owner, b"a", _entry("epoch 1 again", epoch=1)) == ("epoch 1 again", False)
    assert _ask(cache, owner, b"a", _entry("other", epoch=2)) == ("epoch 2", True)
    assert cache.bytes == 100


def test_an_owner_ends_with_its_entries(cache: StateCache) -> None:
    first, second = cache.new_owner(), cache.new_owner()
    for owner in (first, second):
        _ask(cache, owner, b"a", _entry(owner))
    cache.drop(first)
    assert cache.find((first, b"a")) is None and cache.bytes == 100
    assert _ask(cache, second, b"a", _entry()) == (second, True)
    assert _ask(cache, first, b"a", _entry("late")) == ("late", False), (
        "a request that still runs is answered"
    )
    assert cache.bytes == 100


def test_equal_requests_wait_for_one_computation(cache: StateCache) -> None:
    owner, began, release = cache.new_owner(), threading.Event(), threading.Event()
    made: list[int] = []

    def make() -> Entry:
        made.append(1)
        began.set()
        assert release.wait(30)
        return _entry()

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cache.get, (owner, b"a"), 0, make, ANY_TIME) for _ in range(8)]
        assert began.wait(30)
        with pytest.raises(DeadlineError):
            cache.get((owner, b"a"), 0, make, Urgency.within(0.01))
        assert _ask(cache, owner, b"b", _entry("another")) == ("another", False), "others do not wait"
        release.set()
        found = [future.result() for future in asked]
    assert len(made) == 1
    assert sorted(hit for _, hit in found) == [False] + [True] * 7
    assert {entry.value for entry, _ in found} == {"state"}
    counts = cache.counts(owner)
    assert counts.misses == 2 and counts.hits == 7 and counts.shared <= 7


def test_a_failure_is_only_its_own_requests(cache: StateCache) -> None:
    """The first had no time left; who waited for it computes."""
    owner, began, release = cache.new_owner(), threading.Event(), threading.Event()

    def fail() -> Entry:
        began.set()
        assert release.wait(30)
        raise OverloadedError("no time")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, (owner, b"a"), 0, fail, ANY_TIME)
        assert began.wait(30)
        second = pool.submit(cache.get, (owner, b"a"), 0, _entry, ANY_TIME)
        release.set()
        with pytest.raises(OverloadedError):
            first.result()
        assert second.result()[0].value == "state"


def test_what_is_not_to_be_kept_is_computed_by_each(cache: StateCache) -> None:
    owner = cache.new_owner()
    assert _ask(cache, owner, b"a", _entry(None)) == (None, False)
    assert _ask(cache, owner, b"a", _entry("whole")) == ("whole", False)
    assert _ask(cache, owner, b"a", _entry("other")) == ("whole", True)


def test_who_waited_for_what_is_not_kept_keeps_its_own(cache: StateCache) -> None:
    owner, began, release = cache.new_owner(), threading.Event(), threading.Event()

    def partly() -> Entry:
        began.set()
        assert release.wait(30)
        return _entry(None)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, (owner, b"a"), 0, partly, ANY_TIME)
        assert began.wait(30)
        waits = threading.Event()
        urgency = Urgency(turn_given_back=lambda: waits.set() or nullcontext())
        second = pool.submit(cache.get, (owner, b"a"), 0, lambda: _entry("whole"), urgency)
        assert waits.wait(30)
        release.set()
        assert first.result()[0].value is None
        entry, hit = second.result()
    assert (entry.value, hit, cache.remaining(entry)) == ("whole", False, TTL)
    assert _ask(cache, owner, b"a", _entry("other")) == ("whole", True)


def test_a_request_does_not_wait_for_one_of_lower_priority(cache: StateCache) -> None:
    owner, began, release = cache.new_owner(), threading.Event(), threading.Event()

    def slow() -> Entry:
        began.set()
        assert release.wait(30)
        return _entry("slow")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get, (owner, b"a"), 0, slow, Urgency.within(None, priority=-1))
        assert began.wait(30)
        entry, hit = cache.get((owner, b"a"), 0, lambda: _entry("own"), ANY_TIME)
        assert (entry.value, hit, cache.remaining(entry)) == ("own", False, TTL)
        assert cache.find((owner, b"a")) is entry
        release.set()
        assert first.result()[0].value == "slow"
