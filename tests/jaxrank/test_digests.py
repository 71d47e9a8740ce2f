"""Digests that a command remembers are those of the bytes that are there."""

import hashlib
import os
import time
from pathlib import Path

from jaxrank.digests import Digests


def _written(path: Path, data: bytes, seconds_ago: float) -> Path:
    path.write_bytes(data)
    when = time.time() - seconds_ago
    os.utime(path, (when, when))
    return path


def test_a_file_is_hashed_once_and_its_links_not_at_all(tmp_path: Path) -> None:
    path, digests = _written(tmp_path / "a", b"x" * 1000, 60), Digests()
    os.link(path, tmp_path / "b")
    expected = hashlib.sha256(b"x" * 1000).hexdigest()
    assert [digests.of(p) for p in (path, path, tmp_path / "b")] == [expected] * 3
    assert digests.hashed_bytes == 1000


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    digests = Digests()
    for i, change in enumerate((b"old", b"new", b"longer")):  # the second has the size of the first
        path = _written(tmp_path / "a", change, 60 - i)
        assert digests.of(path) == hashlib.sha256(change).hexdigest()
    # Another file under the name, with the old one's size and time.
    status = path.stat()
    other = _written(tmp_path / "b", b"LONGER", 0)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert digests.of(path) == hashlib.sha256(b"LONGER").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    """Another write within the file system's tick would not show."""
    path, digests = tmp_path / "a", Digests()
    path.write_bytes(b"old")
    status = path.stat()
    digests.of(path)
    path.write_bytes(b"new")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.of(path) == hashlib.sha256(b"new").hexdigest()
