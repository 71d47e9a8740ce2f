"""Reads TensorFlow checkpoints (the "tensor bundle" format) without restoring them: each variable is a view
of its file.

TensorFlow's own reader brings a whole tensor into memory, even for a slice of it; embedding tables are larger
than that. The index of a checkpoint is a sorted string table in LevelDB's format
(tensorflow/core/lib/io/format.h), from tensor names to `BundleEntryProto`; the data files hold the tensors'
bytes as they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2, trackable_object_graph_pb2

from converters.errors import ConversionError
from jaxrank.tfrecord import masked_crc

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_OBJECT_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"


_Extents = tuple[tuple[int, int], ...]
"""Start and length of each dimension."""


@dataclass(frozen=True)
class _Entry:
    shard: int
    offset: int
    size: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """One checkpoint, `<prefix>.index` and its data files. Arrays are read-only memory maps.

    Raises `ConversionError` for files that are missing, damaged, or not a checkpoint.
    """

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self._entries: dict[str, _Entry] = {}
        self._slices: dict[str, dict[_Extents, _Entry]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        path = Path(f"{prefix}.index")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConversionError(f"{path} cannot be read: {error.strerror}") from error
        shards = 1
        self._object_graph: Callable[[], bytes] | None = None
        try:
            for key, value in _table(data):
                if not key:
                    shards = tensor_bundle_pb2.BundleHeaderProto.FromString(value).num_shards
                    continue
                proto = tensor_bundle_pb2.BundleEntryProto.FromString(value)
                if key == _OBJECT_GRAPH:
                    self._object_graph = partial(self._one_string, proto)
                if proto.slices:
                    self._shapes[key.decode()] = tuple(d.size for d in proto.shape.dim)
                entry = _entry(proto)
                if entry is None:
                    continue
                if key[0] == 0:
                    name, extents = _slice_key(key)
                    self._slices.setdefault(name, {})[extents] = entry
                else:
                    self._entries[key.decode()] = entry
        except (ValueError, TypeError, IndexError, DecodeError) as error:
            raise ConversionError(f"{path} is damaged, it does not read as a checkpoint: {error}") from error
        self._data = [Path(f"{prefix}.data-{i:05d}-of-{shards:05d}") for i in range(shards)]

    def names(self) -> list[str]:
        """Names of the variables that are stored whole or in slices."""
        return sorted({*self._entries, *self._slices})

    def object_keys(self) -> dict[int, str]:
        """Keys of the variables by the number of their object, from the object graph that TensorFlow 2 stores
        along. Names would not do: layers of one name have variables of one name."""
        if self._object_graph is None:
            return {}
        try:
            graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(self._object_graph())
        except (IndexError, DecodeError) as error:
            raise ConversionError(
                f"the object graph of {self.prefix} is damaged, it does not parse; copy the checkpoint again"
            ) from error
        return {
            number: attribute.checkpoint_key
            for number, node in enumerate(graph.nodes)
            for attribute in node.attributes
            if attribute.name == "VARIABLE_VALUE"
        }

    def read(self, name: str, slice_spec: str = "") -> np.ndarray:
        """A variable or a slice of it as one array: a copy where it is stored in several pieces.

        Args:
            slice_spec: as RestoreV2 takes it, e.g. "20 4 0,10:0,4" (shape, then start,length of each
                dimension); empty for the whole variable.
        """
        found = self.parts(name, slice_spec)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def parts(self, name: str, slice_spec: str = "") -> tuple[np.ndarray, ...]:
        """The same as consecutive rows, without a copy: one array where it is stored as one, several where it
        was saved in partitions of its rows."""
        whole = self._entries.get(name)
        if whole is not None:
            array = self._map(whole)
            if slice_spec:
                array = array[tuple(slice(a, a + n) for a, n in _extents(slice_spec))]
            return (array,)
        stored = self._slices.get(name, {})
        wanted = _extents(slice_spec) if slice_spec else tuple((0, n) for n in self._shapes.get(name, ()))
        if stored and wanted in stored:
            return (self._map(stored[wanted]),)
        pieces = []
        for extents, entry in stored.items():
            extents = tuple(
                (a, size if n < 0 else n) for (a, n), size in zip(extents, self._shapes[name], strict=True)
            )
            common = _overlap(extents, wanted)
            if common is not None:
                pieces.append((common, self._map(entry)[_within(common, extents)]))
        if not pieces or sum(p.size for _, p in pieces) < np.prod([n for _, n in wanted], dtype=np.int64):
            known = ", ".join(self.names()[:8])
            what = f"variable {name!r}" + (f" (slice {slice_spec})" if slice_spec else "")
            raise ConversionError(
                f"{self.prefix}.index has no {what}, which the graph needs; it has: {known}, ... "
                "Export the model again with all its variables"
            )
        if all(common[1:] == wanted[1:] for common, _ in pieces):
            return tuple(piece for _, piece in sorted(pieces, key=lambda p: p[0]))
        array = np.empty([n for _, n in wanted], pieces[0][1].dtype)
        for common, piece in pieces:
            array[_within(common, wanted)] = piece
        return (array,)

    def _one_string(self, proto: tensor_bundle_pb2.BundleEntryProto) -> bytes:
        """A scalar string: its length as a varint, a checksum of the length, then the bytes."""
        with self._file(proto.shard_id, proto.offset + proto.size).open("rb") as file:
            file.seek(proto.offset)
            data = file.read(proto.size)
        length, at = _varint(data, 0)
        return data[at + 4 : at + 4 + length]

    def _map(self, entry: _Entry) -> np.ndarray:
        path = self._file(entry.shard, entry.offset + entry.size)
        if not entry.size:
            return np.zeros(entry.shape, entry.dtype)
        raw = np.memmap(path, np.uint8, mode="r", offset=entry.offset, shape=(entry.size,))
        return raw.view(entry.dtype).reshape(entry.shape)

    def _file(self, shard: int, end: int) -> Path:
        """The data file of a shard, which has at least `end` bytes."""
        path = self._data[shard]
        if not path.is_file() or path.stat().st_size < end:
            raise ConversionError(
                f"{path} is missing or shorter than {self.prefix}.index says; copy the checkpoint again"
            )
        return path


def _entry(proto: tensor_bundle_pb2.BundleEntryProto) -> _Entry | None:
    """None for what has no bytes of its own: strings, and variables stored as slices."""
    dtype = tf.dtypes.as_dtype(proto.dtype)
    if dtype in (tf.string, tf.variant, tf.resource) or proto.slices:
        return None
    numpy_dtype = np.dtype(ml_dtypes.bfloat16) if dtype == tf.bfloat16 else np.dtype(dtype.as_numpy_dtype)
    return _Entry(
        proto.shard_id, proto.offset, proto.size, numpy_dtype, tuple(d.size for d in proto.shape.dim)
    )


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in order."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _TABLE_MAGIC:
        raise ValueError("it has no table footer")
    at = len(data) - _FOOTER
    _, at = _varint(data, at)
    _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, _ = _varint(data, at)
    for _, handle in _block(data, offset, size):
        start, at = _varint(handle, 0)
        length, _ = _varint(handle, at)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if data[offset + size] != 0:
        raise ValueError("its blocks are compressed, which TensorFlow does not do")
    block = data[offset : offset + size]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + 5], "little")
    if masked_crc(data[offset : offset + size + 1]) != stored:
        raise ValueError(f"the checksum of its block at {offset} is wrong")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + added]
        at += added
        yield key, block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _extents(slice_spec: str) -> _Extents:
    """Start and length of each dimension from "<shape> <start,length:...>"; "-" is a whole dimension."""
    *shape, extents = slice_spec.split(" ")
    found = []
    for size, extent in zip(shape, extents.split(":"), strict=True):
        start, length = (0, int(size)) if extent == "-" else map(int, extent.split(","))
        found.append((start, length))
    return tuple(found)


def _overlap(one: _Extents, other: _Extents) -> _Extents | None:
    """What two slices of a variable have in common."""
    found = []
    for (a, n), (b, m) in zip(one, other, strict=True):
        start, end = max(a, b), min(a + n, b + m)
        if start >= end:
            return None
        found.append((start, end - start))
    return tuple(found)


def _within(inner: _Extents, outer: _Extents) -> tuple[slice, ...]:
    """The index of a slice in the array of a slice that holds it."""
    return tuple(slice(a - b, a - b + n) for (a, n), (b, _) in zip(inner, outer, strict=True))


def _slice_key(key: bytes) -> tuple[str, _Extents]:
    """Name and extents of a stored slice, from its key in OrderedCode (tensorflow/core/lib/strings/
    ordered_code.h): the number 0, the name, the rank, then start and length of each dimension."""
    end = key.index(b"\x00\x01", 1)
    name = key[1:end].replace(b"\x00\xff", b"\x00").replace(b"\xff\x00", b"\xff").decode()
    at = end + 2
    rank = int.from_bytes(key[at + 1 : at + 1 + key[at]], "big")
    at += 1 + key[at]
    extents = []
    for _ in range(rank):
        start, at = _signed(key, at)
        length, at = _signed(key, at)
        extents.append((start, length))
    return name, tuple(extents)


def _signed(key: bytes, at: int) -> tuple[int, int]:
    """A non-negative number: as many leading ones as it has bytes, then a zero, then its bits. A length of -1
    (a whole dimension) is the byte 0x7f."""
    first = key[at]
    if first == 0x7F:
        return -1, at + 1
    size = 8 - (first ^ 0xFF).bit_length() if first != 0xFF else 8
    bits = int.from_bytes(key[at : at + size], "big") & ((1 << (7 * size - 1)) - 1)
    return bits, at + size
