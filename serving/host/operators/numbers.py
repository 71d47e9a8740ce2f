"""Numbers as text and back, as C's printf writes them and TensorFlow's parser reads them."""

import math
import re
from decimal import Decimal

import numpy as np

from serving.host.operators.registry import Lookups, Operator, check, refuse, strings

_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[+-]?0x([0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(p[+-]?\d+)?", re.IGNORECASE)
_SPECIAL = re.compile(rb"([+-]?)(inf|infinity|nan(?:\([0-9a-z_]*\))?)", re.IGNORECASE)
_INTEGER = re.compile(rb"([+-]?)(?=\d)0*(\d*)")
_SPACE = b" \t\n\v\f\r"


def as_string(
    lookups: Lookups,
    values: np.ndarray,
    *,
    precision: int = -1,
    scientific: bool = False,
    shortest: bool = False,
    width: int = -1,
    fill: str = "",
) -> np.ndarray:
    """Each value as printf writes it: `%d`, `%f`, `%e` (scientific) or `%g` (shortest); bools as `true` and
    `false`."""
    is_float = values.dtype.kind == "f"
    check(not (scientific and shortest), "scientific and shortest exclude each other")
    is_plain = not (scientific or shortest or precision >= 0)
    check(is_float or values.dtype.kind == "O" or is_plain, f"a float format for {values.dtype}")
    check(fill in ("", " ", "+", "-", "0", "#"), f"fill {fill!r} is not supported")
    if values.dtype == bool:
        return strings([b"true" if v else b"false" for v in values.ravel().tolist()], values.shape)
    flag, space = fill, b"%d" % width if width > 0 else b""
    if values.dtype.kind == "O":
        return strings([_aligned(v, flag, width) for v in values.ravel().tolist()], values.shape)
    if values.dtype.kind in "iu":
        return _integers(values, flag, space, width)
    digits = b".%d" % precision if precision >= 0 else b""
    kind = b"g" if shortest else b"e" if scientific else b"f"
    format_ = b"%" + flag.encode() + space + digits + kind
    if values.dtype == np.float32:  # TensorFlow's threads flush denormal numbers to zero
        values = np.where(
            np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values
        )
    return strings([_float(v, format_, flag, width) for v in values.ravel().tolist()], values.shape)


def _aligned(text: bytes, flag: str, width: int) -> bytes:
    return text.ljust(max(width, 0)) if flag == "-" else text.rjust(max(width, 0))


def _integers(values: np.ndarray, flag: str, space: bytes, width: int) -> np.ndarray:
    # `+` and ` ` mean nothing to an unsigned format, `#` nothing to a decimal one.
    flag = "" if flag == "#" or (values.dtype.kind == "u" and flag in "+ ") else flag
    format_ = b"%" + flag.encode() + space + b"d"
    return strings([format_ % v for v in values.ravel().tolist()], values.shape)


def _float(value: float, format_: bytes, flag: str, width: int) -> bytes:
    if math.isfinite(value):
        return format_ % value
    text = b"nan" if math.isnan(value) else b"inf"
    if math.copysign(1, value) < 0:
        text = b"-" + text
    elif flag in ("+", " "):
        text = flag.encode() + text
    return _aligned(text, flag, width)


def string_to_number(lookups: Lookups, texts: np.ndarray, *, out_type: str = "float32") -> np.ndarray:
    """Each string as a number; white space around it is passed over, anything else is refused."""
    dtype, flat = np.dtype(out_type), texts.ravel().tolist()
    if dtype.kind != "f":
        return np.array([_read_integer(text, dtype) for text in flat], dtype).reshape(texts.shape)
    values = np.array([_read_float(text) for text in flat], np.float64)
    if dtype == np.float32:
        # The way over double rounds twice. That matters only half-way between two float32, where the last
        # 29 of a double's bits are 10...0, and for denormal numbers, which have fewer bits.
        half_way = (values.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        denormal = (np.abs(values) < np.finfo(np.float32).tiny) & (values != 0)
        for at in np.flatnonzero(half_way | denormal):
            values[at] = _round_once(float(values[at]), flat[at].strip(_SPACE))
    with np.errstate(over="ignore"):
        return values.astype(dtype).reshape(texts.shape)


def _read_integer(text: bytes, dtype: np.dtype) -> int:
    digits, limits = text.strip(_SPACE), np.iinfo(dtype)
    # Twenty digits are more than an int64 has; Python takes quadratic time for very many, and refuses some.
    found = _INTEGER.fullmatch(digits)
    if found is not None and len(found[2]) < 20:
        value = int(found[1] + (found[2] or b"0"))
        if limits.min <= value <= limits.max:
            return value
    refuse(f"{text!r} is not an {dtype} number")


def _read_float(text: bytes) -> float:
    digits = text.strip(_SPACE)
    if _DECIMAL.fullmatch(digits) is not None:
        return float(digits)
    if (special := _SPECIAL.fullmatch(digits)) is not None:
        value = math.nan if special[2][:1] in b"nN" else math.inf
        return -value if special[1] == b"-" else value
    if _HEXADECIMAL.fullmatch(digits) is not None:
        try:
            return float.fromhex(digits.decode())
        except OverflowError:
            return -math.inf if digits[:1] == b"-" else math.inf
    refuse(f"{text!r} is not a number")


def _round_once(value: float, digits: bytes) -> float:
    """A double that becomes the float32 nearest to the digits: where the double is half-way between two
    float32, which half the digits lie in decides."""
    with np.errstate(over="ignore"):
        nearest = np.float32(value)
    if not np.isfinite(nearest):
        return value
    other = np.nextafter(nearest, np.float32(math.copysign(math.inf, value - float(nearest))))
    if float(nearest) == value or not np.isfinite(other) or (float(nearest) + float(other)) / 2 != value:
        return value
    if _DECIMAL.fullmatch(digits) is None:  # hexadecimal digits are exact
        return value
    exact, half = Decimal(digits.decode()), Decimal(value)
    if exact == half:
        return value
    return float(max(nearest, other) if exact > half else min(nearest, other))


OPERATORS: dict[str, Operator] = {"as_string": as_string, "string_to_number": string_to_number}
