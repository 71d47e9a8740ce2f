"""What the engines beside IREE read of a bundle: their `program.json`, and the weight archive, mapped into
memory, that the programs of all engines share."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

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


class TowerProgram(msgspec.Struct, frozen=True, kw_only=True):
    """`<target>/<engine>/program.json`; an engine adds what else it needs."""

    schema_version: int
    towers: dict[str, str]
    """The file of each tower, beside this one."""
    weights: dict[str, tuple[WeightSpec, ...]]
    """The arrays of the archive that each tower takes, in order."""


P = TypeVar("P", bound=TowerProgram)


def read_program(path: Path, kind: type[P], schema_version: int) -> P:
    """Raises `BundleError`: a damaged file, one of another version, or one that names files elsewhere."""
    try:
        program = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path} is damaged: {error}; copy the bundle again") from error
    if program.schema_version != schema_version:
        raise BundleError(f"{path} is of another version of jaxrank; compile the bundle again")
    outside = [name for name in program.towers.values() if Path(name).name != name]
    if outside:
        raise BundleError(f"{path} names a file outside of its directory: {outside[0]!r}; do not use it")
    return program


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
