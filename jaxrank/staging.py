"""Writing a directory atomically: it is made under another name beside its place and takes it at the end."""

import ctypes
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrank.errors import DestinationError

_RANDOM_NAME = r"[a-z0-9_]{8}"
"""What `tempfile.mkdtemp` appends."""


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
        work, lock = _locked_directory(f".{destination.name}.staging.", destination.parent)
    except OSError as error:
        raise DestinationError(f"{destination} cannot be written: {error}; give another place") from error
    try:
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
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


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


def _locked_directory(prefix: str, parent: Path) -> tuple[Path, int]:
    """A new directory, and the open file that holds its lock for as long as the process lives."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process took it for a stale one before it was locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: there `_remove_stale` cannot lock, and removes nothing
            return made, lock
        if made.exists():
            return made, lock
        os.close(lock)


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
    old, lock = _locked_directory(f".{destination.name}.old.", destination.parent)
    os.rename(destination, old / destination.name)
    try:
        os.rename(work, destination)
    except OSError:
        os.rename(old / destination.name, destination)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        os.close(lock)
