"""The weight archive of a bundle, mapped into memory: one file that the programs of all engines share."""

import math
from collections.abc import Mapping
from pathlib import Path

import iree.runtime as rt
import msgspec
import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError


class WeightSpec(msgspec.Struct, frozen=True):
    """An array of the archive that a program takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """Read-only arrays by name. They are valid while this object lives."""

    def __init__(self, bundle: Path):
        """Raises `BundleError` where the archive does not open."""
        self._path = bundle / files.WEIGHTS
        self._index = rt.ParameterIndex()
        if self._path.is_file():
            try:
                self._index.load(str(self._path))
            except (RuntimeError, ValueError, OSError) as error:
                raise BundleError(
                    f"{self._path} is damaged: {error}; copy the bundle again or compile it again"
                ) from error
        self._entries: Mapping[str, rt.ParameterIndexEntry] = dict(self._index.items())

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A parameter. Raises `BundleError` where the archive has none of that name and size."""
        entry = self._entries.get(name)
        size = math.prod(shape) * dtype.itemsize
        if entry is None or entry.length != size:
            has = "no such parameter" if entry is None else f"{entry.length} bytes of it"
            raise BundleError(
                f"{self._path} does not fit the program: it has {has} where {name!r} should be "
                f"{dtype}{list(shape)}; compile the bundle again"
            )
        return np.frombuffer(entry.file_view, np.uint8)[:size].view(dtype).reshape(shape)
