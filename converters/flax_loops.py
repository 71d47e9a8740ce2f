"""Repeated statements become loops: `x = relu(self.a(x)); x = relu(self.b(x))` is a loop over a list of
layers, and `a = self.e_0(x); b = self.e_1(x)` is a list of results.

Statements are text with placeholders, `_v3_` for a value and `self._m5_` for a layer, so that two of them can
be compared, and named later.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from converters.scope_names import base_name

VALUE = re.compile(r"\b_v(\d+)_\b")
MEMBER = re.compile(r"\bself\._m(\d+)_")
OUTSIDE = "_outside_"
"""Stands in a loop's body for the loop's start where every iteration reads that itself, not what is
carried."""
_LONGEST_ITERATION = 6
SHORT = 44
"""Characters of an operand that may stand inside an arithmetic expression, placeholders as written."""


@dataclass
class Statement:
    """`outs = text`. `hint` is what a person might call the result; a `plain` one only says which operation
    it was. `takes` is how long an operand may be that is written inside the text. `lines` come before it
    (functions that the text calls)."""

    outs: list[int]
    text: str
    hint: str
    plain: bool = False
    takes: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def whole(self) -> str:
        return " ".join([*self.lines, self.text])


@dataclass
class Loop:
    """`carry = start`, then for each element of `lists` (members side by side) the body, whose last statement
    makes the next `carry`. `body` is the first iteration, with `OUTSIDE` where every iteration reads `start`
    itself."""

    lists: list[list[int]]
    body: list[Statement]
    start: int
    carried: list[int]


@dataclass
class Comprehension:
    """One result for each element of a list of members: `out = [text for member in list]`."""

    members: list[int]
    text: str
    out: int
    hint: str


Step = Statement | Loop | Comprehension


@dataclass(frozen=True)
class MemberKind:
    """What must be equal in a list: the class, and the name without its number."""

    hint: str
    constructor: str


def roll(
    statements: Sequence[Statement], members: dict[int, MemberKind], results: str, fresh: int
) -> tuple[list[Step], str]:
    """Statements with loops for repetitions, and the text of the results in their terms. `fresh` is the
    first free number for a value."""
    rest = list(statements)
    steps: list[Step] = []
    while rest:
        found = _repetition(rest, members, results)
        if found is None:
            steps.append(rest.pop(0))
            continue
        step, length = found
        outs = [s.outs[0] for s in rest[:length]]
        rest = rest[length:]
        if isinstance(step, Comprehension):
            step.out = fresh
            rest = [
                replace(
                    s,
                    text=_as_elements(s.text, outs, fresh),
                    lines=[_as_elements(line, outs, fresh) for line in s.lines],
                )
                for s in rest
            ]
            results = _as_elements(results, outs, fresh)
            fresh += 1
        steps.append(step)
    return steps, results


def _as_elements(text: str, outs: list[int], out: int) -> str:
    """The text with elements of the list `out` for the values `outs`; all of them in a row are the list."""
    row = ", ".join(f"_v{o}_" for o in outs)
    text = text.replace(f"[{row}]", f"_v{out}_")
    text = re.sub(rf"(?<=[\[ ]){row}(?=[\],])", f"*_v{out}_", text)
    for i, old in enumerate(outs):
        text = re.sub(rf"\b_v{old}_\b", f"_v{out}_[{i}]", text)
    return text


def _repetition(
    rest: list[Statement], members: dict[int, MemberKind], results: str
) -> tuple[Loop | Comprehension, int] | None:
    """The longest run of equal iterations that begins with the first statement, and its statements."""
    for length in range(1, _LONGEST_ITERATION + 1):
        iterations = _iterations(rest, length, members)
        while len(iterations) > 1:
            step = _as_step(iterations, rest, members, results)
            if step is not None:
                return step, length * len(iterations)
            iterations.pop()
    return None


def _iterations(rest: list[Statement], length: int, members: dict[int, MemberKind]) -> list[list[Statement]]:
    """Runs of `length` statements that differ in values and members only."""
    first = rest[:length]
    if len(first) < length or not any(MEMBER.search(s.text) for s in first):
        return []
    shape = [_shape(s, members) for s in first]
    found = []
    for at in range(0, len(rest) - length + 1, length):
        iteration = rest[at : at + length]
        if [_shape(s, members) for s in iteration] != shape or any(
            len(s.outs) != 1 or s.lines for s in iteration
        ):
            break
        found.append(iteration)
    return found


def _shape(statement: Statement, members: dict[int, MemberKind]) -> str:
    def kind(match: re.Match[str]) -> str:
        member = members[int(match.group(1))]
        return f"<{base_name(member.hint)}: {member.constructor.partition('(')[0]}>"

    return VALUE.sub("<value>", MEMBER.sub(kind, statement.text))


def _as_step(
    iterations: list[list[Statement]],
    rest: list[Statement],
    members: dict[int, MemberKind],
    results: str,
) -> Loop | Comprehension | None:
    used = [[int(m) for s in iteration for m in MEMBER.findall(s.text)] for iteration in iterations]
    flat = [m for row in used for m in row]
    whole = " ".join([*(s.whole for s in rest), results])
    if len(set(flat)) != len(flat) or any(len(re.findall(rf"self\._m{m}_", whole)) > 1 for m in flat):
        return None
    if any(members[m].hint == base_name(members[m].hint) for row in used[1:] for m in row):
        return None  # names without numbers are roles (query, key, value), not repetitions
    length = len(iterations[0])
    carry = _carry(iterations)
    if carry is None:
        return None
    start, places = carry
    if start is None:
        if length > 1 or len(used[0]) > 1:
            return None
        return Comprehension([row[0] for row in used], iterations[0][0].text, -1, iterations[0][0].hint)
    after = " ".join([*(s.whole for s in rest[len(iterations) * length :]), results])
    lasting = {int(v) for v in VALUE.findall(after)}
    outs = [[s.outs[0] for s in iteration] for iteration in iterations]
    if ({o for row in outs for o in row} - {outs[-1][-1]}) & lasting:
        return None
    lists = [list(column) for column in zip(*used, strict=True)]
    return Loop(lists, _body(iterations[0], start, places), start, [row[-1] for row in outs])


def _body(iteration: list[Statement], start: int, carried: set[int]) -> list[Statement]:
    """The first iteration, with `OUTSIDE` for the start except at the places where it is carried."""
    places = itertools.count()

    def mark(match: re.Match[str]) -> str:
        constant = next(places) not in carried and int(match.group(1)) == start
        return OUTSIDE if constant else match.group(0)

    return [replace(s, text=VALUE.sub(mark, s.text)) for s in iteration]


def _carry(iterations: list[list[Statement]]) -> tuple[int | None, set[int]] | None:
    """The value that the first iteration reads where later ones read the result of the one before, and the
    places; (None, no places) where all read the same values; None where it is neither."""
    refs = [[int(v) for s in iteration for v in VALUE.findall(s.text)] for iteration in iterations]
    outs = [[s.outs[0] for s in iteration] for iteration in iterations]
    starts: set[int] = set()
    places: set[int] | None = None
    for t in range(1, len(iterations)):
        here: set[int] = set()
        for place, (ref, first) in enumerate(zip(refs[t], refs[0], strict=True)):
            if ref in outs[t]:
                if first not in outs[0] or outs[t].index(ref) != outs[0].index(first):
                    return None
            elif ref == outs[t - 1][-1]:
                if first in outs[0]:
                    return None
                here.add(place)
                starts.add(first)
            elif ref != first:
                return None
        if places is not None and here != places:
            return None
        places = here
    if not places:
        return None, set()
    return (starts.pop(), places) if len(starts) == 1 else None


def merge(steps: Sequence[Step], results: str) -> list[Step]:
    """Writes a value that is read once inside the statement that reads it, where that stays readable."""
    merged = list(steps)
    for step in merged:
        if isinstance(step, Loop):
            step.body = _merged(step.body, Counter(VALUE.findall(" ".join(s.text for s in step.body))))
    mentions = Counter(VALUE.findall(" ".join([*(t for step in merged for t in texts(step)), results])))
    mentions.update(str(step.start) for step in merged if isinstance(step, Loop) for _ in range(2))
    return _merged(merged, mentions)


def _merged(steps: Sequence[Any], mentions: Counter[str]) -> list[Any]:
    left: list[Any] = []
    waiting: dict[str, Statement] = {}
    for step in steps:
        if isinstance(step, Statement):
            for number in VALUE.findall(step.text):
                value = waiting.get(number)
                if value is not None and len(value.text) <= step.takes:
                    viewed = step.takes > SHORT and re.match(rf"[\w.]+\(_v{number}_\b", step.text)
                    if step.plain and not value.plain and viewed and step.hint != "weights":
                        step.hint, step.plain = value.hint, False
                    step.text = step.text.replace(f"_v{number}_", value.text)
                    left.remove(value)
            if len(step.outs) == 1 and mentions[str(step.outs[0])] == 1 and not step.lines:
                waiting[str(step.outs[0])] = step
        left.append(step)
    return left


def texts(step: Step) -> list[str]:
    """All texts of a step."""
    if isinstance(step, Loop):
        return [s.text for s in step.body]
    return [*step.lines, step.text] if isinstance(step, Statement) else [step.text]
