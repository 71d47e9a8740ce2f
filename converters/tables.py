"""Writes embedding tables and vocabularies to the bundle, straight from the checkpoint's files and
TensorFlow's lookup tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.source import TableContents, Weight, forget_pages
from jaxrank.manifest import Table, Vocabulary
from serving.tables import RowFormat, TableWriteError, TableWriter

Advance = Callable[[int], None]

ROW_FORMATS: dict[str, RowFormat] = {
    "float32": "f32",
    "float16": "f16",
    "float64": "f64",
    "int32": "i32",
    "int64": "i64",
}
"""The one that holds a variable's dtype as it is."""


def write_table(bundle: Path, name: str, weight: Weight, advance: Advance = lambda count: None) -> Table:
    """Streams a weight to `tables/<name>.table` as `[rows, dim]`, about 64 MiB at a time. A vector is a table
    of one column; further dimensions of a row are flattened. `advance` is called with the bytes written.

    Raises `ConversionError` for a weight that is not finite, and where there is no room.
    """
    rows = weight.shape[0] if weight.shape else 1
    dim = int(np.prod(weight.shape[1:], dtype=np.int64))
    file = f"tables/{name}.table"
    path = bundle / file
    path.parent.mkdir(exist_ok=True)
    row_format = ROW_FORMATS[weight.dtype.name]
    try:
        with TableWriter(path, dim, row_format) as writer:
            for chunk in weight.chunks():
                writer.append(chunk.reshape(len(chunk), dim))
                advance(chunk.nbytes)
                forget_pages(chunk)
    except TableWriteError as error:
        raise ConversionError(f"table {name}: {error}") from error
    return Table(
        name=name,
        rows=rows,
        dim=dim,
        dtype=weight.dtype.name,
        row_format=row_format,
        bytes=path.stat().st_size,
        file=file,
    )


def write_vocabulary(
    bundle: Path, name: str, contents: TableContents, key_dtype: Any, value_dtype: Any, default: Any
) -> Vocabulary:
    """Writes the entries of a lookup table, sorted by key."""
    keys, values = contents.keys, contents.values
    order = np.argsort(keys, kind="stable")
    file = f"tables/{name}"
    (bundle / file).parent.mkdir(exist_ok=True)
    _write_entries(bundle / f"{file}.keys", keys[order])
    _write_entries(bundle / f"{file}.values", values[order])
    return Vocabulary(
        name=name,
        key_dtype=key_dtype.name,
        value_dtype=value_dtype.name,
        size=len(keys),
        default_value=default.decode("utf-8", "surrogateescape") if isinstance(default, bytes) else default,
        file=file,
    )


def _write_entries(path: Path, entries: np.ndarray) -> None:
    """Numbers as they are; strings end to end with their offsets beside them."""
    if entries.dtype != object:
        np.save(f"{path}.npy", entries)
        return
    lengths = np.fromiter((len(k) for k in entries), np.int64, len(entries))
    offsets = path.with_name(path.name.replace(".keys", ".offsets").replace(".values", ".value_offsets"))
    np.save(f"{offsets}.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(f"{path}.npy", np.frombuffer(b"".join(entries), np.uint8))
