"""Writes embedding tables and vocabularies to the bundle, straight from TensorFlow's variables and lookup
tables."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from jaxrank.manifest import Table, Vocabulary

_CHUNK_ROWS = 1 << 16


def write_table(bundle: Path, name: str, value: Any) -> Table:
    """Streams a `[rows, dim]` float32 variable (or tensor) to `tables/<name>.npy` in chunks of rows."""
    rows, dim = (int(d) for d in value.shape)
    file = f"tables/{name}.npy"
    path = bundle / file
    path.parent.mkdir(exist_ok=True)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, _CHUNK_ROWS):
        out[start : start + _CHUNK_ROWS] = np.asarray(value[start : start + _CHUNK_ROWS])
    out.flush()
    return Table(name=name, rows=rows, dim=dim, dtype="float32", bytes=rows * dim * 4, file=file)


def write_vocabulary(bundle: Path, name: str, handle: Any, key_dtype: tf.DType, default: int) -> Vocabulary:
    """Writes the entries of a TensorFlow lookup table. `handle` is its resource tensor."""
    exported = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=key_dtype, Tvalues=tf.int64)
    keys, values = exported.keys.numpy(), exported.values.numpy()
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    file = f"tables/{name}"
    (bundle / file).parent.mkdir(exist_ok=True)
    if key_dtype == tf.string:
        lengths = np.fromiter((len(k) for k in keys), np.int64, len(keys))
        np.save(bundle / f"{file}.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(bundle / f"{file}.keys.npy", np.frombuffer(b"".join(keys), np.uint8))
    else:
        np.save(bundle / f"{file}.keys.npy", keys.astype(np.int64))
    np.save(bundle / f"{file}.values.npy", values.astype(np.int64))
    return Vocabulary(
        name=name,
        key_dtype="string" if key_dtype == tf.string else "int64",
        size=len(keys),
        default_value=default,
        file=file,
    )
