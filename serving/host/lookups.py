"""Embedding tables and vocabularies of a bundle, opened for reading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Table, Vocabulary

KeyLookup = Callable[[np.ndarray], np.ndarray]
"""Keys of any shape (object array of bytes, or integers) to values of the same shape."""


def open_table(bundle: Path, table: Table) -> np.ndarray:
    """The table as a read-only memory map, `[rows, dim]`. Raises `BundleError` if the file does not
    fit."""
    try:
        array = np.load(bundle / table.file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle / table.file} is not a table: {error}") from error
    if array.shape != (table.rows, table.dim) or array.dtype != np.dtype(table.dtype):
        raise BundleError(
            f"{bundle / table.file} is {array.dtype}{list(array.shape)}, the manifest says {table.dtype}"
            f"[{table.rows}, {table.dim}]"
        )
    return array


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
