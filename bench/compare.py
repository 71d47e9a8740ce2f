"""Two runs beside each other: what changed, and what is a regression; or, of two runs of one commit, whether
they agree."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from bench.directions import Better, rule
from bench.results import GFLOPS, Figure, Results, ResultsError, same_machine

ALLOWED = 0.10
"""By which a figure may be worse, as a part of the old one."""
AGREEING = 0.95
"""Part of the figures on which two runs of one commit must agree. With intervals of 95%, one pair of about
two hundred is apart where nothing but chance differs; a machine whose speed drifts from run to run by more
than it did within one shows here."""
SPEED = 1.2
RATIOS = ("ratio", "x")
"""Units of figures that hold two things of one run against each other."""

Verdict = Literal["worse", "better", "same", "unclear", "not judged", "gone", "not run"]


@dataclass(frozen=True)
class Change:
    """One figure of the old run, and what became of it.

    Attributes:
        verdict: `worse` and `better` are beyond what is allowed; `unclear` is worse beyond it, by less than
            the intervals of both runs together; `gone` is a figure that the new run tried and did not get;
            `not run` one that it did not try.
        why: of what is gone.
    """

    suite: str
    old: Figure
    new: Figure | None
    better: Better
    verdict: Verdict
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """New over old; none where it does not exist."""
        if self.new is None or self.old.value == 0:
            return None
        return self.new.value / self.old.value

    @property
    def judged(self) -> bool:
        return self.verdict not in ("not judged", "not run")

    @property
    def regression(self) -> bool:
        return self.verdict in ("worse", "gone")


def compare(
    old: Mapping[str, Results],
    new: Mapping[str, Results],
    *,
    allowed: float = ALLOWED,
    ratios_only: bool = False,
) -> list[Change]:
    """Every figure of the suites that both have, in the old run's order.

    Args:
        allowed: by which a figure may be worse, as a part of the old one.
        ratios_only: only figures that compare two things of one run, which other machines have in common.

    Raises `ResultsError` where no suite is in both.
    """
    shared = [suite for suite in old if suite in new]
    if not shared:
        raise ResultsError(
            f"nothing to compare: the old run has {', '.join(old)}, the new one {', '.join(new)}"
        )
    return [
        _change(suite, figure, new[suite], allowed)
        for suite in shared
        for figure in old[suite].figures
        if not ratios_only or figure.unit in RATIOS
    ]


def _change(suite: str, old: Figure, results: Results, allowed: float) -> Change:
    found = rule(old)
    better = found.better if found is not None else "neither"
    new = results.figure(old.name)
    if new is None:
        why = _reason(old.name, results)
        gone = why is not None and better != "neither"
        return Change(suite, old, None, better, "gone" if gone else "not run", why or "")
    if found is None or better == "neither":
        return Change(suite, old, new, better, "not judged")
    if new.unit != old.unit:
        return Change(suite, old, new, better, "not judged", f"it is in {new.unit} now, it was in {old.unit}")
    sign = 1 if better == "smaller" else -1
    worse_by = sign * (new.value - old.value)
    if abs(worse_by) <= allowed * abs(old.value):
        return Change(suite, old, new, better, "same")
    if worse_by < 0:
        return Change(suite, old, new, better, "better")
    if found.floor and new.value <= found.floor:
        return Change(suite, old, new, better, "same")
    return Change(suite, old, new, better, "unclear" if _unsure(old, new) else "worse")


def _reason(name: str, results: Results) -> str | None:
    """Why the run does not have a figure, if it says so: of the figure, or of all that begin like it."""
    for missing in results.not_measured:
        if missing.name in (name, results.suite) or name.startswith(f"{missing.name}/"):
            return missing.why
    return None


def _unsure(old: Figure, new: Figure) -> bool:
    """Whether the difference is within both intervals together: their sides that face each other, as errors
    that have nothing to do with one another add up. It finds what two intervals that just overlap hide."""
    before, after = _interval(old), _interval(new)
    if before is None or after is None:
        return False
    if old.value < new.value:
        sides = before[1] - old.value, new.value - after[0]
    else:
        sides = old.value - before[0], after[1] - new.value
    return abs(new.value - old.value) <= math.hypot(*sides)


def _overlap(old: Figure, new: Figure) -> bool | None:
    """Whether the intervals have something in common; none where one of the figures has no interval."""
    before, after = _interval(old), _interval(new)
    if before is None or after is None:
        return None
    return before[0] <= after[1] and after[0] <= before[1]


def _interval(figure: Figure) -> tuple[float, float] | None:
    """Around the value."""
    lo, hi = figure.lo, figure.hi
    return None if lo is None or hi is None or not lo <= figure.value <= hi else (lo, hi)


@dataclass(frozen=True)
class Agreement:
    """Of two runs of one commit.

    Attributes:
        apart: suite, and the figure of each run, of those whose intervals have nothing in common.
        figures: how many have an interval in both runs.
    """

    apart: list[tuple[str, Figure, Figure]]
    figures: int

    @property
    def holds(self) -> bool:
        return self.figures - len(self.apart) >= AGREEING * self.figures


def agreement(
    first: Mapping[str, Results], second: Mapping[str, Results], *, ratios_only: bool = False
) -> Agreement:
    """Of every figure that both runs have with an interval, or of ratios alone.

    Raises `ResultsError` where these are not two runs of the same suites, commit and machine, or have no
    such figure.
    """
    if set(first) != set(second):
        raise _not_the_same("suites", ", ".join(first), ", ".join(second))
    apart, figures = [], 0
    for suite, one in first.items():
        other = second[suite]
        if one.commit != other.commit:
            raise _not_the_same(f"{suite}: commits", one.commit, other.commit)
        if not same_machine(one, other):
            raise _not_the_same(f"{suite}: machines", one.machine, other.machine)
        for figure in one.figures:
            if ratios_only and figure.unit not in RATIOS:
                continue
            again = other.figure(figure.name)
            agree = None if again is None else _overlap(figure, again)
            figures += agree is not None
            if again is not None and agree is False:
                apart.append((suite, figure, again))
    if not figures:
        raise ResultsError("the two runs have no figure with an interval in common")
    return Agreement(apart, figures)


def _not_the_same(what: str, first: object, second: object) -> ResultsError:
    return ResultsError(
        f"these are not two runs of the same: {what} {first} and {second}; compare them without --agree"
    )


def other_speeds(old: Mapping[str, Results], new: Mapping[str, Results]) -> list[str]:
    """Suites, a line each, for which the machine computed by over `SPEED` faster or slower in one run than in
    the other: ratios of engines that compute to ones that wait are not the same then."""
    lines = []
    for suite in (s for s in old if s in new):
        before, after = old[suite].machine.get(GFLOPS), new[suite].machine.get(GFLOPS)
        if before and after and not 1 / SPEED < after / before < SPEED:
            lines.append(
                f"{suite}: the machine computed {before:g} GFLOP/s in the old run, {after:g} in the new"
            )
    return lines


def differences(old: Mapping[str, Results], new: Mapping[str, Results]) -> list[str]:
    """What else is not the same, a line each: machines, packages, suites that only one run has."""
    lines = []
    for suite in (s for s in old if s in new):
        before, after = old[suite], new[suite]
        if not same_machine(before, after):
            changed = _changed(before.machine, after.machine)
            lines.append(f"{suite}: the machine differs ({changed}): only ratios can be compared")
        if before.versions != after.versions:
            lines.append(f"{suite}: packages differ ({_changed(before.versions, after.versions)})")
    lines += [f"{suite}: only the old run has it" for suite in old if suite not in new]
    lines += [f"{suite}: only the new run has it" for suite in new if suite not in old]
    return lines


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    return ", ".join(f"{n} {before.get(n, 'none')} -> {after.get(n, 'none')}" for n in names)


_STYLES: Mapping[Verdict, str] = {
    "worse": "bold red",
    "gone": "bold red",
    "better": "green",
    "unclear": "yellow",
}


def table(changes: Iterable[Change]) -> Table:
    """One row for each figure."""
    made = Table(title="new over old")
    for column in ("suite", "figure", "old", "new", "unit", "ratio", "better", "verdict"):
        made.add_column(column, justify="right" if column in ("old", "new", "ratio") else "left")
    for c in changes:
        ratio = "-" if c.ratio is None else f"{c.ratio:.3f}"
        verdict = f"{c.verdict}: {c.why}" if c.why else c.verdict
        made.add_row(
            c.suite, c.old.name, with_interval(c.old), with_interval(c.new), c.old.unit, ratio, c.better,
            verdict, style=_STYLES.get(c.verdict, ""),
        )  # fmt: skip
    return made


def with_interval(figure: Figure | None) -> str:
    """The value, and its bounds where it has some."""
    if figure is None:
        return "-"
    if figure.lo is None or figure.hi is None:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} ({figure.lo:.3g} to {figure.hi:.3g})"
