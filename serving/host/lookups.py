"""Embedding tables and vocabularies of a bundle, opened for reading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Table as TableEntry
from jaxrank.manifest import Vocabulary
from serving.tables import Table, TableMemory
from serving.tables import open_table as open_file

KeyLookup = Callable[[np.ndarray], np.ndarray]
"""Keys of any shape (object array of bytes, or integers) to values of the same shape."""


def open_table(bundle: Path, entry: TableEntry, memory: TableMemory = "mapped") -> Table:
    """A table of a bundle whose files were verified. Raises `TableError`, and `BundleError` if the file is
    not the one that the manifest describes."""
    table = open_file(bundle / entry.file, memory=memory, trusted=True, dtype=np.dtype(entry.dtype))
    found = (table.rows, table.dim, table.row_format, table.keyed)
    if found != (entry.rows, entry.dim, entry.row_format, entry.keyed):
        raise BundleError(
            f"{bundle / entry.file} is {_described(*found)}, the manifest says "
            f"{_described(entry.rows, entry.dim, entry.row_format, entry.keyed)}; convert the model again"
        )
    return table


def _described(rows: int, dim: int, row_format: str, keyed: bool) -> str:
    return f"{row_format}[{rows}, {dim}]{' by key' if keyed else ''}"


def read_keys(bundle: Path, vocabulary: Vocabulary) -> np.ndarray:
    """The vocabulary's keys: `[size]`, an object array of bytes or integers. Raises `BundleError`."""
    return _entries(bundle, vocabulary, "keys", "offsets", vocabulary.key_dtype)


def open_vocabulary(bundle: Path, vocabulary: Vocabulary) -> KeyLookup:
    """A function from keys to values. Raises `BundleError` if the files do not fit."""
    keys = read_keys(bundle, vocabulary)
    values = _entries(bundle, vocabulary, "values", "value_offsets", vocabulary.value_dtype)
    default: Any = vocabulary.default_value
    if isinstance(default, str):
        default = default.encode("utf-8", "surrogateescape")
    dtype = object if vocabulary.value_dtype == "string" else np.dtype(vocabulary.value_dtype)
    if "string" in (vocabulary.key_dtype, vocabulary.value_dtype):
        table = dict(zip(keys.tolist(), values.tolist(), strict=True))

        def find(wanted: np.ndarray) -> np.ndarray:
            get = table.get
            found = np.empty(wanted.size, dtype)
            found[:] = [get(k, default) for k in wanted.ravel().tolist()]
            return found.reshape(wanted.shape)

        return find

    if not vocabulary.size:
        return lambda wanted: np.full(wanted.shape, default, dtype)

    def find_ids(wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
        return np.where(keys[at] == wanted, values[at], np.asarray(default, dtype))

    return find_ids


def vocabulary_parts(bundle: Path, vocabulary: Vocabulary) -> tuple[Any, Any, Any]:
    """Keys, values and default as the native executor reads them: integers or floats as an array, strings as
    `(text, offsets)`, uint8 and int64. Raises `BundleError`."""

    default = vocabulary.default_value
    if isinstance(default, str):
        default = default.encode("utf-8", "surrogateescape")
    elif vocabulary.value_dtype == "float32":
        default = float(default)
    return (
        _stored(bundle, vocabulary, "keys", "offsets", vocabulary.key_dtype),
        _stored(bundle, vocabulary, "values", "value_offsets", vocabulary.value_dtype),
        default,
    )


def _stored(bundle: Path, vocabulary: Vocabulary, part: str, offsets_part: str, dtype: str) -> Any:
    """`[size]` numbers, or `(text, offsets)`: whoever reads the strings goes where the offsets say. Raises
    `BundleError`."""
    stored, size = _part(bundle, vocabulary, part), vocabulary.size
    text = dtype == "string"
    if stored.ndim != 1 or not np.can_cast(stored.dtype, np.uint8 if text else dtype, "same_kind"):
        raise BundleError(
            f"{bundle / vocabulary.file}.{part}.npy is {stored.dtype}{list(stored.shape)}, and the manifest "
            f"says {size} of {dtype}"
        )
    if not text:
        if len(stored) != size:
            raise BundleError(
                f"{bundle / vocabulary.file}: {len(stored)} {part}, and the manifest says {size}"
            )
        return np.ascontiguousarray(stored, dtype)
    offsets = _part(bundle, vocabulary, offsets_part)
    if offsets.ndim != 1 or not np.can_cast(offsets.dtype, np.int64, "safe") or len(offsets) != size + 1:
        raise BundleError(
            f"{bundle / vocabulary.file}: {part} of {offsets.dtype}{list(offsets.shape)} offsets, and the "
            f"manifest says {size} of them"
        )
    offsets = np.ascontiguousarray(offsets, np.int64)
    if offsets[0] != 0 or offsets[-1] != len(stored) or (np.diff(offsets) < 0).any():
        raise BundleError(
            f"{bundle / vocabulary.file}.{offsets_part}.npy does not cut the {len(stored)} bytes of its "
            f"{part} into strings; copy the bundle again"
        )
    return np.ascontiguousarray(stored, np.uint8), offsets


def _entries(bundle: Path, vocabulary: Vocabulary, part: str, offsets_part: str, dtype: str) -> np.ndarray:
    stored = _stored(bundle, vocabulary, part, offsets_part, dtype)
    if dtype != "string":
        return stored
    text, offsets = stored[0].tobytes(), stored[1]
    strings = np.empty(len(offsets) - 1, object)
    strings[:] = [text[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return strings


def _part(bundle: Path, vocabulary: Vocabulary, suffix: str) -> np.ndarray:
    try:
        return np.load(bundle / f"{vocabulary.file}.{suffix}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle / vocabulary.file}.{suffix}.npy is not readable: {error}") from error
