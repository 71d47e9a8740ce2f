"""Writing a directory atomically: it is made under another name beside its place and takes it at the end."""

import ctypes
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrank.errors import DestinationError

_RANDOM_NAME = r"[a-z0-9_]{8}"
"""The end of a temporary directory's name."""


@contextmanager
def staging(
    destination: Path, *, start_from: Path | None = None, unchanged: Collection[str] = ()
) -> Iterator[Path]:
    """A temporary directory beside `destination` that takes its place only if the body succeeds.

    Nothing is left behind on failure; an existing destination stays as it was until the new one is complete.
    What a killed process left is removed here, when the same destination is staged the next time: a running
    one holds a lock on its directory.

    Args:
        start_from: it begins as a copy of that directory.
        unchanged: files of `start_from`, by their relative paths, that the body does not write to. Where the
            destination replaces `start_from`, they are linked instead of copied, and cost no time whatever
            their size. A body may remove or replace one, but never open it for writing: that would change
            the old directory too.

    Raises `DestinationError` where the files cannot be written.
    """
    try:
        # Through a link, the directory is replaced and not the link.
        destination = destination.resolve() if destination.is_symlink() else destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(destination)
    except OSError as error:
        raise DestinationError(f"{destination} cannot be written: {error}; give another place") from error
    try:
        with _locked_directory(f".{destination.name}.staging.", destination.parent) as work:
            if start_from is not None:
                # A link must not outlive the command: a bundle does not share its files with another one.
                replaced = destination.exists() and os.path.samefile(start_from, destination)
                _copy(start_from, work, {start_from / path for path in unchanged} if replaced else set())
            yield work
            work.chmod(0o755)
            if destination.exists():
                _exchange(work, destination)
            else:
                os.rename(work, destination)
    except OSError as error:
        raise DestinationError(f"writing {destination} failed: {error}; nothing was written") from error


def _copy(source: Path, work: Path, linked: Collection[Path]) -> None:
    def copy(file: str, to: str) -> str:
        if Path(file) in linked and not os.path.islink(file):
            try:
                os.link(file, to)
                return to
            except OSError:  # another file system, another owner's file: copying always works
                pass
        return shutil.copy2(file, to)

    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, work, dirs_exist_ok=True, ignore=ignore, copy_function=copy)


@contextmanager
def _locked_directory(prefix: str, parent: Path) -> Iterator[Path]:
    """A new directory that is locked until it is removed at the end. A signal that ends the command may come
    at any line: the directory's name is known before the directory is there."""
    made = parent / (prefix + secrets.token_hex(4))
    lock = None
    try:
        while lock is None:
            made.mkdir(mode=0o700)
            lock = _lock(made)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(made: Path) -> int | None:
    """The open file that holds the directory's lock for as long as the process lives; None where another
    process took the directory for a stale one, and removed it, before it was locked."""
    try:
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: there `_remove_stale` cannot lock, and removes nothing
        return lock
    if made.exists():
        return lock
    os.close(lock)
    return None


def _remove_stale(destination: Path) -> None:
    """Removes what killed processes left of the same destination. A directory whose lock is held belongs to a
    process that runs."""
    name = re.escape(destination.name)
    ours = re.compile(rf"\.{name}\.(staging|old)\.{_RANDOM_NAME}")
    for found in [p for p in destination.parent.iterdir() if ours.fullmatch(p.name)]:
        try:
            lock = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # its process has just removed it, or it is not a directory
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = found / destination.name
            moved_away = found.name.startswith(f".{destination.name}.old.") and whole.exists()
            if moved_away and not destination.exists():  # killed between the two renames of `_exchange`
                os.rename(whole, destination)
            shutil.rmtree(found, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)


def _exchange(work: Path, destination: Path) -> None:
    """Swaps two directories, on Linux in one step: a kill leaves one of them whole in either place."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 and not renameat2(here, os.fsencode(work), here, os.fsencode(destination), exchange):
        return
    with _locked_directory(f".{destination.name}.old.", destination.parent) as old:
        os.rename(destination, old / destination.name)
        try:
            os.rename(work, destination)
        except OSError:
            os.rename(old / destination.name, destination)
            raise
