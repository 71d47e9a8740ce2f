"""The versions that answer now: who lends them, what is known of them, and how they leave."""

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.background import Aside
from serving.errors import ModelNotFoundError, ModelUnavailableError
from serving.lifecycle import LifecycleOptions, records
from serving.lifecycle.memory import MemoryUse, Resident, resident_files
from serving.lifecycle.rollback import Probation
from serving.lifecycle.trials import Trial, is_drawn, split
from serving.model import Model
from serving.state import StateCounts
from serving.tiers.hot_rows import CacheCounts
from serving.versions import Failures, Labels, Served, Statuses, VersionStatus, answering

log = logging.getLogger("jaxrank")


class ServedModels:
    """What `repository.ModelRepository` decided to serve. `lend` is the only way to a model; it is safe from
    any thread, as is every method without an underscore."""

    def __init__(self, lifecycle: LifecycleOptions, failed: Failures, labels: Labels):
        self._lifecycle, self._failed, self._labels = lifecycle, failed, labels
        self._served: dict[str, dict[int, Served]] = {}
        self._statuses = Statuses()
        self._open: list[Served] = []
        """Served, or retired with requests in flight: what takes memory."""
        self._probations: dict[str, Probation] = {}
        self._trials: dict[str, Trial] = {}
        self._unloaded: set[str] = set()
        self._scanned = False
        self._lock = threading.Lock()
        self._aside = Aside()

    @contextmanager
    def lend(
        self, name: str, version: int | None = None, label: str | None = None, key: bytes = b""
    ) -> Iterator[tuple[Model, int]]:
        """The model that answers for `name`, and its version; it stays open while it is lent. `key` decides
        whether a request that names no version is one of a canary's.

        Raises `ModelNotFoundError` with what is there, `ModelUnavailableError`, or `InvalidRequestError` for
        an unknown label.
        """
        trial = self._trials.get(name)
        canary = trial is not None and version is None and label is None and is_drawn(key, trial.canary)
        with self._lock:
            served = self._find(
                name, self._labels.version(name, label) if label is not None else version, canary
            )
            served.users += 1
        try:
            yield served.model, served.version
        finally:
            with self._lock:
                served.users -= 1
                close = served.retired and not served.users
            if close:
                self._aside.do(f"close-{name}", self._end, name, served)

    def judge(self, name: str, version: int, fault: str) -> None:
        """Counts how a request of a version ended (`fault` is empty where it went well), and switches back to
        the version before it where its first requests say so."""
        with self._lock:
            versions = self._served.get(name, {})
            new = versions.get(version)
            if new is None:
                return
            new.outcomes.add(fault)
            probation = self._probations.get(name)
            if probation is None or probation.version != version:
                return
            old = versions.get(probation.fallback)
            verdict = "" if old is None else probation.verdict(new.outcomes, old.outcomes)
            if verdict is None:
                return
            del self._probations[name]
            if verdict and old is not None:
                old.standby = False
                self._failed.give_up(name, version, new.files)
            leaves = new if verdict else old if old is not None and old.standby else None
            # Under the same lock: a scan that comes between would find both versions ready to leave.
            unused = None if leaves is None else self._take_out(name, leaves.version, verdict)
        if verdict:
            log.error("model %s: version %d is %s", name, version, verdict)
            self._aside.do(f"remember-{name}", records.remember, new.path, new.files, verdict)
        if unused is not None:
            self._aside.do(f"close-{name}", self._end, name, unused)

    def shadow_of(self, name: str, version: int) -> int | None:
        """The version under trial that is to score a request, too, which `version` answered; None for none.
        Drawn anew by each call."""
        trial = self._trials.get(name)
        if trial is None or not trial.shadow or random.random() >= trial.shadow:
            return None
        with self._lock:
            versions = self._served.get(name)
            first, tried = split(answering(versions), trial) if versions else (None, None)
        return tried if version == first else None

    def memory(self, name: str) -> dict[int, tuple[MemoryUse, dict[str, Resident]]]:
        """What each served version of a model takes when all of it is resident, and what of its files is
        mapped and resident now. Raises as `lend` does for an unknown model."""
        with self._lock:
            if name not in self._served:
                raise self._unknown(name)
            served = sorted(self._served[name].values(), key=lambda s: s.version)
        return {s.version: (s.memory, resident_files(s.path)) for s in served}

    def loaded(self) -> dict[str, int]:
        """Highest served version of every model."""
        with self._lock:
            return {name: max(answering(versions)) for name, versions in sorted(self._served.items())}

    def served_versions(self, name: str) -> list[int]:
        """All served versions of a model, lowest first. Raises as `lend` does for an unknown model."""
        with self._lock:
            if name not in self._served:
                raise self._unknown(name)
            return sorted(self._served[name])

    def statuses(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> list[VersionStatus]:
        """What became of a model's versions, highest first. Raises `ModelNotFoundError`, and
        `InvalidRequestError` for an unknown label."""
        with self._lock:
            if label is not None:
                version = self._labels.version(name, label)
            return self._statuses.find(name, version)

    def known(self) -> list[str]:
        """Names of all models that are, or were, served or failed to load."""
        with self._lock:
            return self._statuses.names()

    def known_versions(self) -> dict[tuple[str, int], VersionStatus]:
        """What became of all versions, by model and version."""
        with self._lock:
            return {(n, v): s for n in self._statuses.names() for v, s in self._statuses.of(n).items()}

    def served(self) -> dict[tuple[str, int], Model]:
        """The models that answer, by name and version."""
        with self._lock:
            return {
                (name, version): served.model
                for name, versions in sorted(self._served.items())
                for version, served in sorted(versions.items())
            }

    def caches(self) -> dict[tuple[str, int], dict[str, CacheCounts]]:
        """What became of lookups in the memory before stored tables, by model and version, and table."""
        return {key: model.caches() for key, model in self.served().items()}

    def state_counts(self) -> dict[tuple[str, int], StateCounts]:
        """What was found of kept request sides, by model and version; of those that keep any."""
        found = {key: model.state_counts for key, model in self.served().items()}
        return {key: counts for key, counts in found.items() if counts is not None}

    # --- inside; `_lock` is held ---

    def _find(self, name: str, version: int | None, canary: bool) -> Served:
        versions = self._served.get(name)
        if versions is None:
            raise self._unknown(name)
        if version is None:
            version, tried = split(answering(versions), self._trials.get(name))
            version = tried if canary and tried is not None else version
        found = versions.get(version)
        if found is None:
            there = ", ".join(map(str, sorted(versions)))
            verb = "versions {} are" if len(versions) > 1 else "version {} is"
            raise ModelNotFoundError(
                f"model {name[:200]!r} has no version {version}; {verb.format(there)} served"
            )
        return found

    def _unknown(self, name: str) -> Exception:
        shown = name[:200]
        failed = self._failed.of(name)
        if name in self._unloaded:
            return ModelUnavailableError(f"model {shown!r} was unloaded; load it again")
        if failed:
            return ModelUnavailableError(
                f"model {shown!r} has no version that loads (tried {failed}); see the log"
            )
        if not self._scanned:
            return ModelUnavailableError(f"model {shown!r} is not loaded yet; the server is starting")
        there = ", ".join(sorted(self._served)) or "none"
        return ModelNotFoundError(f"there is no model {shown!r}; models: {there}")

    def _switch_to(self, name: str, new: Served) -> Served | None:
        """Serves a version. Returns the one of the same number that it replaces, if any."""
        self._failed.loaded(name, new.version)
        versions = self._served.setdefault(name, {})
        if versions and new.version > max(versions) and self._lifecycle.rollback_requests:
            self._begin_probation(name, new.version, max(answering(versions)))
        old = versions.get(new.version)
        versions[new.version] = new
        self._open.append(new)
        self._statuses.set(name, new.version, "AVAILABLE")
        if old is not None:
            old.retired = True
        return old

    def _begin_probation(self, name: str, version: int, answering: int) -> None:
        before = self._probations.get(name)
        unproven = before is not None and before.version == answering
        fallback = before.fallback if before is not None and unproven else answering
        self._probations[name] = Probation(
            version, fallback, self._lifecycle.rollback_requests, self._lifecycle.rollback_share
        )

    def _take_out(self, name: str, version: int, error: str = "") -> Served | None:
        """Takes a version out of service, if it still is in; `error` is why, where it failed. Returns it if
        no request uses it: it is to be closed now."""
        served = self._served.get(name, {}).pop(version, None)
        if served is None:
            return None
        if not self._served[name]:
            del self._served[name]
        served.retired = True
        self._statuses.set(name, version, "UNLOADING", error)
        return None if served.users else served

    # --- inside; `_lock` is not held ---

    def _retire_all(self, name: str) -> None:
        for version in list(self._served.get(name, {})):
            self._retire(name, version)

    def _retire(self, name: str, version: int) -> None:
        """Takes a version out of service, and closes it or leaves that to its last request."""
        with self._lock:
            unused = self._take_out(name, version)
        if unused is not None:
            self._end(name, unused)

    def _end(self, name: str, served: Served) -> None:
        """Closes a retired version that no request uses."""
        served.model.close()
        with self._lock:
            self._open.remove(served)
            if served.version not in self._served.get(name, {}):
                error = self._statuses.of(name)[served.version].error
                self._statuses.set(name, served.version, "END", error)
