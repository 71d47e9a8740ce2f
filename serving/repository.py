"""Which models and versions answer: directories of bundles, watched while the server runs.

What to serve is a directory of `<name>/<version>/` bundles, or a list of `ModelConfig`. Of each model the
versions of its policy are served: by default the highest one that loads. A new version is loaded beside the
old one, proves itself (`serving.lifecycle`) and takes over in one step; the old one stays until the first
requests of the new one went well, and closes when its last request is done. A version that does not load is
logged with the file at fault, and what was served before goes on. A model whose directory is gone is
unloaded, as in TensorFlow Serving.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from jaxrank.bundle import MANIFEST
from jaxrank.errors import JaxrankError
from serving.background import Aside
from serving.engines import StreamSchedulers
from serving.errors import LabelError, ModelNotFoundError, ModelsNotLoadedError, ModelUnavailableError
from serving.lifecycle import LifecycleOptions, records
from serving.lifecycle.loading import Loader
from serving.lifecycle.rollback import Outcomes
from serving.model_config import ModelConfig
from serving.scheduling import SchedulingOptions, StreamLoad
from serving.served_models import ServedModels
from serving.state import StateCache
from serving.tiers.placement import Tiers
from serving.versions import (
    Directories,
    Failures,
    Files,
    Labels,
    Served,
    event,
    files_of,
)

log = logging.getLogger("jaxrank")

_STOP_SECONDS = 1.0
"""What may still run when everything else has ended may take: a call on a device, a version that loads."""


class ModelRepository(ServedModels):
    """The models of one server."""

    def __init__(
        self,
        models: Path | Sequence[ModelConfig],
        *,
        target: str = "cpu",
        engine: str | None = None,
        streams: int | None = None,
        load_retries: int = 5,
        retry_seconds: float = 60.0,
        labels_of_unavailable: bool = False,
        tiers: Tiers | None = None,
        scheduling: SchedulingOptions | None = None,
        states: StateCache | None = None,
        lifecycle: LifecycleOptions | None = None,
        one_of_many: bool = False,
    ):
        """
        Args:
            models: a directory of `<name>/<version>/` bundles, or the models by name.
            load_retries, retry_seconds: how often, and after how long, a version that failed is tried again;
                one whose files change is tried at once.
            labels_of_unavailable: whether a new label may name a version that is not loaded yet.
            states: where the models keep request sides (docs/state.md); nowhere by default.
            one_of_many: whether other processes serve the same models on the same port.
        """
        self.one_of_many = one_of_many
        self._models = models
        failed = Failures(load_retries, retry_seconds)
        super().__init__(lifecycle or LifecycleOptions(), failed, Labels(labels_of_unavailable))
        self._schedulers = StreamSchedulers(streams, scheduling)
        self._loader = Loader(self._lifecycle, self._schedulers, target, engine, tiers, states)
        self._directories = Directories()
        self._unknown_trials: set[str] = set()
        self._scanning = threading.RLock()  # never taken while `_lock` is held
        self._stop = threading.Event()
        self._watching = Aside()

    def loads(self) -> dict[str, StreamLoad]:
        """How busy each device is, by its driver."""
        return self._schedulers.loads()

    def scan(self) -> None:
        """Looks at the directories once and loads, switches and unloads what changed. Never raises for a bad
        bundle."""
        with self._scanning:
            configs = self._configs()
            if configs is not None:
                self._look_for_trials(configs)
                for config in configs.values():
                    if self._stop.is_set():
                        return
                    if config.name not in self._unloaded:
                        self._update(config)
                for name in self._served.keys() - configs.keys():
                    log.warning("model %s is no longer there; unloaded", name)
                    self._retire_all(name)
                with self._lock:
                    for name in self._failed.models() - configs.keys():
                        self._failed.forget(name)
                        self._statuses.gone(name, self._served.get(name, {}))
            with self._lock:
                self._scanned = True

    def update_tables(self) -> None:
        """Applies the deltas that have come for the tables of every served version."""
        for name, version in self.served():
            with suppress(ModelNotFoundError, ModelUnavailableError), self.lend(name, version) as (model, _):
                model.update_tables()

    def watch(self, seconds: float) -> None:
        """Scans, and updates tables, every `seconds` on a thread for each until `close`."""

        def run(what: str, look: Callable[[], None]) -> None:
            while not self._stop.wait(seconds):
                try:
                    look()
                except Exception:  # the watcher must outlive whatever a file system does
                    log.exception("looking for new %s failed; trying again in %s s", what, seconds)

        for what, look in (("versions", self.scan), ("deltas", self.update_tables)):
            self._watching.do(f"watcher-{what}", run, what, look)

    def reconfigure(self, models: Sequence[ModelConfig]) -> None:
        """Serves exactly these models from now on; returns when they are loaded.

        Raises `ModelsNotLoadedError` naming those without a version that loads, whose labels stay as they
        were, or `LabelError`: all labels then do, and where both are so. What does load is served in both
        cases, as in TensorFlow Serving.
        """
        with self._scanning:
            self._models = models
            self._unloaded.clear()
            self.complete(models)

    def complete(self, models: Path | Sequence[ModelConfig]) -> bool:
        """Does what `reconfigure` could not when it was given these models, and raises as it does. What a
        call unloaded meanwhile stays so; where it was given others since, nothing is done. Returns whether
        all of them are served with their labels."""
        with self._scanning:
            if models is not self._models or isinstance(models, Path):
                return False
            self.scan()
            label = ""
            with self._lock:
                absent = [c.name for c in models if c.name not in self._served]
                missing = [name for name in absent if name not in self._unloaded]
                try:
                    self._labels.assign(models, self._served, keep=absent)
                except LabelError as error:
                    if not missing:
                        raise
                    label = f"; {error}"
            if missing:
                raise ModelsNotLoadedError(
                    f"{len(missing)} model(s) did not become available: {', '.join(missing)[:2000]}; see "
                    f"GetModelStatus or the log{label}"
                )
            return not absent

    def assign_labels(self) -> None:
        """Gives the configured labels to their versions; after the first `scan`. Raises `LabelError`."""
        if not isinstance(self._models, Path):
            with self._lock:
                self._labels.assign(self._models, self._served)

    def load(self, name: str) -> None:
        """Loads a model that was unloaded, or tries again what failed. Raises as `lend` does."""
        with self._scanning:
            configs = self._configs() or {}
            if name not in configs:
                with self._lock:
                    raise self._unknown(name)
            self._unloaded.discard(name)
            with self._lock:
                self._failed.forget(name)
            for path in (self._directories.versions(configs[name].base_path) or {}).values():
                records.forget(path)
            self._update(configs[name])
            self.served_versions(name)

    def unload(self, name: str) -> None:
        """Unloads a model until `load` or `reconfigure`. Raises `ModelNotFoundError` for one that is not
        there."""
        with self._scanning:
            if name not in (self._configs() or {}) and name not in self._served:
                with self._lock:
                    raise self._unknown(name)
            self._unloaded.add(name)
            self._retire_all(name)

    def close(self) -> None:
        """Stops watching and closes every model that no request uses; the others close with their last one.
        A version that is just loading is waited for, but not for long: it is not served any more."""
        with self._lock:
            self._stop.set()
        self._watching.join(_STOP_SECONDS)
        for name in list(self._served):
            self._retire_all(name)
        self._aside.join(_STOP_SECONDS)
        self._schedulers.close(_STOP_SECONDS)

    # --- inside; `_scanning` is held ---

    def _configs(self) -> dict[str, ModelConfig] | None:
        if not isinstance(self._models, Path):
            return {config.name: config for config in self._models}
        found = self._directories.models(self._models)
        if found is None:
            return None
        trials = self._lifecycle.trials
        return {name: ModelConfig(name, path, trial=trials.get(name)) for name, path in found.items()}

    def _look_for_trials(self, configs: Mapping[str, ModelConfig]) -> None:
        """Says once of a trial whose model is not in the directory that it is none, or not yet."""
        if not isinstance(self._models, Path):
            return
        unknown = self._lifecycle.trials.keys() - configs.keys()
        for name in sorted(unknown - self._unknown_trials):
            log.warning(
                "--canary or --shadow names model %s, and %s has none of that name (%s): the trial has no "
                "effect until one comes",
                name,
                self._models,
                ", ".join(sorted(configs))[:2000] or "no models",
            )
        self._unknown_trials = unknown

    def _update(self, config: ModelConfig) -> None:
        """Loads and unloads versions so that those of the policy are served."""
        name = config.name
        versions = self._directories.versions(config.base_path)
        if versions is None:
            return
        policy = config.policy_with_trial
        with self._lock:
            self._trials.pop(name, None)
            if config.trial is not None:
                self._trials[name] = config.trial
        candidates = policy.candidates(versions)
        keep: set[int] = set()
        for version in candidates:
            if len(keep) == policy.latest:
                break
            if self._stop.is_set():
                return
            if self._serve(name, version, versions[version]):
                keep.add(version)
        for version in self._leaving(name, keep, versions, candidates):
            self._retire(name, version)
        with self._lock:
            self._failed.forget(name, but=versions)
            self._statuses.gone(name, versions.keys() | self._served.get(name, {}).keys())

    def _leaving(
        self, name: str, keep: set[int], versions: Mapping[int, Path], candidates: Sequence[int]
    ) -> list[int]:
        """The served versions that nothing asks for any more. One that a new version replaced waits until
        that has proved itself."""
        with self._lock:
            served = self._served.get(name, {})
            kept = keep & served.keys()  # one may have been rolled back just now
            for version in kept:
                served[version].standby = False
            probation = self._probations.get(name)
            if probation is not None and probation.version not in kept:
                probation = self._probations.pop(name) and None
            leaving: list[int] = []
            for version in served.keys() - kept:
                if candidates and not kept:
                    continue  # what is wanted does not load: what there is goes on, though its files are gone
                if version not in versions:
                    message = "model %s: version %d is gone; unloaded"
                    log.warning(message, name, version, extra=event(name, version, "END"))
                elif probation is not None and version == probation.fallback and version in candidates:
                    served[version].standby = True
                    continue
                leaving.append(version)
            return leaving

    def _serve(self, name: str, version: int, path: Path) -> bool:
        """Loads a version where it is new or changed. Returns whether it is served, in its old state at
        least: what is loaded is better than an older version, whatever became of its files."""
        served = self._served.get(name, {}).get(version)
        try:
            stamp = (path / MANIFEST).stat().st_mtime_ns
            if served is not None and served.stamp == stamp:
                return True
            files = files_of(path)
        except OSError:
            return served is not None  # it went away while we looked; the next scan knows more
        if self._failed.is_pending(name, version, files):
            return served is not None
        if served is None:
            with self._lock:
                self._statuses.set(name, version, "LOADING")
        try:
            with self._lock:
                in_use = sum(s.memory.total for s in self._open)
            if self._lifecycle.rollback_requests:
                records.check(path, files)
            model, memory = self._loader.load(name, path, in_use)
        except Exception as error:  # one bad bundle must not keep others from being served
            if self._stop.is_set():  # what it needs is closed under it
                return served is not None
            self._failed_to_load(name, version, files, error)
            return served is not None
        new = Served(version, model, path, stamp, files, memory, Outcomes(self._lifecycle.rollback_requests))
        with self._lock:
            stopped = self._stop.is_set()
            old = None if stopped else self._switch_to(name, new)
            close = old is not None and not old.users
        if stopped:
            model.close()
            return False
        if old is not None and close:
            self._end(name, old)
        log.info("model %s: serving version %d", name, version, extra=event(name, version, "AVAILABLE"))
        return True

    def _failed_to_load(self, name: str, version: int, files: Files, error: Exception) -> None:
        expected = isinstance(error, JaxrankError | OSError)
        reason = str(error) if expected else repr(error)
        with self._lock:
            attempts, wait = self._failed.add(name, version, files, error)
            state = "END" if wait is None else "LOADING"
            served = sorted(self._served.get(name, {}))
            if version not in served:
                self._statuses.set(name, version, state, reason)
        log.error(
            "model %s: version %d does not load, %s, %s: %s",
            name,
            version,
            f"version {', '.join(map(str, served))} keeps serving" if served else "no version is served",
            f"tried again in {wait:g} s" if wait is not None else "not tried again until its files change",
            reason,
            exc_info=None if expected else error,
            extra={**event(name, version, state), "attempts": attempts},
        )
