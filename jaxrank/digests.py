"""sha256 of files, each computed once for as long as the file stays the same."""

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

_SETTLED_SECONDS = 2.0
"""A file that was written to less than this before it was hashed may be written to again without another
modification time: the coarsest file systems count in 2 seconds. Such a digest is not kept."""


@dataclass
class Digests:
    """Digests that one command knows, by what the file system says of a file: device, inode, size and
    modification time. A link is the same file under another name. Never kept from one command to the next:
    between them, anything may have happened to the disk."""

    hashed_bytes: int = 0
    """Read to compute digests so far."""
    _known: dict[tuple[int, int, int, int], str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """Hex digest of a file's bytes."""
        start = time.time()
        status = path.stat()
        known = self._known.get(_identity(status))
        if known is not None:
            return known
        digest, after = self._compute(path)
        self.hashed_bytes += after.st_size
        if _identity(after) == _identity(status) and status.st_mtime < start - _SETTLED_SECONDS:
            self._known[_identity(status)] = digest
        return digest

    def _compute(self, path: Path) -> tuple[str, os.stat_result]:
        """And what the file system says of the file afterwards."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno())


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
