"""RE2 patterns by Python's `re`, for the syntax in which both agree.

RE2 works on UTF-8 characters, so strings are decoded, with bytes that are not UTF-8 kept as lone surrogates,
which no `.` and no negated class may match. The translation spells out `.`, `$` and the shorthand classes,
which differ, and refuses what it does not know. An unbounded repeat of a group that can itself repeat without
bound is refused, too: RE2 takes linear time on it, Python's matcher exponential time.
"""

import re
import sys
import unicodedata
from functools import lru_cache

import numpy as np

from serving.host.operators.registry import Lookups, Operator, check, refuse, scalar, strings

_BROKEN = r"\udc80-\udcff"
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\f\r "}
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CONTROL = {"a": r"\x07", "f": r"\f", "n": r"\n", "r": r"\r", "t": r"\t", "v": r"\v"}
_REPEAT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_FLAGS = re.compile(r"\(\?([is]+)\)")

_CATEGORIES = {
    *"CLMNPSZ", "Cc", "Cf", "Co", "Ll", "Lm", "Lo", "Lt", "Lu", "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc",
    "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs",
}  # fmt: skip
"""General categories of Unicode. Python and RE2 may differ by a version of Unicode on newly assigned
characters."""


@lru_cache(maxsize=64)
def category_ranges(category: str) -> str:
    """The characters of a general category, as the inside of a character class."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000 or not unicodedata.category(chr(code)).startswith(category):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(
        f"{re.escape(chr(a))}-{re.escape(chr(b))}" if b > a else re.escape(chr(a)) for a, b in ranges
    )


class _Translator:
    """Reads an RE2 pattern from left to right and writes the same one for Python."""

    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0
        flags = _FLAGS.match(pattern)
        self.flags = flags[1] if flags else ""
        self.at = flags.end() if flags else 0
        self.groups = 0

    def refuse(self, what: str) -> None:
        refuse(f"regular expression {self.pattern!r}: {what} is not supported")

    def translate(self) -> tuple[str, int]:
        """The pattern and its number of groups."""
        body, _ = self._alternatives()
        if self.at < len(self.pattern):
            self.refuse(f"an unmatched {self.pattern[self.at]!r}")
        return ("(?i)" if "i" in self.flags else "") + body, self.groups

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _alternatives(self) -> tuple[str, bool]:
        """Up to the closing parenthesis: the translation, and whether it can repeat without bound."""
        out, unbounded = [], False
        while self.at < len(self.pattern) and self._peek() != ")":
            if self._peek() == "|":
                self.at += 1
                out.append("|")
                continue
            atom, repeats, quantifiable = self._atom()
            quantifier, endless = self._quantifier() if quantifiable else ("", False)
            if endless and repeats:
                self.refuse("an unbounded repeat of an unbounded repeat")
            out.append(atom + quantifier)
            unbounded |= repeats or endless
        return "".join(out), unbounded

    def _quantifier(self) -> tuple[str, bool]:
        mark = self._peek()
        if mark and mark in "*+?":
            self.at += 1
            endless = mark != "?"
        elif (repeat := _REPEAT.match(self.pattern, self.at)) is not None:
            if max(int(n) for n in (repeat[1], repeat[3] or "0")) > 1000:
                self.refuse("a repeat of more than 1000")
            self.at = repeat.end()
            mark, endless = repeat[0], repeat[2] is not None and not repeat[3]
        else:
            return "", False
        if self._peek() == "?":
            self.at += 1
            mark += "?"
        if (self._peek() and self._peek() in "*+?") or _REPEAT.match(self.pattern, self.at):
            self.refuse("a repeat of a repeat")
        return mark, endless

    def _atom(self) -> tuple[str, bool, bool]:
        """One atom: its translation, whether it repeats without bound, whether a quantifier may follow."""
        char = self._peek()
        self.at += 1
        if char == "(":
            return (*self._group(), True)
        if char == "[":
            return self._set(), False, True
        if char == ".":
            return f"[^{_BROKEN}]" if "s" in self.flags else rf"[^\n{_BROKEN}]", False, True
        if char == "^":
            return r"\A", False, False
        if char == "$":
            return r"\Z", False, False
        if char == "\\":
            return self._escape()
        if char in "*+?":
            self.refuse(f"{char!r} without anything to repeat")
        if char == "{" and _REPEAT.match(self.pattern, self.at - 1):
            self.refuse("a repeat of nothing")
        return re.escape(char), False, True

    def _group(self) -> tuple[str, bool]:
        opening = "("
        if self._peek() == "?":
            if self.pattern.startswith("?:", self.at):
                self.at += 2
                opening = "(?:"
            elif (
                name := re.compile(r"\?P?<[A-Za-z_]\w*>", re.ASCII).match(self.pattern, self.at)
            ) is not None:
                self.at = name.end()
            else:
                self.refuse(f"the group (?{self.pattern[self.at + 1 : self.at + 3]}...")
        self.groups += opening == "("
        body, repeats = self._alternatives()
        if self._peek() != ")":
            self.refuse("a missing )")
        self.at += 1
        return f"{opening}{body})", repeats

    def _escape(self) -> tuple[str, bool, bool]:
        char = self._peek()
        self.at += 1
        if char in ("A", "z"):
            return r"\A" if char == "A" else r"\Z", False, False
        if char in ("b", "B"):
            return rf"(?a:\{char})", False, False
        if char == "p":
            return f"[{self._category()}]", False, True
        if char == "P":
            return f"[^{self._category()}{_BROKEN}]", False, True
        if char.lower() in _CLASSES and char:
            ranges = _CLASSES[char.lower()]
            return f"[{ranges}]" if char.islower() else f"[^{ranges}{_BROKEN}]", False, True
        return self._literal(char), False, True

    def _category(self) -> str:
        """The characters of `\\p{L}` or `\\pL`, after the p."""
        name = re.compile(r"\{(\w+)\}|(\w)").match(self.pattern, self.at)
        category = (name[1] or name[2]) if name is not None else ""
        if name is None or category not in _CATEGORIES:
            self.refuse(f"the escape \\p{{{category}}}")
        else:
            self.at = name.end()
        return category_ranges(category)

    def _literal(self, char: str) -> str:
        """The character that a backslash and `char` stand for."""
        if char in _CONTROL and char:
            return _CONTROL[char]
        if char == "x":
            code = re.compile(r"[0-9A-Fa-f]{2}|\{[0-9A-Fa-f]{1,6}\}").match(self.pattern, self.at)
            if code is None:
                self.refuse(r"the escape \x")
            else:
                self.at = code.end()
                return re.escape(chr(int(code[0].strip("{}"), 16)))
        if not char or char.isalnum() or ord(char) > 127:
            self.refuse(f"the escape \\{char}")
        return re.escape(char)

    def _set(self) -> str:
        negated = self._peek() == "^"
        self.at += negated
        out, first = [], True
        while first or self._peek() != "]":
            char = self._peek()
            if not char:
                self.refuse("a missing ]")
            self.at += 1
            first = False
            if char == "[" and self._peek() == ":":
                name = re.compile(r":(\w+):\]").match(self.pattern, self.at)
                if name is None or name[1] not in _POSIX:
                    self.refuse("this character class")
                else:
                    out.append(_POSIX[name[1]])
                    self.at = name.end()
            elif char == "\\":
                escaped = self._peek()
                self.at += 1
                if escaped == "p":
                    out.append(self._category())
                elif escaped and escaped in _CLASSES:
                    out.append(_CLASSES[escaped])
                elif escaped and escaped.lower() in (*_CLASSES, "p"):
                    self.refuse("a negated class inside of a class")
                else:
                    out.append(self._literal(escaped))
            elif char == "-":
                # Between two characters it is a range; first or last it is itself.
                out.append(r"\-" if not out or self._peek() == "]" else "-")
            else:
                out.append(re.escape(char))
        self.at += 1
        return f"[{'^' if negated else ''}{''.join(out)}{_BROKEN if negated else ''}]"


@lru_cache(maxsize=1024)
def compile_pattern(pattern: bytes) -> tuple[re.Pattern[str], int]:
    """A compiled RE2 pattern and its number of groups. Raises `InvalidRequestError` for what is not
    supported."""
    try:
        translated, groups = _Translator(pattern.decode()).translate()
        return re.compile(translated), groups
    except (UnicodeDecodeError, re.error, OverflowError, RecursionError, ValueError) as error:
        refuse(f"regular expression {pattern!r} is not supported: {error}")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def rewrite_parts(rewrite: bytes, groups: int) -> tuple[str | int, ...]:
    r"""Text and group numbers: `\0` to `\9` are groups, `\\` is a backslash."""
    parts: list[str | int] = []
    for piece in re.findall(r"\\.?|[^\\]+", _decode(rewrite), re.DOTALL):
        if piece[0] != "\\":
            parts.append(piece)
        elif piece == "\\\\":
            parts.append("\\")
        elif piece[1:] in tuple("0123456789") and int(piece[1:]) <= groups:
            parts.append(int(piece[1:]))
        else:
            refuse(f"rewrite {rewrite!r} has {piece!r}, which is not one of the pattern's {groups} groups")
    return tuple(parts)


def _replace(text: bytes, pattern: re.Pattern[str], parts: tuple[str | int, ...], everywhere: bool) -> bytes:
    """RE2 takes no empty match right after a match; Python's `sub` does."""
    subject, out, at, last_end = _decode(text), [], 0, -1
    while at <= len(subject):
        match = pattern.search(subject, at)
        if match is None:
            break
        if match.end() == match.start() == last_end:
            out.append(subject[at : at + 1])
            at += 1
            last_end = -1
            continue
        out.append(subject[at : match.start()])
        out.extend(p if isinstance(p, str) else match[p] or "" for p in parts)
        at = last_end = match.end()
        if not everywhere:
            break
    out.append(subject[at:])
    return "".join(out).encode("utf-8", "surrogateescape")


def static_regex_replace(
    lookups: Lookups, texts: np.ndarray, *, pattern: str, rewrite: str, replace_global: bool = True
) -> np.ndarray:
    """Every match (or the first one) replaced."""
    compiled, groups = compile_pattern(pattern.encode("utf-8", "surrogateescape"))
    parts = rewrite_parts(rewrite.encode("utf-8", "surrogateescape"), groups)
    found = [_replace(text, compiled, parts, replace_global) for text in texts.ravel().tolist()]
    return strings(found, texts.shape)


def regex_replace(
    lookups: Lookups,
    texts: np.ndarray,
    pattern: np.ndarray,
    rewrite: np.ndarray,
    *,
    replace_global: bool = True,
) -> np.ndarray:
    """Every match (or the first one) replaced."""
    check(pattern.ndim == rewrite.ndim == 0, "pattern and rewrite must be scalars")
    return static_regex_replace(
        lookups,
        texts,
        pattern=_decode(scalar(pattern, "pattern")),
        rewrite=_decode(scalar(rewrite, "rewrite")),
        replace_global=replace_global,
    )


def static_regex_full_match(lookups: Lookups, texts: np.ndarray, *, pattern: str) -> np.ndarray:
    """bool: the whole string matches."""
    compiled, _ = compile_pattern(pattern.encode("utf-8", "surrogateescape"))
    found = [compiled.fullmatch(_decode(text)) is not None for text in texts.ravel().tolist()]
    return np.array(found, bool).reshape(texts.shape)


def regex_full_match(lookups: Lookups, texts: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """bool: the whole string matches."""
    check(pattern.ndim == 0, "a pattern must be a scalar")
    return static_regex_full_match(lookups, texts, pattern=_decode(scalar(pattern, "pattern")))


OPERATORS: dict[str, Operator] = {
    "regex_replace": regex_replace,
    "static_regex_replace": static_regex_replace,
    "regex_full_match": regex_full_match,
    "static_regex_full_match": static_regex_full_match,
}
