"""What a store says of a table it holds."""

import hashlib
from typing import Literal

import msgspec
import numpy as np

RECORD_VERSION = 1
IDENTITY_DIGITS = 12


class TableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata beside a table's rows. A table is known by its name and its contents: versions lie side by
    side, and a model never meets rows of another version."""

    name: str
    sha256: str
    """Of the table's file in the bundle."""
    rows: int
    dim: int
    row_format: str
    """As in the table's file; `row_formats.py` has the bytes of a row."""
    row_bytes: int
    keyed: bool
    """Whether rows have int64 keys of their own; otherwise a row's key is its number."""
    default: Literal["error", "zeros", "mean", "row"]
    """What a key without a row gives: an error, or the default row."""
    default_row: bytes
    """In the row format; zeros where the default is an error. It also stands for a row that does not
    arrive."""
    buckets: int = 0
    """Redis Cluster only: parts that the table is cut into, each in one slot."""
    version: int = RECORD_VERSION

    @property
    def identity(self) -> str:
        """ "user_table@3f2a…": the name and the first digits of the contents' sha256."""
        return f"{self.name}@{self.sha256[:IDENTITY_DIGITS]}"

    @property
    def prefix(self) -> bytes:
        """Six bytes that begin the key of every row in a store that tables share."""
        return hashlib.sha256(f"{self.name}@{self.sha256}".encode()).digest()[:6]

    @property
    def total_bytes(self) -> int:
        """Of all rows, without what the store adds."""
        return self.rows * self.row_bytes


def encode_record(record: TableRecord) -> bytes:
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> TableRecord:
    """Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=TableRecord)


KEY_BLOCK = 1024
"""Keys of a keyed table are stored once more in the order of its file, this many in a block: so a table can
be read back as it was."""


def chunk_rows(row_bytes: int) -> int:
    """Rows of one step of a transfer: about 8 MiB, whole blocks of keys."""
    return max(1, (8 << 20) // max(row_bytes, 1) // KEY_BLOCK) * KEY_BLOCK


def big_endian(keys: np.ndarray) -> np.ndarray:
    """`[n]` int64 as `[n, 8]` uint8 that sort as the numbers do, for numbers from 0."""
    return np.ascontiguousarray(keys, np.int64).astype(">i8").view(np.uint8).reshape(-1, 8)
