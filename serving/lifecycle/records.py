"""Versions that were rolled back, remembered in a file beside them: a server that starts again, or another
one of the same directory, does not put them before users a second time."""

import hashlib
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from serving.lifecycle.errors import RolledBackError

log = logging.getLogger("jaxrank")

Files = Iterable[tuple[str, int, int]]
"""As `serving.versions.Files`."""


class _Record(msgspec.Struct, frozen=True):
    """Of which files, and why."""

    files: str
    reason: str


def remember(bundle: Path, files: Files, reason: str) -> None:
    """Writes the file. Where that cannot be done the log says so: a server that only reads is a good one."""
    path = _record(bundle)
    work = path.with_suffix(f".{os.getpid()}")
    try:
        work.write_bytes(msgspec.json.encode(_Record(_digest(bundle, files), reason)))
        work.replace(path)
    except OSError as error:
        with suppress(OSError):
            work.unlink(missing_ok=True)  # what of it a full disk took
        log.warning(
            "%s cannot be written (%s): a server that starts again tries %s again, so remove that version",
            path,
            error.strerror,
            bundle,
        )


def check(bundle: Path, files: Files) -> None:
    """Raises `RolledBackError` for a version that was rolled back with these files."""
    path = _record(bundle)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read: %s; the version is tried", path, error)
        return
    if record.files == _digest(bundle, files):
        raise RolledBackError(f"{record.reason}; to try it again all the same, remove {path}")


def forget(bundle: Path) -> None:
    """Removes the file, where that can be done."""
    try:
        _record(bundle).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", _record(bundle), error.strerror)


def _record(bundle: Path) -> Path:
    return bundle.parent / f".{bundle.name}.rolled-back"


def _digest(bundle: Path, files: Files) -> str:
    """Of the files' places in the bundle, sizes and modification times."""
    found = sorted((os.path.relpath(path, bundle), size, at) for path, size, at in files)
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()
