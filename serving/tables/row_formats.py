"""How a row is stored, and how float32 rows become it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.tables.errors import TableMismatchError, TableWriteError

RowFormat = Literal["f32", "f16", "bf16", "int8", "f64", "i32", "i64"]


@dataclass(frozen=True)
class Format:
    """`code` stands for it in a file. `element` is NumPy's dtype of the stored elements, None where NumPy has
    none. `decodes` says whether lookups give float32; the others are handed out as they are."""

    name: RowFormat
    code: int
    element: np.dtype | None
    element_bytes: int
    decodes: bool
    encode: Callable[[np.ndarray], np.ndarray]

    def row_bytes(self, dim: int) -> int:
        """Of one row; `int8` has a float32 scale before it."""
        return dim * self.element_bytes + (4 if self.name == "int8" else 0)


def encode(format: Format, rows: np.ndarray, first: int, path: object) -> np.ndarray:
    """`[n, dim]` numbers as `[n, row_bytes]` uint8. `first` is the number of the first row, for messages.

    Raises:
        TableWriteError: a value that is not finite, also once it is in the row format.
        TableMismatchError: rows of a kind of number that the format does not hold.
    """
    kind = "iu" if format.name in ("i32", "i64") else "f"
    if rows.dtype.kind not in kind:
        raise TableMismatchError(f"{path} holds rows of {format.name}, it was given rows of {rows.dtype}")
    if kind == "f":
        _refuse_bad(np.isfinite(rows), rows, first, f"{path}: {{}} is not finite")
        given = rows
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32) if format.decodes else rows
            encoded = format.encode(rows)
        good = np.isfinite(rows) & _finite(format, encoded)
        _refuse_bad(good, given, first, f"{path}: {{}} is beyond {format.name}")
    else:
        assert format.element is not None
        bounds = np.iinfo(format.element)
        inside = (rows >= bounds.min) & (rows <= bounds.max)
        _refuse_bad(inside, rows, first, f"{path}: {{}} is beyond {format.name}")
        encoded = format.encode(rows)
    return encoded.reshape(len(rows), -1).view(np.uint8)


def decode(format: Format, raw: np.ndarray) -> np.ndarray:
    """`[n, row_bytes]` uint8 as `[n, dim]` float32, or in the stored dtype where that does not decode."""
    if format.name == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if format.name == "int8":
        scale = np.ascontiguousarray(raw[:, :4]).view(np.float32)
        return raw[:, 4:].view(np.int8) * scale
    assert format.element is not None
    rows = raw.view(format.element)
    return rows.astype(np.float32) if format.decodes else rows


def _refuse_bad(good: np.ndarray, rows: np.ndarray, first: int, message: str) -> None:
    if not good.all():
        row, column = (int(i[0]) for i in np.nonzero(~good))
        value = message.format(rows[row, column])
        raise TableWriteError(
            f"{value} (row {first + row}, column {column}); nothing was written. Repair the weights, or give "
            "a wider row format"
        )


def _finite(format: Format, encoded: np.ndarray) -> np.ndarray | bool:
    """Whether each element is still finite."""
    if format.name == "bf16":
        return (encoded & np.uint16(0x7F80)) != 0x7F80
    return True if format.name == "int8" else np.isfinite(encoded)


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: np.ascontiguousarray(rows, dtype)


def _bf16(rows: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even, as TensorFlow's cast."""
    word = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)


def _int8(rows: np.ndarray) -> np.ndarray:
    """Each row with its scale: the largest magnitude becomes 127. The error of an element is at most half a
    scale."""
    rows = np.asarray(rows, np.float64)
    scale = (np.abs(rows).max(axis=1, initial=0) / 127).astype(np.float32)
    # Of the largest float32: 127 times its scale, rounded up, would overflow.
    scale = np.minimum(scale, np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0)))
    # A row whose scale is 0 in float32 is 0.
    divisor = np.where(scale == 0, 1, scale).astype(np.float64)[:, None]
    quantised = np.where(scale[:, None] == 0, 0, np.clip(np.rint(rows / divisor), -127, 127)).astype(np.int8)
    return np.concatenate([scale[:, None].view(np.uint8), quantised.view(np.uint8)], axis=1)


ROW_FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 0, np.dtype("<f4"), 4, True, _plain("<f4")),
        Format("f16", 1, np.dtype("<f2"), 2, True, _plain("<f2")),
        Format("bf16", 2, None, 2, True, _bf16),
        Format("int8", 3, None, 1, True, _int8),
        Format("f64", 4, np.dtype("<f8"), 8, False, _plain("<f8")),
        Format("i32", 5, np.dtype("<i4"), 4, False, _plain("<i4")),
        Format("i64", 6, np.dtype("<i8"), 8, False, _plain("<i8")),
    )
}


def format_of(name: str) -> Format:
    """Raises `TableMismatchError` for a name that is none."""
    if name not in ROW_FORMATS:
        raise TableMismatchError(f"there is no row format {name!r}; there are {', '.join(ROW_FORMATS)}")
    return ROW_FORMATS[name]
