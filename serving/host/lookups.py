"""Embedding tables and vocabularies of a bundle, opened for reading."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Table, Vocabulary

KeyLookup = Callable[[np.ndarray], np.ndarray]
"""Keys of any shape (object array of bytes, or int64) to int64 values of the same shape."""


def open_table(bundle: Path, table: Table) -> np.ndarray:
    """The table as a read-only memory map, `[rows, dim]` float32. Raises `BundleError` if the file does not
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
    """The vocabulary's keys: `[size]`, an object array of bytes or int64. Raises `BundleError`."""
    keys = _part(bundle, vocabulary, "keys")
    if vocabulary.key_dtype != "string":
        return keys
    offsets, text = _part(bundle, vocabulary, "offsets"), keys.tobytes()
    strings = np.empty(len(offsets) - 1, object)
    strings[:] = [text[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return strings


def open_vocabulary(bundle: Path, vocabulary: Vocabulary) -> KeyLookup:
    """A function from keys to values. Raises `BundleError` if the files do not fit."""
    keys, values = read_keys(bundle, vocabulary), _part(bundle, vocabulary, "values")
    default = vocabulary.default_value
    if values.shape != (vocabulary.size,):
        raise BundleError(
            f"{bundle / vocabulary.file}: {values.size} values, the manifest says {vocabulary.size}"
        )
    if vocabulary.key_dtype == "string":
        table = dict(zip(keys.tolist(), values.tolist(), strict=True))

        def find_strings(wanted: np.ndarray) -> np.ndarray:
            get = table.get
            found = np.fromiter((get(k, default) for k in wanted.ravel().tolist()), np.int64, wanted.size)
            return found.reshape(wanted.shape)

        return find_strings

    if not vocabulary.size:
        return lambda wanted: np.full(wanted.shape, default, np.int64)

    def find_ids(wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
        return np.where(keys[at] == wanted, values[at], default)

    return find_ids


def _part(bundle: Path, vocabulary: Vocabulary, suffix: str) -> np.ndarray:
    try:
        return np.load(bundle / f"{vocabulary.file}.{suffix}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle / vocabulary.file}.{suffix}.npy is not readable: {error}") from error
