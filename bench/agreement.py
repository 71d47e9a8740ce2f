"""Whether two runs of one commit on one machine agree: what the intervals of figures promise."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.compare import RATIOS, interval
from bench.results import Figure, Results, ResultsError, same_machine

AGREEING = 0.95
"""Part of the figures on which two runs of one commit must agree. With intervals of 95%, one pair of about
two hundred is apart where nothing but chance differs; a machine whose speed drifts from run to run by more
than it did within one shows here."""


@dataclass(frozen=True)
class Agreement:
    """Of two runs of one commit.

    Attributes:
        apart: suite, and the figure of each run, of those whose intervals have nothing in common.
        lone: suite and figure of what one run alone has: chance does not explain that.
        figures: how many have an interval in both runs.
    """

    apart: list[tuple[str, Figure, Figure]]
    lone: list[tuple[str, Figure]]
    figures: int

    @property
    def holds(self) -> bool:
        return not self.lone and self.figures - len(self.apart) >= AGREEING * self.figures


def agreement(
    first: Mapping[str, Results], second: Mapping[str, Results], *, ratios_only: bool = False
) -> Agreement:
    """Of every figure that has an interval, or of ratios alone. What has none and is no ratio (points of a
    curve, whose names have the rates that were tried) need not be in both.

    Raises `ResultsError` where these are not two runs of the same suites, commit and machine, or have no
    such figure.
    """
    if set(first) != set(second):
        raise _not_the_same("suites", ", ".join(first), ", ".join(second))
    apart, lone, figures = [], [], 0
    for suite, one in first.items():
        other = second[suite]
        if one.commit != other.commit:
            raise _not_the_same(f"{suite}: commits", one.commit, other.commit)
        if one.commit.endswith("-dirty"):
            raise ResultsError(
                f"{suite}: sources differed from the commit ({one.commit}), so nobody knows whether both "
                "runs had the same; commit them and measure again, or compare without --agree"
            )
        if not same_machine(one, other):
            raise _not_the_same(f"{suite}: machines", one.machine, other.machine)
        for mine, theirs in ((one, other), (other, one)):
            for figure in mine.figures:
                if ratios_only and figure.unit not in RATIOS:
                    continue
                again = theirs.figure(figure.name)
                if again is None:
                    if figure.unit in RATIOS or interval(figure) is not None:
                        lone.append((suite, figure))
                elif mine is one and (agree := _overlap(figure, again)) is not None:
                    figures += 1
                    if not agree:
                        apart.append((suite, figure, again))
    if not figures:
        raise ResultsError("the two runs have no figure with an interval in common")
    return Agreement(apart, lone, figures)


def _overlap(old: Figure, new: Figure) -> bool | None:
    """Whether the intervals have something in common; none where one of the figures has no interval."""
    before, after = interval(old), interval(new)
    if before is None or after is None:
        return None
    return before[0] <= after[1] and after[0] <= before[1]


def _not_the_same(what: str, first: object, second: object) -> ResultsError:
    return ResultsError(
        f"these are not two runs of the same: {what} {first} and {second}; compare them without --agree"
    )
