"""Two runs beside each other: what changed, and what is a regression."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from rich.table import Table

from bench.directions import OURS, Better, Rule, rule
from bench.results import GFLOPS, Figure, NotMeasured, Results, ResultsError, same_machine

ALLOWED = 0.10
"""By which a figure may be worse, as a part of the old one."""
SPEED = 1.5
"""Times by which the speeds of a machine in two runs may differ. What is measured of it (`computing_speed`)
is the best of ten products at one moment: between two runs ten minutes apart on the committed machine it
was 169 and 203 GFLOP/s, beside other work 50 to 79 within seconds. What is beyond this is no chance."""
RATIOS = ("ratio", "x")
"""Units of figures that hold two things of one run against each other."""

Verdict = Literal["worse", "better", "same", "unclear", "not judged", "gone", "not run"]

_LIBRARY = re.compile(
    r"No module named '(?!jaxrank|serving|bench|converters|mlir_pipeline|examples|tests)|pip install"
    r"|no libjemalloc|no C\+\+ compiler"
)
"""Reasons that say that something is not installed; a module of ours is not there because it is broken."""
_WRONG = re.compile(r"\bscores differ\b")
"""Reasons that say that scores are not TensorFlow's."""
_ELSEWHERE = re.compile(r"^--|\.json does not have it")
"""Reasons that say that nobody asked for it: an option, or a suite of its own."""


@dataclass(frozen=True)
class Change:
    """One figure of the old run, and what became of it.

    Attributes:
        verdict: `worse` and `better` are beyond what is allowed; `unclear` is worse beyond it, by less than
            the intervals of both runs together; `gone` is a figure that the new run tried and did not get, or
            got without some of what it is over; `not run` one that it did not try.
        why: of what is gone, and what the verdict does not rest on.
        correct: whether it tells right scores from wrong ones.
    """

    suite: str
    old: Figure
    new: Figure | None
    better: Better
    verdict: Verdict
    why: str = ""
    correct: bool = False

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

    @property
    def certain(self) -> bool:
        """Whether it is a regression that another speed of the machine does not explain."""
        return self.verdict == "gone" or (self.verdict == "worse" and self.correct)

    @property
    def by_chance(self) -> bool:
        """Whether it is a regression that chance may explain: scores are not wrong by chance."""
        return self.regression and not self.correct and not _WRONG.search(self.why)


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
        ratios_only: only figures that compare two things of one run, which other machines have in common;
            errors of scores, and what is gone, are judged all the same.

    Raises `ResultsError` where no suite is in both.
    """
    shared = [suite for suite in old if suite in new]
    if not shared:
        raise ResultsError(
            f"nothing to compare: the old run has {', '.join(old)}, the new one {', '.join(new)}"
        )
    changes = (
        _change(figure, old[suite], new[suite], allowed)
        for suite in shared
        for figure in old[suite].figures
        if not any(f"({other}, " in figure.note for other in shared)  # which is a figure of that one
    )
    return [c for c in changes if not ratios_only or c.old.unit in RATIOS or c.correct or c.verdict == "gone"]


def refusals(old: Mapping[str, Results], new: Mapping[str, Results]) -> list[tuple[str, NotMeasured]]:
    """Where the new run refused ours for its scores, by suite; what the old run measured is among the changes
    already."""
    return [
        (suite, one)
        for suite, results in new.items()
        for one in results.not_measured
        if (_of_ours(one) or "/" not in one.name)
        and _WRONG.search(one.why)
        and (suite not in old or old[suite].figure(one.name) is None)
    ]


def confirmed(first: Iterable[Change], again: Iterable[Change]) -> list[Change]:
    """The first comparison, where what is worse or gone by chance is `unclear`: what another run of the same
    measured and did not find worse. Wrong scores stay."""
    verdicts = {(c.suite, c.old.name): c for c in again}

    def second(change: Change) -> Change:
        other = verdicts.get((change.suite, change.old.name))
        if not change.by_chance or other is None or other.new is None:
            return change
        if other.regression or not other.judged:
            return change
        why = f"measured again, it is {other.new.value:.4g} {change.old.unit}, {other.verdict}"
        return replace(change, verdict="unclear", why=why)

    return [second(change) for change in first]


def _change(old: Figure, before: Results, after: Results, allowed: float) -> Change:
    """What became of one figure of a suite."""
    found = rule(old)
    better = found.better if found is not None else "neither"
    new = after.figure(old.name)

    def change(verdict: Verdict, why: str = "") -> Change:
        correct = found is not None and found.correct
        return Change(before.suite, old, new, better, verdict, why, correct)

    if new is None:
        return change(*_absent(old, better, before, after))
    if found is None or better == "neither":
        return change("not judged")
    if new.unit != old.unit:
        return change("not judged", f"it is in {new.unit} now, it was in {old.unit}")
    if lost := _lost(found, old, before, after):
        return change(*lost)
    sign = 1 if better == "smaller" else -1
    worse_by = sign * (new.value - old.value)
    if abs(worse_by) <= allowed * abs(old.value):
        return change("same")
    if worse_by < 0:
        return change("better")
    if found.floor and new.value <= found.floor:
        return change("same")
    if found.correct:
        return change("worse", f"beyond its bound, {found.floor:g}")
    if _nothing(old, new):
        return change("worse", "it is nothing at all")
    unsure, why = _unsure(old, new)
    return change("unclear" if unsure else "worse", why)


def _absent(old: Figure, better: Better, before: Results, after: Results) -> tuple[Verdict, str]:
    """Of a figure that the new run does not have. Without a reason, a ratio that the same command gave before
    is gone."""
    missing = _reason(old.name, after)
    why = missing.why if missing is not None else ""
    if better == "neither" or _ELSEWHERE.search(why):
        return "not run", why
    if missing is None:
        if old.unit not in RATIOS or before.command != after.command:
            return "not run", ""
        return "gone", "the new run, of the same command, has neither it nor a reason"
    return ("not run" if _not_installed(missing) else "gone"), why


def _lost(found: Rule, old: Figure, before: Results, after: Results) -> tuple[Verdict, str] | None:
    """Of a figure over others of which the new run lacks some: it is another figure, whatever its value."""
    patterns = found.members(old.name)
    lost = [
        f.name
        for f in before.figures
        if any(fnmatchcase(f.name, pattern) for pattern in patterns) and _nothing(f, after.figure(f.name))
    ]
    if not lost:
        return None
    told = f"it is without {', '.join(lost[:3])}{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}"
    reasons = [_reason(name, after) for name in lost]
    if all(r is not None and _not_installed(r) for r in reasons):
        return "not judged", told
    if before.command != after.command and not any(reasons):
        return "not judged", told
    whys = dict.fromkeys(r.why for r in reasons if r is not None)
    return "gone", "; ".join([told, *whys])


def _nothing(old: Figure, new: Figure | None) -> bool:
    """Whether a figure is no part of a mean any more: it is not there, or is a throughput of 0."""
    return new is None or (new.value == 0 and old.value > 0)


def _reason(name: str, results: Results) -> NotMeasured | None:
    """Why the run does not have a figure, if it says so: of the figure, or of all that begin like it."""
    for missing in results.not_measured:
        if missing.name in (name, results.suite) or name.startswith(f"{missing.name}/"):
            return missing
    return None


def _of_ours(missing: NotMeasured) -> bool:
    return OURS in missing.name.split("/")


def _not_installed(missing: NotMeasured) -> bool:
    """Whether a library is missing; ours is what is measured, and has no such excuse."""
    return _LIBRARY.search(missing.why) is not None and not _of_ours(missing)


def _unsure(old: Figure, new: Figure) -> tuple[bool, str]:
    """Whether the difference is within both intervals together, and what is to be said of that: their sides
    that face each other, as errors that have nothing to do with one another add up. It finds what two
    intervals that just overlap hide. A run without an interval is taken to be as unsure as the other."""
    before, after, why = interval(old), interval(new), ""
    if before is None and after is None:
        return False, "neither run has an interval: it may be chance"
    if before is None or after is None:
        which, other = ("old", "new") if before is None else ("new", "old")
        why = f"the {which} run has no interval: taken as unsure as the {other} one"
    lo, hi = before or _as_unsure(old.value, new.value, after)
    new_lo, new_hi = after or _as_unsure(new.value, old.value, before)
    if old.value < new.value:
        sides = hi - old.value, new.value - new_lo
    else:
        sides = old.value - lo, new_hi - new.value
    return abs(new.value - old.value) <= math.hypot(*sides), why


def _as_unsure(value: float, of: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """An interval as wide, in parts of the value, as that of another one; none of a value of 0 is known."""
    return (value, value) if bounds is None or of == 0 else (value * bounds[0] / of, value * bounds[1] / of)


def interval(figure: Figure) -> tuple[float, float] | None:
    """Around the value."""
    lo, hi = figure.lo, figure.hi
    return None if lo is None or hi is None or not lo <= figure.value <= hi else (lo, hi)


def other_speeds(old: Mapping[str, Results], new: Mapping[str, Results]) -> dict[str, str]:
    """Suites for which the machine computed over `SPEED` times as fast in one run as in the other, and how
    fast: ratios of engines that compute to ones that wait are not the same then."""
    told = {}
    for suite in (s for s in old if s in new):
        before, after = old[suite].machine.get(GFLOPS), new[suite].machine.get(GFLOPS)
        if before and after and not 1 / SPEED < after / before < SPEED:
            told[suite] = f"the machine computed {before:g} GFLOP/s in the old run, {after:g} in the new"
    return told


def differences(old: Mapping[str, Results], new: Mapping[str, Results]) -> list[str]:
    """What else is not the same, a line each: machines, packages, suites that only one run has."""
    lines = []
    for suite in (s for s in old if s in new):
        before, after = old[suite], new[suite]
        if not same_machine(before, after):
            changed = _changed(before.machine, after.machine)
            lines.append(f"{suite}: the machine differs ({changed}): only ratios can be compared")
        if before.command != after.command:
            lines.append(
                f"{suite}: commands differ ({before.command} -> {after.command}): what only the old run has, "
                "and the new one gives no reason for, is not judged"
            )
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
