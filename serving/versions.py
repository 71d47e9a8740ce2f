"""The versions of a model on disk and in memory: what is found, what became of it."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxrank.bundle import MANIFEST
from serving.lifecycle.errors import MemoryLimitError, SelfCheckError, WarmupError
from serving.lifecycle.memory import MemoryUse
from serving.lifecycle.rollback import Outcomes
from serving.model import Model
from serving.tiers.errors import TierError

log = logging.getLogger("jaxrank")

_OTHERS_RETRY_SECONDS = 10.0
"""Between attempts to load a version that waits for others: for a store that is away or is filled now, or for
memory that another version gives back."""

_MAX_VERSION = 2**63 - 1  # versions travel as int64

State = Literal["LOADING", "AVAILABLE", "UNLOADING", "END"]
"""TensorFlow Serving's states of a version."""

Files = frozenset[tuple[str, int, int]]
"""Path, size and modification time of every file of a bundle. A version that failed is tried again when they
change: copying a bundle is not atomic, and its manifest may come before its other files."""


@dataclass(frozen=True)
class VersionStatus:
    """What became of a version; `error` is why it is not served."""

    version: int
    state: State
    error: str = ""


@dataclass
class Served:
    """One loaded version. `users` counts requests in flight; the model closes when it is retired and they are
    done."""

    version: int
    model: Model
    path: Path
    stamp: int
    """Modification time of its manifest."""
    files: Files
    memory: MemoryUse
    outcomes: Outcomes
    users: int = 0
    retired: bool = False
    standby: bool = False
    """It answers only requests that name it, and goes when the version that replaced it has proved itself."""


@dataclass(frozen=True)
class Failure:
    """A version that does not load: with which files, how often it was tried, when it is tried again
    (seconds of the monotonic clock)."""

    files: Files
    attempts: int
    again_at: float


def files_of(directory: Path) -> Files:
    """Every file below a directory. Raises `OSError`."""
    stats = ((path, path.stat()) for path in directory.rglob("*"))
    return frozenset((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def retry_after(error: Exception, attempts: int, retries: int, seconds: float) -> float | None:
    """Seconds until a version that failed `attempts` times is tried again; None: not before its files change.
    After so many `retries`, only what waits for others is."""
    if isinstance(error, TierError | MemoryLimitError):
        return _OTHERS_RETRY_SECONDS
    proved_wrong = isinstance(error, SelfCheckError | WarmupError)
    return None if proved_wrong or attempts > retries else seconds


@dataclass
class Directories:
    """Looks into directories of models and versions; what cannot be read is logged once."""

    unreadable: dict[Path, str] = field(default_factory=dict)

    def models(self, directory: Path) -> dict[str, Path] | None:
        """Subdirectories by name; None where the directory cannot be read."""
        listed = self._list(directory)
        return None if listed is None else {p.name: p for p in listed if p.is_dir()}

    def versions(self, directory: Path) -> dict[int, Path] | None:
        """Subdirectories that are a number and hold a manifest; None where the directory cannot be read."""
        listed = self._list(directory)
        if listed is None:
            return None
        numbered = {int(p.name): p for p in listed if p.name.isascii() and p.name.isdecimal()}
        return {n: p for n, p in numbered.items() if n <= _MAX_VERSION and (p / MANIFEST).is_file()}

    def _list(self, directory: Path) -> list[Path] | None:
        try:
            listed = [p for p in directory.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            if self.unreadable.get(directory) != str(error):
                self.unreadable[directory] = str(error)
                log.error("cannot read %s: %s; serving what is loaded from it", directory, error)
            return None
        if self.unreadable.pop(directory, None) is not None:
            log.info("%s can be read again", directory)
        return listed
