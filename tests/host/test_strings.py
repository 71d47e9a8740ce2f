"""String operators, numbers as text, and regular expressions against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import InvalidRequestError
from serving.host.operators import OPERATORS
from tests.host.comparison import (
    EMPTY,
    FLOATS,
    NUMBERS,
    Case,
    Cases,
    random_strings,
    run_cases,
    strings,
    values,
)


def _random_bytes(rng: np.random.Generator) -> np.ndarray:
    return strings(*[rng.bytes(n) for n in range(140)])


def _hash(rng: np.random.Generator) -> Cases:
    for buckets in (1, 7, 1000, 2**31, 2**62):
        yield Case((_random_bytes(rng),), {"num_buckets": buckets})
        yield Case((random_strings(rng, (3, 4)),), {"num_buckets": buckets})
    yield Case((strings(shape=(0, 2)),), {"num_buckets": 5})
    yield Case((random_strings(rng, ()),), {"num_buckets": 5})


def _strong(rng: np.random.Generator) -> Cases:
    for case in _hash(rng):
        key = [int(k) for k in rng.integers(-(2**63), 2**63 - 1, 2)]
        yield Case(case.inputs, {**case.attrs, "key": key})


def _each(*attrs: dict) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        words = [b"ABC xyz", "ÀÉßſ Σας İ".encode(), b"\t a b\x0b\x0c\r\n", b"\xff\xfeA", "京都".encode(), b""]
        for given in attrs or ({},):
            yield Case((strings(*words),), given)
            yield Case((random_strings(rng, (3, 4)),), given)
            yield Case((random_strings(rng, ()),), given)
            yield Case((strings(shape=(0, 3)),), given)
            yield Case((_random_bytes(rng),), given)

    return cases


def _cased(rng: np.random.Generator) -> Cases:
    yield from _each({"encoding": ""})(rng)
    words = [b"ABC xyz", "ÀÉß Σας ΑΣ 京都".encode(), "Привет".encode(), b"\xff\xfeA", "ñÑ".encode()]
    yield Case((strings(*words),), {"encoding": "utf-8"})
    yield Case((random_strings(rng, (3, 4)),), {"encoding": "utf-8"})


def _join(rng: np.random.Generator) -> Cases:
    for separator in ("", ",", "é"):
        yield Case(([random_strings(rng, (2, 3)) for _ in range(3)],), {"separator": separator})
        yield Case(([random_strings(rng, ()), random_strings(rng, (4,))],), {"separator": separator})
        yield Case(([random_strings(rng, ())],), {"separator": separator})
        yield Case(([random_strings(rng, (2,)), random_strings(rng, (3,))],), {"separator": separator})
        yield Case(([random_strings(rng, (0,)), random_strings(rng, ())],), {"separator": separator})


_TEXTS = (
    b"",
    b" ",
    b",",
    b"a,b,,c",
    b" a  b\tc ",
    b",,x,",
    b"a;b,c d",
    b"aXXXb",
    "é,京".encode(),
    b"\xff,\x00",
)


def _split(rng: np.random.Generator) -> Cases:
    for delimiter in (b"", b",", b" ,", b";, "):
        for skip in (False, True):
            attrs = {"skip_empty": skip}
            yield Case((random_strings(rng, (8,), _TEXTS), strings(delimiter, shape=())), attrs)
    yield Case((strings(), strings(b",", shape=())), attrs)


def _split_v2(rng: np.random.Generator) -> Cases:
    for separator in (b"", b",", b"XX", b", "):
        for limit in (-1, 0, 1, 2):
            yield Case((random_strings(rng, (9,), _TEXTS), strings(separator, shape=())), {"maxsplit": limit})
    yield Case((strings(), strings(b",", shape=())), {"maxsplit": -1})


def _substr(rng: np.random.Generator) -> Cases:
    for unit in ("BYTE", "UTF8_CHAR"):
        for index in (np.int32, np.int64):
            texts = strings(b"hello", "aé京b".encode(), b"worlds")
            for pos in (-4, -1, 0, 2, 4, 5, 9):
                for length in (0, 1, 3, 10, -1):
                    yield Case((texts, np.array(pos, index), np.array(length, index)), {"unit": unit})
            yield Case((texts, np.array([0, 1, -2], index), np.array([2, 1, 9], index)), {"unit": unit})
            pos = np.array([[0], [1]], index)
            yield Case((texts, pos, np.full_like(pos, 2)), {"unit": unit})
    yield Case((texts, np.array([0, 1]), np.array([1, 1])), {"unit": "BYTE"})
    yield Case((texts, np.array([0, 1, 1]), np.array(1)), {"unit": "BYTE"})


def _reduce_join(rng: np.random.Generator) -> Cases:
    for axes in ([0], [1], [-1, 0], [0, 1, 2], [2, 0], [], [3], [0, 0]):
        for keep in (False, True):
            inputs = (random_strings(rng, (2, 3, 2)), np.array(axes, np.int32))
            yield Case(inputs, {"keep_dims": keep, "separator": "-"})
    yield Case((random_strings(rng, (2, 0)), np.array(1, np.int32)), {"keep_dims": False, "separator": "-"})


def _n_grams(rng: np.random.Generator) -> Cases:
    for widths in ([1], [2], [3, 2], [4, 1]):
        for pad in (-1, 0, 1, 5):
            for preserve in (False, True):
                attrs = {
                    "separator": "|",
                    "ngram_widths": widths,
                    "left_pad": "L",
                    "right_pad": "R",
                    "pad_width": pad,
                    "preserve_short_sequences": preserve,
                }
                for index in (np.int32, np.int64):
                    splits = np.array([0, 1, 1, 3, 8], index)
                    yield Case((random_strings(rng, (8,)), splits), attrs)
    yield Case((random_strings(rng, (3,)), np.array([0, 2])), attrs)
    yield Case((random_strings(rng, (3,)), np.array([0, 2, 1, 3])), attrs)
    yield Case((strings(), np.array([0])), attrs)


def _encode_base64(rng: np.random.Generator) -> Cases:
    yield from _each({"pad": True}, {"pad": False})(rng)


def _decode_base64(rng: np.random.Generator) -> Cases:
    texts = [rng.bytes(n) for n in range(20)]
    for pad in (False, True):
        encoded = tf.raw_ops.EncodeBase64(input=texts, pad=pad).numpy()
        yield Case((encoded,))
    for bad in (
        b"a",
        b"ab=",
        b"ab==",
        b"abc=",
        b"a===",
        b"a+b/",
        b"a b=",
        b"====",
        b"abcde",
        b"ab=c",
        b"\xff",
        b"=",
    ):
        yield Case((strings(bad),))


def _decode_raw(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool"):
        for little in (True, False):
            texts = strings(*[bytes(rng.integers(0, 2, 16).astype(np.uint8)) for _ in range(3)])
            yield Case((texts,), {"out_type": dtype, "little_endian": little})
    yield Case((strings(b"ab", b"abcd"),), {"out_type": "int8", "little_endian": True})
    yield Case((strings(b"abc"),), {"out_type": "int16", "little_endian": True})
    yield Case((strings(shape=(0, 2)),), {"out_type": "int16", "little_endian": True})


def _as_string(rng: np.random.Generator) -> Cases:
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e10, 1e-5, 123456789.0, 1.5, -2.25, 1e-40])
    defaults = {"precision": -1, "scientific": False, "shortest": False, "width": -1, "fill": ""}
    changes = [
        {},
        {"precision": 3},
        {"precision": 0},
        {"shortest": True},
        {"scientific": True},
        {"shortest": True, "precision": 9},
        {"scientific": True, "shortest": True},
        {"width": 9},
        {"width": 0},
        *({"width": 12, "fill": fill} for fill in ("0", "-", "+", " ", "#")),
        *({"fill": fill} for fill in ("0", "-", "+", " ", "#")),
        {"fill": "#", "precision": 0},
        {"fill": "x", "width": 3},
    ]
    for change in changes:
        attrs = {**defaults, **change}
        for dtype in (*NUMBERS, "bool", "string"):
            yield Case((values(rng, (2, 3), dtype),), attrs)
        for dtype in FLOATS:
            yield Case((odd.astype(dtype),), attrs)
        for dtype in ("int64", "uint64", "int8"):
            info = np.iinfo(dtype)
            yield Case((np.array([info.min, info.max], dtype),), attrs)


_NUMBER_TEXTS = """1| 1 ||abc|inf|-INF|+inf|infinity|nan|NaN
-nan|0x10|1e400|-1e400|1e-400|1.|.5|.|+5|+-5|1_000|1e5
1E+5|1e|1d5|1 2|1f|3.4028236e38|3.5e38|-0|9223372036854775807|9223372036854775808
-9223372036854775808|1.5|2147483648|007|0x|0x1p3|0X1.8P-2|nan(1)|nan(|infinit|1e5.5|--1|16777217
16777217.00000000001|1.00000005960464477539062500001|0.1|1e23|8.5e-46|7.006492e-46"""


def _to_number(rng: np.random.Generator) -> Cases:
    texts = [t.encode() for line in _NUMBER_TEXTS.split("\n") for t in line.split("|")]
    texts += [b"1\x00", b"1\xa0", b"\t1\n", b"\x0b1", "é".encode(), b"1" * 40, b"0." + b"1" * 40]
    texts += [
        b"0" * 50 + b"12",
        b"-" + b"0" * 30,
        b"9" * 5000,
        b"0." + b"3" * 5000,
        b"1.00000005960464477539062" + b"5" * 5000,
    ]
    for dtype in ("float32", "float64", "int32", "int64"):
        for text in texts:
            yield Case((strings(text),), {"out_type": dtype})
        integers = dtype.startswith("int")
        many = [b"%d" % v if integers else repr(float(v)).encode() for v in rng.normal(size=50) * 1e4]
        yield Case((strings(*many, shape=(5, 10)),), {"out_type": dtype})


_PATTERNS = [
    "a",
    r"[^\p{L}\d ]",
    r"\pN+",
    r"\P{Lu}",
    "b*",
    "",
    "[aeiou]+",
    r"(\w+) (\w+)",
    r"\d{2,3}",
    "^a|c$",
    ".",
    "..",
    "[^a]",
    r"\s+",
    r"\S",
    r"\W",
    r"(a|b)+c?",
    "a+?b",
    r"(?i)hello",
    r"(?s).",
    r"\bW",
    "[[:punct:]]",
    r"[\d,.-]",
    "é|京",
    r"[^\x00-\x7f]",
    r"\.",
    "a{0}",
    "x{,3}",
    "(?P<n>a)b",
    "[]a]",
    r"a\z",
    "(a)|b",
]
_SUBJECTS = (
    b"",
    b"a",
    b"baac",
    b"Hello World",
    "é北京京 é".encode(),
    b"\xff\x00b\n",
    b"12345, a-b.c",
    b"a\n",
    b"ab  ba\x0b",
    b"x{,3}",
    b"]a[",
)


def _replace_cases(rng: np.random.Generator) -> list[tuple[np.ndarray, str, str, bool]]:
    out = []
    for pattern in _PATTERNS:
        for rewrite in (
            "-",
            "",
            r"<\0>",
            r"\\",
            *([r"\1."] if "(" in pattern and "(?i" not in pattern and "(?s" not in pattern else []),
        ):
            out += [(strings(*_SUBJECTS), pattern, rewrite, everywhere) for everywhere in (False, True)]
    return out


def _regex_replace(rng: np.random.Generator) -> Cases:
    for texts, pattern, rewrite, everywhere in _replace_cases(rng):
        inputs = (texts, strings(pattern.encode(), shape=()), strings(rewrite.encode(), shape=()))
        yield Case(inputs, {"replace_global": everywhere})
    yield Case((texts, strings(b"(", shape=()), strings(b"", shape=())), {"replace_global": True})


def _static_regex_replace(rng: np.random.Generator) -> Cases:
    for texts, pattern, rewrite, everywhere in _replace_cases(rng):
        yield Case((texts,), {"pattern": pattern, "rewrite": rewrite, "replace_global": everywhere})


def _full_match(rng: np.random.Generator) -> Cases:
    for pattern in [*_PATTERNS, ".*", "[a-z]*", "a|ab|abc", "(", r"\d+, .*"]:
        yield Case((strings(*_SUBJECTS), strings(pattern.encode(), shape=())))


def _static_full_match(rng: np.random.Generator) -> Cases:
    for pattern in [*_PATTERNS, ".*", "[a-z]*", "a|ab|abc", r"\d+, .*"]:
        yield Case((strings(*_SUBJECTS),), {"pattern": pattern})


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "StringToHashBucket": _hash,
    "StringToHashBucketFast": _hash,
    "StringToHashBucketStrong": _strong,
    "StringLength": _each({"unit": "BYTE"}, {"unit": "UTF8_CHAR"}),
    "StringLower": _cased,
    "StringUpper": _cased,
    "StringStrip": _each(),
    "StringJoin": _join,
    "StringSplit": _split,
    "StringSplitV2": _split_v2,
    "Substr": _substr,
    "ReduceJoin": _reduce_join,
    "StringNGrams": _n_grams,
    "EncodeBase64": _encode_base64,
    "DecodeBase64": _decode_base64,
    "DecodeRaw": _decode_raw,
    "AsString": _as_string,
    "StringToNumber": _to_number,
    "RegexReplace": _regex_replace,
    "StaticRegexReplace": _static_regex_replace,
    "RegexFullMatch": _full_match,
    "StaticRegexFullMatch": _static_full_match,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(?=a)",
        "(?<!a)b",
        r"(a)\1",
        "a++",
        "a**",
        r"\p{Greek}",
        r"\C",
        "(?m)^a",
        "(?i:a)",
        "x{1001}",
        r"[\D]",
        "a)",
    ],
)
def test_patterns_that_are_refused(pattern: str) -> None:
    """What RE2 reads otherwise, what only one of both knows, and what would take exponential time."""
    with pytest.raises(InvalidRequestError, match="regular expression"):
        OPERATORS["static_regex_full_match"](EMPTY, strings(b"a"), pattern=pattern)


def test_rewrites_that_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="rewrite"):
        OPERATORS["static_regex_replace"](EMPTY, strings(b"a"), pattern="(a)", rewrite=r"\2")
