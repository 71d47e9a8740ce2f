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
    if values.shape != (vocabulary.size,) or keys.shape != values.shape:
        raise BundleError(
            f"{bundle / vocabulary.file}: {keys.size} keys and {values.size} values, the manifest says "
            f"{vocabulary.size}"
        )
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

    def part(name: str, offsets: str, dtype: str) -> Any:
        stored = np.ascontiguousarray(_part(bundle, vocabulary, name))
        if dtype == "string":
            return stored, np.ascontiguousarray(_part(bundle, vocabulary, offsets), np.int64)
        return np.ascontiguousarray(stored, dtype)

    default = vocabulary.default_value
    if isinstance(default, str):
        default = default.encode("utf-8", "surrogateescape")
    elif vocabulary.value_dtype == "float32":
        default = float(default)
    return (
        part("keys", "offsets", vocabulary.key_dtype),
        part("values", "value_offsets", vocabulary.value_dtype),
        default,
    )


def _entries(bundle: Path, vocabulary: Vocabulary, part: str, offsets_part: str, dtype: str) -> np.ndarray:
    stored = _part(bundle, vocabulary, part)
    if dtype != "string":
        return stored
    offsets, text = _part(bundle, vocabulary, offsets_part), stored.tobytes()
    strings = np.empty(len(offsets) - 1, object)
    strings[:] = [text[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return strings


def _part(bundle: Path, vocabulary: Vocabulary, suffix: str) -> np.ndarray:
    try:
        return np.load(bundle / f"{vocabulary.file}.{suffix}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle / vocabulary.file}.{suffix}.npy is not readable: {error}") from error
