"""Plans: every candidate once, within the programs' bounds, and no other division of the rows is shorter."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrank.manifest import Cost, Program
from jaxrank.towers import CANDIDATE_TOWER
from serving.engines.plan import Plan, Planner

MAX = 600


def _program(rows: int) -> Program:
    return Program(function=f"candidate_tower_{rows}", rows=rows, module="m", data_tiling=False, flags=())


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Program], list[Cost]]:
    """Tiles and dynamic sizes with any positive costs, however odd."""
    ms = st.floats(0.01, 100, allow_nan=False)
    tiles = [_program(r) for r in draw(st.sets(st.sampled_from([1, 8, 32, 100, 256]), max_size=4))]
    dynamic = draw(st.sets(st.integers(1, 500), min_size=0 if tiles else 1, max_size=5))
    costs = [Cost(function=CANDIDATE_TOWER, rows=r, ms=draw(ms)) for r in sorted(dynamic)]
    return tiles, costs + [Cost(function=t.function, rows=t.rows, ms=draw(ms)) for t in tiles]


def _check(plan: Plan, count: int, tiles: list[Program]) -> None:
    sizes = {t.function: t.rows for t in tiles}
    covered = 0
    for call in itertools.chain.from_iterable(plan):
        assert call.start == covered
        assert call.start < call.stop <= call.start + call.rows
        assert call.rows == sizes.get(call.function, call.stop - call.start)
        covered = call.stop
    assert covered == count


@given(tables(), st.integers(1, MAX), st.integers(1, 5))
def test_a_plan_covers_every_candidate_once(
    table: tuple[list[Program], list[Cost]], count: int, streams: int
) -> None:
    tiles, costs = table
    planner = Planner(tiles, costs, streams=streams, max_candidates=MAX)
    plan = planner.plan(count)
    _check(plan, count, tiles)
    assert len(plan) <= streams
    largest = max((c.rows for c in costs if c.function == CANDIDATE_TOWER), default=0)
    assert all(c.rows <= largest for calls in plan for c in calls if c.function == CANDIDATE_TOWER)


@given(st.integers(1, 20_000), st.integers(1, 64), st.sampled_from([32, 64]))
def test_without_costs_slices_are_small_and_of_whole_tiles(count: int, streams: int, rows: int) -> None:
    """Each but the last ends with a tile of 16."""
    plan = Planner([], [], streams=streams, max_candidates=5000, slice_rows=rows).plan(count)
    _check(plan, count, [])
    assert all(call.rows <= rows and call.start % 16 == 0 for calls in plan for call in calls)


def _ms(calls: tuple, costs: list[Cost]) -> float:
    table = {(c.function, c.rows): c.ms for c in costs}
    return sum(table[c.function, c.rows] for c in calls)


@given(
    st.dictionaries(st.sampled_from([2, 3, 5, 8]), st.floats(0.1, 10), min_size=1),
    st.integers(1, 24),
    st.integers(1, 3),
)
def test_no_cover_by_tiles_is_much_shorter(sizes: dict[int, float], count: int, streams: int) -> None:
    """Against every division and every multiset of tiles: at most what one more stream and a mix of programs
    must gain, 10% each."""
    tiles = [_program(r) for r in sizes]
    costs = [Cost(function=t.function, rows=t.rows, ms=sizes[t.rows]) for t in tiles]
    plan = Planner(tiles, costs, streams=streams, max_candidates=24).plan(count)
    longest = max(_ms(calls, costs) for calls in plan)

    def cheapest(rows: int) -> float:
        best = [0.0] + [float("inf")] * rows
        for n in range(1, rows + 1):
            best[n] = min(ms + best[max(0, n - r)] for r, ms in sizes.items())
        return best[rows]

    shares = itertools.product(range(count + 1), repeat=streams - 1)
    exact = min(max(map(cheapest, [*s, count - sum(s)])) for s in shares if sum(s) <= count)
    assert exact <= longest * (1 + 1e-9)
    assert longest <= exact / 0.9**2 * (1 + 1e-9)


def test_programs_are_mixed_only_where_it_is_worth_it() -> None:
    """40 rows: 2.4 ms in one dynamic call, 2.3 as a tile and a rest; then 3.4 against 2.3."""
    tiles = [_program(32)]
    for ms, mixed in ((2.4, False), (3.4, True)):
        costs = [Cost(function=CANDIDATE_TOWER, rows=r, ms=m) for r, m in ((8, 0.8), (32, 2.0), (40, ms))]
        costs.append(Cost(function="candidate_tower_32", rows=32, ms=1.5))
        (calls,) = Planner(tiles, costs, streams=1, max_candidates=100).plan(40)
        assert (len(calls) == 2) == mixed


def test_padding_where_one_tile_is_cheaper_than_two_calls() -> None:
    tiles = [_program(32)]
    costs = [Cost(function=CANDIDATE_TOWER, rows=r, ms=ms) for r, ms in ((1, 1.0), (64, 8.0))]
    costs.append(Cost(function="candidate_tower_32", rows=32, ms=2.0))
    planner = Planner(tiles, costs, streams=1, max_candidates=100)
    ((call,),) = planner.plan(31)
    assert (call.function, call.rows, call.stop) == ("candidate_tower_32", 32, 31)
    (calls,) = planner.plan(33)
    assert {(c.function, c.rows) for c in calls} == {("candidate_tower_32", 32), (CANDIDATE_TOWER, 1)}


@pytest.mark.parametrize(("count", "streams"), [(10, 1), (400, 4)])
def test_a_stream_is_used_where_it_shortens_the_request(count: int, streams: int) -> None:
    """A millisecond for a call and one for 100 rows: 10 candidates are not worth a second stream."""
    costs = [Cost(function=CANDIDATE_TOWER, rows=r, ms=1 + r / 100) for r in (1, 1000)]
    assert len(Planner([], costs, streams=4, max_candidates=5000).plan(count)) == streams


def test_any_bound_of_candidates_loads_at_once() -> None:
    """Covers of ten million rows would be minutes and gigabytes; more rows than are covered go in several
    shares."""
    tiles = [_program(256)]
    costs = [Cost(function=CANDIDATE_TOWER, rows=r, ms=1 + r / 100) for r in (1, 1000)]
    costs.append(Cost(function="candidate_tower_256", rows=256, ms=2.0))
    planner = Planner(tiles, costs, streams=2, max_candidates=10_000_000)
    for count in (1, 5000, 20_000, 20_001, 123_457):
        _check(planner.plan(count), count, tiles)
