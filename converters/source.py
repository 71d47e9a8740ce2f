"""A TensorFlow model as every later step sees it: a graph with named inputs and outputs, its weights as views
of their files, and TensorFlow's own answers.

`load` in `converters/loaders.py` makes one from each of the formats that models come in.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.errors import ConversionError
from jaxrank.manifest import Part

_CHUNK_BYTES = 64 << 20
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class SourceTensor:
    """An input or output of the signature. `shape` is as declared: `None` is a dimension the client chooses.

    A sparse or ragged input is several tensors, each one `part` of the feature `feature`.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    tensor_name: str
    part: Part = "rows"
    feature: str = ""

    @property
    def placeholder(self) -> str:
        """Name of the op that stands for an input in a flat graph."""
        return self.name.replace(":", "_")


@dataclass(frozen=True)
class Weight:
    """The value of a variable, or of several partitions of one, without a copy of it.

    With `strategy="concat"` the parts are consecutive rows; with `"mod"` row i is row i // P of part i % P
    (TensorFlow's default for partitioned embeddings).
    """

    name: str
    parts: tuple[np.ndarray, ...]
    strategy: Literal["concat", "mod"] = "concat"

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        if len(self.parts) == 1:
            return self.parts[0].shape
        return (sum(len(p) for p in self.parts), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    def array(self) -> np.ndarray:
        """The whole value in memory; only for weights that fit."""
        return np.concatenate(list(self.chunks())) if self.shape else np.asarray(self.parts[0])

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """`value[ids]` for ids inside of the first dimension, reading only these rows."""
        if len(self.parts) == 1:
            if self.nbytes <= _CHUNK_BYTES:
                return np.asarray(self.parts[0][ids])
            out = np.empty((ids.size, *self.shape[1:]), self.dtype)
            flat = ids.ravel()
            for start in range(0, ids.size, _ROWS_AT_ONCE):
                out[start : start + _ROWS_AT_ONCE] = self.parts[0][flat[start : start + _ROWS_AT_ONCE]]
                forget_pages(self.parts[0])
            return out.reshape(*ids.shape, *self.shape[1:])
        out = np.empty((*ids.shape, *self.shape[1:]), self.dtype)
        edges = np.cumsum([0, *(len(p) for p in self.parts)])
        for i, part in enumerate(self.parts):
            if self.strategy == "mod":
                here, at = ids % len(self.parts) == i, ids // len(self.parts)
            else:
                here, at = (ids >= edges[i]) & (ids < edges[i + 1]), ids - edges[i]
            out[here] = part[at[here]]
        return out

    def chunks(self) -> Iterator[np.ndarray]:
        """Consecutive rows in order, about 64 MiB at a time; memory use does not grow with the weight."""
        if not self.shape:
            yield np.asarray(self.parts[0]).reshape(1)
            return
        row_bytes = max(1, self.nbytes // max(1, self.shape[0]))
        step = max(1, _CHUNK_BYTES // row_bytes)
        if self.strategy == "mod" and len(self.parts) > 1:
            for start in range(0, self.shape[0], step):
                yield self.rows(np.arange(start, min(start + step, self.shape[0])))
            return
        for part in self.parts:
            for start in range(0, len(part), step):
                yield np.asarray(part[start : start + step])


@dataclass(frozen=True)
class TableContents:
    """Entries of a lookup table, in TensorFlow's order. `keys` and `values` are `[size]`; strings are object
    arrays of bytes."""

    keys: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class SourceModel:
    """One signature of a model.

    `graph_def` is the graph as exported, with its function library. `weights` are by the name of the node
    that holds them (a variable, or a large constant). `tables` reads a lookup table by the name of the node
    that makes it. `run` computes tensors of the original graph in TensorFlow, fed by input name.
    """

    path: Path
    format: str
    signature_name: str
    method_name: str
    inputs: tuple[SourceTensor, ...]
    outputs: tuple[SourceTensor, ...]
    graph_def: Any
    weights: Mapping[str, Weight]
    tables: Callable[[str], TableContents]
    run: Callable[[Sequence[str], Mapping[str, np.ndarray]], list[np.ndarray]]
    warmup: Path | None = None
    """TensorFlow Serving's warm-up file, where the model has one."""
    keep: tuple[Any, ...] = field(default=(), repr=False)
    """What must live as long as the model does: sessions, temporary directories."""

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """TensorFlow's own outputs. Raises `ConversionError` where TensorFlow refuses the features."""
        found = self.run([t.tensor_name for t in self.outputs], features)
        return dict(zip((t.name for t in self.outputs), found, strict=True))


def forget_pages(array: np.ndarray) -> None:
    """Gives the pages of a memory-mapped array back: a row brings 64 KiB around it into memory, and a few
    thousand rows of a large table would add up to gigabytes."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def choose(tensors: Sequence[SourceTensor], wanted: Sequence[str], option: str) -> tuple[SourceTensor, ...]:
    """The tensors of a signature that were asked for, all by default. Raises `ConversionError` for a name
    that is not there."""
    by_name = {t.name: t for t in tensors}
    for name in wanted:
        if name not in by_name:
            raise ConversionError(f"{option} {name!r}: the signature has {', '.join(by_name) or 'none'}")
    return tuple(by_name[name] for name in wanted) if wanted else tuple(tensors)


def refused(error: Exception) -> ConversionError:
    """What TensorFlow said about an example request."""
    reason = said(error).rstrip(".")
    return ConversionError(
        f"TensorFlow refuses an example request: {reason}. If the drawn request is one that no client would "
        "send, give recorded ones with --examples"
    )


def said(error: Exception) -> str:
    """The message of TensorFlow's error, without its Python and C++ traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traces = ("Graph execution error", "Detected at", "File ", "[[", "Original stack trace")
    return " ".join([line for line in lines if not line.startswith(traces)][:3])[:600]
