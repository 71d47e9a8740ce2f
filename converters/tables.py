"""Writes embedding tables and vocabularies to the bundle, straight from the checkpoint's files and
TensorFlow's lookup tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters.source import TableContents, Weight, forget_pages
from jaxrank.manifest import Table, Vocabulary

Advance = Callable[[int], None]


def write_table(bundle: Path, name: str, weight: Weight, advance: Advance = lambda count: None) -> Table:
    """Streams a weight to `tables/<name>.npy` as `[rows, dim]`, about 64 MiB at a time. A vector is a table
    of one column; further dimensions of a row are flattened. `advance` is called with the bytes written."""
    rows = weight.shape[0] if weight.shape else 1
    dim = int(np.prod(weight.shape[1:], dtype=np.int64))
    file = f"tables/{name}.npy"
    path = bundle / file
    path.parent.mkdir(exist_ok=True)
    # Written through a file, not a memory map: mapped pages would count as memory until they are flushed.
    with path.open("wb") as out:
        header = {
            "descr": np.lib.format.dtype_to_descr(weight.dtype),
            "fortran_order": False,
            "shape": (rows, dim),
        }
        np.lib.format.write_array_header_1_0(out, header)
        for chunk in weight.chunks():
            out.write(np.ascontiguousarray(chunk).data.cast("B") if chunk.size else b"")
            advance(chunk.nbytes)
            forget_pages(chunk)
    return Table(
        name=name,
        rows=rows,
        dim=dim,
        dtype=weight.dtype.name,
        bytes=rows * dim * weight.dtype.itemsize,
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
