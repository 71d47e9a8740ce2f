"""How a request's candidates are cut into calls: which rows go to which program on which stream.

Costs are the measured times of one call on one stream. The model of time is that a stream's calls add up and
streams do not disturb each other; the plan has the shortest longest stream under that model.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jaxrank.manifest import Cost, Program
from jaxrank.towers import CANDIDATE_TOWER

# Without measured costs: packed matrix products compute whole tiles of 16 rows, and smaller slices than these
# pay more for their dispatches; docs/architecture.md has the measurement.
_TILE = 16
_SMALLEST_SLICE = 32

# One more stream must shorten a request by this share: others wait for that stream.
_WORTH_A_STREAM = 0.1

# And so must a mix of programs against the best one alone: each reads packed weights of its own, which may
# have left the cache when it follows another. Costs are measured without that.
_WORTH_MIXING = 0.1

# Candidates of one stream that covers are prepared for, at load: 0.3 s for 5,000 of them. A share of more is
# several of these, which are many times the largest program.
_MOST_COVERED = 10_000


@dataclass(frozen=True)
class Call:
    """Candidates `start` to `stop` on one program. One that takes more rows gets zeros for the rest, and
    their outputs are dropped."""

    function: str
    rows: int
    """Rows that the program takes: `stop - start` for one that takes any number."""
    start: int
    stop: int


Plan = tuple[tuple[Call, ...], ...]
"""Calls by stream. The streams' calls run side by side, one stream's calls one after the other."""


class Planner:
    """Plans for any number of candidates up to a bound. Thread-safe."""

    def __init__(
        self,
        tiles: Sequence[Program],
        costs: Sequence[Cost],
        *,
        streams: int,
        max_candidates: int,
        slice_rows: int = 64,
    ):
        """Prepares the cheapest cover of every number of rows on one stream.

        Without costs, requests are cut into slices for the program that takes any number.

        Args:
            tiles: programs that take an exact number of rows.
            costs: measured times; those of "candidate_tower" at several numbers of rows.
            max_candidates: covers are prepared for these, at most `_MOST_COVERED`; more are cut into shares
                of as many.
            slice_rows: at most so many rows for a slice.
        """
        self._slice_rows = slice_rows
        self._streams = streams
        self._covered = min(max_candidates, _MOST_COVERED)
        self._covers = _Covers(tiles, costs, self._covered) if costs else None
        self.plan = lru_cache(maxsize=4096)(self._plan)

    def _plan(self, count: int) -> Plan:
        """Calls that compute each of `count` candidates once. Found once for each number."""
        if not count:
            return ((Call(CANDIDATE_TOWER, 0, 0, 0),),)
        if self._covers is None:
            return self._slices(count)
        plan, start = [], 0
        share = self._share(count, self._covers)
        while start < count:
            calls = []
            for function, rows in self._covers.calls(min(share, count - start)):
                stop = min(start + rows, count)
                calls.append(
                    Call(function, rows if function != CANDIDATE_TOWER else stop - start, start, stop)
                )
                start = stop
            plan.append(tuple(calls))
        return tuple(plan)

    def _slices(self, count: int) -> Plan:
        """About equal slices, for each stream about as many."""
        tiles = -(-count // _TILE)
        parts = max(-(-count // self._slice_rows), min(self._streams, tiles * _TILE // _SMALLEST_SLICE), 1)
        used = min(self._streams, parts)
        parts = min(-(-parts // used) * used, tiles)
        edges = [min(tiles * i // parts * _TILE, count) for i in range(parts + 1)]
        calls = [Call(CANDIDATE_TOWER, b - a, a, b) for a, b in itertools.pairwise(edges)]
        return tuple(tuple(calls[parts * i // used : parts * (i + 1) // used]) for i in range(used))

    def _share(self, count: int, covers: "_Covers") -> int:
        """Rows of each stream. Some stream has at least `count / streams` rows, so no plan is shorter than
        the cover of those; every stream takes as many as fit into that time, and the last takes the rest."""
        shares = (-(-count // streams) for streams in range(1, self._streams + 1))
        longest = [covers.ms[min(share, self._covered)] for share in shares]
        used = 0
        while used + 1 < len(longest) and min(longest[used + 1 :]) < longest[used] * (1 - _WORTH_A_STREAM):
            used += 1
        return bisect_right(covers.ms, longest[used]) - 1


@dataclass(frozen=True)
class _Cover:
    """Milliseconds and the first call, (function, rows), of the cheapest cover of n rows."""

    ms: list[float]
    first: list[tuple[str, int]]


class _Covers:
    """The cheapest calls for every number of rows on one stream: of one program again and again, or of
    several where that is worth it."""

    def __init__(self, tiles: Sequence[Program], costs: Sequence[Cost], max_candidates: int):
        measured = {(c.function, c.rows): c.ms for c in costs}
        self._dynamic = sorted((c.rows, c.ms) for c in costs if c.function == CANDIDATE_TOWER)
        programs = [[(t.function, t.rows, measured[t.function, t.rows])] for t in tiles]
        if self._dynamic:
            programs.append([(CANDIDATE_TOWER, rows, ms) for rows, ms in self._dynamic])
        alone = [self._cover(calls, max_candidates) for calls in programs]
        mixed = self._cover([call for calls in programs for call in calls], max_candidates)
        self._chosen = [mixed]
        self.ms = [0.0]
        """Milliseconds of the chosen cover of n rows; never less for more rows."""
        for n in range(1, max_candidates + 1):
            best = min(alone, key=lambda cover: cover.ms[n])
            best = mixed if mixed.ms[n] < best.ms[n] * (1 - _WORTH_MIXING) else best
            self._chosen.append(best)
            self.ms.append(max(best.ms[n], self.ms[-1]))

    def calls(self, rows: int) -> list[tuple[str, int]]:
        """(function, rows) of the chosen cover; the last may take more rows than are left."""
        first = self._chosen[rows].first
        found = []
        while rows > 0:
            found.append(first[rows])
            rows -= first[rows][1]
        return found

    def _cover(self, calls: Sequence[tuple[str, int, float]], max_candidates: int) -> "_Cover":
        """By dynamic programming: a cover of n rows is a first call and the cheapest cover of the rest."""
        largest = max((rows for function, rows, _ in calls if function == CANDIDATE_TOWER), default=0)
        total, first = [0.0], [("", 0)]
        for n in range(1, max_candidates + 1):
            best = (self._interpolated(n), CANDIDATE_TOWER, n) if n <= largest else (float("inf"), "", 0)
            for function, rows, ms in calls:
                if rows <= n or function != CANDIDATE_TOWER:
                    best = min(best, (ms + total[max(n - rows, 0)], function, rows))
            total.append(best[0])
            first.append(best[1:])
        return _Cover(total, first)

    def _interpolated(self, rows: int) -> float:
        """Linear between the measured numbers of rows; below the smallest, as much as the smallest."""
        i = bisect_right(self._dynamic, (rows, float("inf")))
        if i == 0 or i == len(self._dynamic) or self._dynamic[i - 1][0] == rows:
            return self._dynamic[max(i - 1, 0)][1]
        (low, low_ms), (high, high_ms) = self._dynamic[i - 1 : i + 1]
        return low_ms + (high_ms - low_ms) * (rows - low) / (high - low)
