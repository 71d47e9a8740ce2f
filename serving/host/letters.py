"""Python's tables of letters, for the native executor: both ways to run a program change the same letters."""

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

_SURROGATES = range(0xD800, 0xE000)
_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"
_FINAL_SIGMA = "\N{GREEK SMALL LETTER FINAL SIGMA}"


@cache
def upper_case() -> dict[str, Any]:
    """`case_from`: the characters that change, in order; `case_to`: the characters that each becomes."""
    changes = {c: u for c in _characters() if (u := chr(c).upper()) != chr(c)}
    return _changes(changes)


@cache
def lower_case() -> dict[str, Any]:
    """As `upper_case`, with the ranges of characters that decide whether a sigma ends a word: `cased` ones,
    and those that are `ignorable` beside them. A range is its first and last character."""
    changes = {c: low for c in _characters() if (low := chr(c).lower()) != chr(c)}
    # A sigma after a letter is a final one; an ignorable character between them changes nothing.
    after = {c for c in _characters() if _is_final(f"1{chr(c)}{_SIGMA}")}
    through = {c for c in _characters() if _is_final(f"A{chr(c)}{_SIGMA}")}
    return _changes(changes) | {"cased": _ranges(after), "ignorable": _ranges(through - after)}


def _characters() -> Iterable[int]:
    return (c for c in range(sys.maxunicode + 1) if c not in _SURROGATES)


def _is_final(text: str) -> bool:
    return text.lower()[-1] == _FINAL_SIGMA


def _changes(changes: dict[int, str]) -> dict[str, Any]:
    return {"case_from": list(changes), "case_to": [[ord(c) for c in to] for to in changes.values()]}


def _ranges(characters: Iterable[int]) -> list[int]:
    ends: list[int] = []
    for c in sorted(characters):
        if ends and ends[-1] == c - 1:
            ends[-1] = c
        else:
            ends += [c, c]
    return ends
