"""RE2 patterns as programs for the native executor's matcher: instructions of an automaton that reads a
string once (Thompson 1968, Pike's captures), so that no pattern takes more than linear time.

The pattern is first translated to Python's syntax (`operators/regular_expressions.py`), which settles what is
supported and what every class means; Python's own parser then reads it. One meaning, two matchers.
"""

import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from serving.host.operators.regular_expressions import compile_pattern

_LARGEST = 0x10FFFF
_MAX_INSTRUCTIONS = 50_000

# Instructions: (opcode, first operand, second operand).
MATCH, CHARACTERS, SPLIT, JUMP, SAVE, ASSERT = range(6)
"""MATCH; CHARACTERS of the ranges [a, b) of the table; SPLIT to a, else b; JUMP to a; SAVE the place as
number a; ASSERT a."""
BEGIN, END, WORD_BOUNDARY, NO_WORD_BOUNDARY = range(4)


class TooLarge(Exception):
    """A pattern that needs more instructions than the matcher takes."""


def regex_program(pattern: str) -> dict[str, Any]:
    """`instructions` flat, `ranges` of characters flat (first and last of each), `groups`.

    Raises `InvalidRequestError` for a pattern that is not supported, `TooLarge`.
    """
    compiled, groups = compile_pattern(pattern.encode("utf-8", "surrogateescape"))
    compiler = _Compiler(ignore_case=bool(compiled.flags & re.IGNORECASE))
    compiler.emit(SAVE, 0)
    compiler.sequence(re._parser.parse(compiled.pattern))  # pyright: ignore[reportAttributeAccessIssue]
    compiler.emit(SAVE, 1)
    compiler.emit(MATCH)
    flat = [value for instruction in compiler.code for value in instruction]
    return {"instructions": flat, "ranges": compiler.ranges, "groups": groups}


class _Compiler:
    """Writes instructions for Python's parsed pattern, item by item."""

    def __init__(self, ignore_case: bool):
        self.code: list[list[int]] = []
        self.ranges: list[int] = []
        self._ignore_case = ignore_case

    def emit(self, opcode: int, a: int = 0, b: int = 0) -> int:
        if len(self.code) >= _MAX_INSTRUCTIONS:
            raise TooLarge(f"a pattern of more than {_MAX_INSTRUCTIONS} steps")
        self.code.append([opcode, a, b])
        return len(self.code) - 1

    def sequence(self, items: Iterable[Any]) -> None:
        for operation, argument in items:
            getattr(self, f"_{str(operation).lower()}")(argument)

    def _characters(self, ranges: Iterable[tuple[int, int]]) -> None:
        first = len(self.ranges) // 2
        for low, high in _merged(ranges):
            self.ranges += [low, high]
        self.emit(CHARACTERS, first, len(self.ranges) // 2)

    def _literal(self, code: int) -> None:
        self._characters(self._cased([(code, code)]))

    def _not_literal(self, code: int) -> None:
        self._characters(_inverted(self._cased([(code, code)])))

    def _any(self, _: None) -> None:
        raise NotImplementedError("the translation writes every class")

    def _in(self, items: list[Any]) -> None:
        ranges, negated = [], False
        for operation, argument in items:
            match str(operation):
                case "NEGATE":
                    negated = True
                case "LITERAL":
                    ranges.append((argument, argument))
                case "RANGE":
                    ranges.append(argument)
                case other:
                    raise NotImplementedError(other)
        ranges = self._cased(ranges)
        self._characters(_inverted(ranges) if negated else ranges)

    def _cased(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """With every character that Python takes for one of these when case does not matter."""
        if not self._ignore_case or not ranges:
            return ranges
        inside = re.compile(
            f"[{''.join(f'{re.escape(chr(a))}-{re.escape(chr(b))}' for a, b in ranges)}]", re.IGNORECASE
        )
        return [*ranges, *((c, c) for c in _letters_of_two_cases() if inside.fullmatch(chr(c)))]

    def _branch(self, argument: tuple[None, list[Any]]) -> None:
        _, branches = argument
        ends = []
        for branch in branches[:-1]:
            split = self.emit(SPLIT)
            self.code[split][1] = len(self.code)
            self.sequence(branch)
            ends.append(self.emit(JUMP))
            self.code[split][2] = len(self.code)
        self.sequence(branches[-1])
        for end in ends:
            self.code[end][1] = len(self.code)

    def _subpattern(self, argument: tuple[int | None, int, int, Any]) -> None:
        group, _, _, items = argument
        if group is not None:
            self.emit(SAVE, 2 * group)
        self.sequence(items)
        if group is not None:
            self.emit(SAVE, 2 * group + 1)

    def _max_repeat(self, argument: tuple[int, int, Any]) -> None:
        self._repeat(*argument, greedy=True)

    def _min_repeat(self, argument: tuple[int, int, Any]) -> None:
        self._repeat(*argument, greedy=False)

    def _repeat(self, least: int, most: Any, items: Any, greedy: bool) -> None:
        for _ in range(least):
            self.sequence(items)
        endless = int(most) >= sys.maxsize or str(most) == "MAXREPEAT"
        if endless:
            split = self.emit(SPLIT)
            body = len(self.code)
            self.sequence(items)
            self.emit(JUMP, split)
            self._choose(split, body, len(self.code), greedy)
            return
        splits = []
        for _ in range(int(most) - least):
            splits.append(self.emit(SPLIT))
            self.sequence(items)
        for split in splits:
            self._choose(split, split + 1, len(self.code), greedy)

    def _choose(self, split: int, body: int, after: int, greedy: bool) -> None:
        self.code[split][1:] = [body, after] if greedy else [after, body]

    def _at(self, where: Any) -> None:
        places = {
            "AT_BEGINNING_STRING": BEGIN,
            "AT_END_STRING": END,
            "AT_BOUNDARY": WORD_BOUNDARY,
            "AT_NON_BOUNDARY": NO_WORD_BOUNDARY,
        }
        self.emit(ASSERT, places[str(where)])


@cache
def _letters_of_two_cases() -> tuple[int, ...]:
    return tuple(
        c
        for c in range(_LARGEST + 1)
        if not 0xD800 <= c < 0xE000 and (chr(c).lower() != chr(c) or chr(c).upper() != chr(c))
    )


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, without overlaps."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _inverted(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    out, next_ = [], 0
    for low, high in _merged(ranges):
        if low > next_:
            out.append((next_, low - 1))
        next_ = high + 1
    return out if next_ > _LARGEST else [*out, (next_, _LARGEST)]
