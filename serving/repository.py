"""Which models and versions answer: `MODELS_DIR/<name>/<version>/` bundles, watched while the server runs.

The highest version that loads is served. A new version is loaded beside the old one and takes over in one
step; the old one closes when its last request is done. A version that does not load is logged with the file
at fault, and what was served before goes on. A model whose directory is gone is unloaded, as in TensorFlow
Serving.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jaxrank.bundle import MANIFEST
from jaxrank.errors import JaxrankError
from serving.errors import ModelNotFoundError, ModelUnavailableError
from serving.model import Model

log = logging.getLogger("jaxrank")


@dataclass
class _Served:
    """One loaded version. `users` counts requests in flight; the model closes when it is retired and they are
    done."""

    version: int
    model: Model
    stamp: int
    users: int = 0
    retired: bool = False


@dataclass
class _State:
    served: dict[str, _Served] = field(default_factory=dict)
    failed: dict[tuple[str, int], int] = field(default_factory=dict)


class ModelRepository:
    """The models of one directory. `lend` is the only way to a model; it is safe from any thread."""

    def __init__(self, models_dir: Path, *, target: str = "cpu", streams: int | None = None):
        self._models_dir = models_dir
        self._target = target
        self._streams = streams
        self._state = _State()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def scan(self) -> None:
        """Looks at the directory once and loads, switches and unloads what changed. Never raises for a bad
        bundle."""
        found = self._versions()
        if found is None:
            return
        for name, versions in found.items():
            self._update(name, versions)
        for name in self._state.served.keys() - found.keys():
            log.warning("model %s: its directory is gone; unloaded", name)
            self._swap(name, None)

    def watch(self, seconds: float) -> None:
        """Scans every `seconds` on a thread of its own until `close`."""

        def run() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.scan()
                except Exception:  # the watcher must outlive whatever a file system does
                    log.exception("scanning %s failed; trying again in %s s", self._models_dir, seconds)

        self._watcher = threading.Thread(target=run, name="model-watcher", daemon=True)
        self._watcher.start()

    @contextmanager
    def lend(self, name: str, version: int | None = None) -> Iterator[tuple[Model, int]]:
        """The model that answers for `name` and its version; it stays open while it is lent.

        Raises `ModelNotFoundError` with what is there.
        """
        with self._lock:
            served = self._state.served.get(name)
            if served is None:
                raise self._unknown(name)
            if version is not None and version != served.version:
                raise ModelNotFoundError(
                    f"model {name!r} has no version {version}; version {served.version} is served"
                )
            served.users += 1
        try:
            yield served.model, served.version
        finally:
            with self._lock:
                served.users -= 1
                close = served.retired and not served.users
            if close:
                served.model.close()

    def loaded(self) -> dict[str, int]:
        """Served version of every model."""
        with self._lock:
            return {name: served.version for name, served in sorted(self._state.served.items())}

    def close(self) -> None:
        """Stops watching and closes every model."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        for name in list(self._state.served):
            self._swap(name, None)

    def _unknown(self, name: str) -> Exception:
        shown = name[:200]
        failed = [version for model, version in self._state.failed if model == name]
        if failed:
            return ModelUnavailableError(
                f"model {shown!r} has no version that loads (tried {sorted(failed)}); see the log"
            )
        there = ", ".join(sorted(self._state.served)) or "none"
        return ModelNotFoundError(f"there is no model {shown!r}; models: {there}")

    def _versions(self) -> dict[str, dict[int, Path]] | None:
        try:
            models = [p for p in self._models_dir.iterdir() if p.is_dir() and not p.name.startswith(".")]
            return {
                model.name: {
                    int(v.name): v for v in model.iterdir() if v.name.isdecimal() and (v / MANIFEST).is_file()
                }
                for model in models
            }
        except OSError as error:
            log.error("cannot read %s: %s; serving what is loaded", self._models_dir, error)
            return None

    def _update(self, name: str, versions: dict[int, Path]) -> None:
        served = self._state.served.get(name)
        for version in sorted(versions, reverse=True):
            path = versions[version]
            try:
                stamp = (path / MANIFEST).stat().st_mtime_ns
            except OSError:
                continue  # it went away while we looked; the next scan knows more
            if served is not None and served.version == version and served.stamp == stamp:
                break
            if self._state.failed.get((name, version)) == stamp:
                continue
            try:
                model = Model.load(path, target=self._target, streams=self._streams)
            except (JaxrankError, OSError) as error:
                with self._lock:
                    self._state.failed[name, version] = stamp
                kept = f"version {served.version} keeps serving" if served else "no version is served"
                log.error("model %s: version %d does not load, %s: %s", name, version, kept, error)
                continue
            self._swap(name, _Served(version, model, stamp))
            log.info("model %s: serving version %d", name, version)
            break
        else:
            if served is not None and served.version not in versions:
                log.warning("model %s: version %d is gone; unloaded", name, served.version)
                self._swap(name, None)
        with self._lock:
            gone = [key for key in self._state.failed if key[0] == name and key[1] not in versions]
            for key in gone:
                del self._state.failed[key]

    def _swap(self, name: str, new: _Served | None) -> None:
        with self._lock:
            old = self._state.served.pop(name, None)
            if new is not None:
                self._state.served[name] = new
            close = old is not None and not old.users
            if old is not None:
                old.retired = True
        if old is not None and close:
            old.model.close()
