"""TensorFlow's record files: framing and checksums, without TensorFlow.

A record is its length (uint64), the masked CRC-32C of those eight bytes (uint32), its bytes, and their masked
CRC-32C, all little-endian (tensorflow/core/lib/io/record_writer.h).
"""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from jaxrank.errors import JaxrankError


class RecordError(JaxrankError):
    """A TFRecord file does not open, is cut off or damaged."""


_HEADER = struct.Struct("<QI")
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bit-reversed."""
_LANES = 256


def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _byte_table()
_TABLE_LIST: list[int] = _TABLE.tolist()


def looks_like_records(path: Path) -> bool:
    """Whether the file begins with a record header whose checksum is right."""
    with _open(path) as file:
        header = _read(file, _HEADER.size, path, "header")
    return len(header) == _HEADER.size and masked_crc(header[:8]) == _HEADER.unpack(header)[1]


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file, gzip-compressed or not, in order.

    Raises `RecordError` naming the record, counted from 0, that is cut off or whose checksum is wrong.
    """
    with _open(path) as file:
        number = 0
        while header := _read(file, _HEADER.size, path, f"header of record {number}"):
            where = f"{path}: record {number}"
            if len(header) < _HEADER.size:
                raise _cut_off(where)
            length, length_crc = _HEADER.unpack(header)
            if masked_crc(header[:8]) != length_crc:
                raise RecordError(f"{where}: the checksum of its length is wrong; the file is damaged")
            left = _size_left(file)
            if left is not None and length + 4 > left:
                raise _cut_off(where)
            data = _read(file, length, path, f"record {number}")
            stored = _read(file, 4, path, f"record {number}")
            if len(data) < length or len(stored) < 4:
                raise _cut_off(where)
            if masked_crc(data) != int.from_bytes(stored, "little"):
                raise RecordError(f"{where}: the checksum of its {length} bytes is wrong; it is damaged")
            yield data
            number += 1


def framed(data: bytes) -> bytes:
    """A record as it is in a file."""
    length = len(data).to_bytes(8, "little")
    checksums = [masked_crc(part).to_bytes(4, "little") for part in (length, data)]
    return b"".join([length, checksums[0], data, checksums[1]])


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted so that a checksum of checksums is not degenerate."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    register = 0xFFFFFFFF
    length = len(data) // _LANES
    if length > 32:
        register = _crc_lanes(
            np.frombuffer(data, np.uint8, length * _LANES).reshape(_LANES, length), register
        )
        data = data[length * _LANES :]
    for byte in data:
        register = _TABLE_LIST[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def _crc_lanes(lanes: np.ndarray, register: int) -> int:
    """The register after all bytes of `lanes` `[lanes, length]`, row after row.

    The register is linear over GF(2), so the lanes run side by side from zero registers and are joined at the
    end. Joining needs a register moved on by `length` zero bytes: 32 more lanes move each bit of one.
    """
    registers = np.concatenate(
        [np.zeros(len(lanes), np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)]
    )
    step = np.zeros(len(registers), np.uint8)
    for column in lanes.T:
        step[: len(lanes)] = column
        registers = _TABLE[(registers ^ step) & 0xFF] ^ registers >> 8
    moved: list[int] = registers[len(lanes) :].tolist()
    for lane in registers[: len(lanes)].tolist():
        shifted = 0
        for bit in range(32):
            if register >> bit & 1:
                shifted ^= moved[bit]
        register = shifted ^ lane
    return register


def _open(path: Path) -> BinaryIO:
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")
    except OSError as error:
        raise RecordError(f"{path} does not open: {error.strerror}") from error


def _read(file: BinaryIO, size: int, path: Path, what: str) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError) as error:
        raise RecordError(f"{path}: {what} does not decompress: {error}") from error


def _size_left(file: BinaryIO) -> int | None:
    """Bytes until the end of a plain file; unknown for a compressed one."""
    if isinstance(file, gzip.GzipFile):
        return None
    position = file.tell()
    end = file.seek(0, 2)
    file.seek(position)
    return end - position


def _cut_off(where: str) -> RecordError:
    return RecordError(f"{where} is cut off: the file ends inside of it; copy the file again")
