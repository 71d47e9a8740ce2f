"""Versions of the ranker that differ, and ways to ask a real server about them."""

import time
from collections.abc import Callable
from pathlib import Path

import iree.runtime as rt
import numpy as np

from jaxrank import bundle as files

AddVersion = Callable[..., Path]


def scale_weights(bundle: Path, factor: float) -> None:
    """Multiplies every weight of a bundle, whose manifest then says that this is as it should be."""
    path = bundle / files.WEIGHTS
    data, index = bytearray(path.read_bytes()), rt.ParameterIndex()
    index.load(str(path))
    for _, entry in index.items():
        old = bytes(entry.file_view)
        at = data.index(old)
        data[at : at + len(old)] = (np.frombuffer(old, np.float32) * np.float32(factor)).tobytes()
    del index, entry
    path.unlink()  # servers have the old file mapped
    path.write_bytes(data)
    files.write_manifest(bundle, files.read_manifest(bundle))


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what a server does on its own."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.02)
