"""The versions of a model on disk and in memory: what is found, what became of it."""

import logging
import math
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxrank.bundle import MANIFEST
from serving.errors import InvalidRequestError, LabelError, ModelNotFoundError
from serving.lifecycle.errors import MemoryLimitError, RolledBackError, SelfCheckError, WarmupError
from serving.lifecycle.memory import MemoryUse
from serving.lifecycle.rollback import Outcomes
from serving.model import Model
from serving.model_config import ModelConfig
from serving.tiers.errors import TierError

log = logging.getLogger("jaxrank")

_OTHERS_RETRY_SECONDS = 10.0
"""Between attempts to load a version that waits for others: for a store that is away or is filled now, or for
memory that another version gives back."""

_ENDED, _ENDED_MODELS = 32, 256
"""Versions of a model, and models, that are remembered after they ended."""

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


@dataclass
class Failures:
    """The versions that do not load. Not thread-safe.

    Attributes:
        retries, seconds: how often, and after how long, one that failed is tried again; one whose files
            change is tried at once.
    """

    retries: int
    seconds: float
    _found: dict[tuple[str, int], Failure] = field(default_factory=dict)

    def of(self, name: str) -> list[int]:
        """Versions of a model."""
        return sorted(version for model, version in self._found if model == name)

    def is_pending(self, name: str, version: int, files: Files) -> bool:
        """Whether a version with these files failed, and is not to be tried now."""
        known = self._found.get((name, version))
        return known is not None and known.files == files and time.monotonic() < known.again_at

    def add(self, name: str, version: int, files: Files, error: Exception) -> tuple[int, float | None]:
        """How often it has failed, and after how many seconds it is tried again; None: when its files
        change."""
        known = self._found.get((name, version))
        attempts = known.attempts + 1 if known is not None and known.files == files else 1
        wait = retry_after(error, attempts, self.retries, self.seconds)
        at = math.inf if wait is None else time.monotonic() + wait
        self._found[name, version] = Failure(files, attempts, at)
        return attempts, wait

    def give_up(self, name: str, version: int, files: Files) -> None:
        """It is not tried again until its files change."""
        self._found[name, version] = Failure(files, 1, math.inf)

    def loaded(self, name: str, version: int) -> None:
        """It did."""
        self._found.pop((name, version), None)

    def forget(self, name: str, but: Container[int] = ()) -> None:
        """Drops what is known of a model, except of some versions."""
        for key in [key for key in self._found if key[0] == name and key[1] not in but]:
            del self._found[key]

    def models(self) -> set[str]:
        """That have any."""
        return {name for name, _ in self._found}


def files_of(directory: Path) -> Files:
    """Every file below a directory. Raises `OSError`."""
    # A link that leads nowhere is a file, too: what the manifest says of it is looked at when it is opened.
    stats = ((path, path.stat() if path.exists() else path.lstat()) for path in directory.rglob("*"))
    return frozenset((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def retry_after(error: Exception, attempts: int, retries: int, seconds: float) -> float | None:
    """Seconds until a version that failed `attempts` times is tried again; None: not before its files change.
    After so many `retries`, only what waits for others is."""
    if isinstance(error, TierError | MemoryLimitError):
        return _OTHERS_RETRY_SECONDS
    proved_wrong = isinstance(error, SelfCheckError | WarmupError | RolledBackError)
    return None if proved_wrong or attempts > retries else seconds


class Statuses:
    """What became of the versions of each model. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, VersionStatus]] = {}

    def of(self, name: str) -> Mapping[int, VersionStatus]:
        """By version; empty for a model that is not known."""
        return self._known.get(name, {})

    def find(self, name: str, version: int | None) -> list[VersionStatus]:
        """Of one version, or of all, highest first. Raises `ModelNotFoundError`."""
        known = self.of(name)
        found = [known[v] for v in sorted(known, reverse=True) if version in (None, v)]
        if not found:
            what = "any versions" if version is None else f"version {version}"
            raise ModelNotFoundError(f"Could not find {what} of model {name[:200]}")
        return found

    def names(self) -> list[str]:
        """Models that are known."""
        return sorted(self._known)

    def set(self, name: str, version: int, state: State, error: str = "") -> None:
        """Forgets what ended long ago."""
        known = self._known.setdefault(name, {})
        known[version] = VersionStatus(version, state, error)
        if state != "END":
            return
        for old in _ended(known)[:-_ENDED]:
            del known[old]
        self._known[name] = self._known.pop(name)  # the last one to end is the last
        if len(self._known) > _ENDED_MODELS:
            over = [n for n, versions in self._known.items() if len(_ended(versions)) == len(versions)]
            for gone in over[:-_ENDED_MODELS]:
                del self._known[gone]

    def gone(self, name: str, there: Container[int]) -> None:
        """Of a model only the versions `there` are left, on disk or loaded: others that were to be tried
        again end."""
        for version, status in list(self.of(name).items()):
            if status.state == "LOADING" and version not in there:
                self.set(name, version, "END", status.error)


def _ended(versions: Mapping[int, VersionStatus]) -> list[int]:
    return sorted(version for version, status in versions.items() if status.state == "END")


class Labels:
    """Names for versions, from the models' configurations."""

    def __init__(self, of_unavailable: bool):
        """`of_unavailable`: whether a new label may name a version that is not loaded yet."""
        self._of_unavailable = of_unavailable
        self._labels: dict[str, Mapping[str, int]] = {}

    def version(self, name: str, label: str) -> int:
        """Raises `InvalidRequestError` for a label that the model does not have."""
        labels = self._labels.get(name, {})
        if label not in labels:
            there = ", ".join(sorted(labels)) or "none"
            raise InvalidRequestError(
                f"Unrecognized servable version label: {label[:200]}; labels of model {name[:200]!r}: {there}"
            )
        return labels[label]

    def assign(
        self, models: Sequence[ModelConfig], served: Mapping[str, Container[int]], keep: Container[str] = ()
    ) -> None:
        """Gives the models' labels to their versions, in place of all others; those in `keep` have their old
        ones. Raises `LabelError` for a version that is not served, and changes nothing then."""
        for config in models:
            if config.name in keep:
                continue
            now = self._labels.get(config.name, {})
            for label, version in config.labels.items():
                new = label not in now and self._of_unavailable
                if version not in served.get(config.name, ()) and not new:
                    raise LabelError(
                        f"Request to assign label {label[:200]!r} to version {version} of model "
                        f"{config.name[:200]}, which is not currently available for inference; load it "
                        "first, or start with --allow_version_labels_for_unavailable_models"
                    )
        self._labels = {
            c.name: self._labels.get(c.name, {}) if c.name in keep else dict(c.labels) for c in models
        }


def event(name: str, version: int, state: State) -> dict[str, object]:
    """Fields of a version's event in a log of JSON."""
    return {"model": name, "version": version, "state": state}


def answering(versions: Mapping[int, Served]) -> list[int]:
    """Those of a model's versions that answer requests which name none; there is one."""
    return [version for version, served in versions.items() if not served.standby] or list(versions)


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
        named = [p for p in listed if p.name.isascii() and p.name.isdecimal() and (p / MANIFEST).is_file()]
        # Of `7` and `07`, which are one version, the one without zeros.
        numbered = {int(p.name): p for p in sorted(named, key=lambda p: len(p.name), reverse=True)}
        return {n: p for n, p in numbered.items() if n <= _MAX_VERSION}

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
