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

_MAX_VERSION = 2**63 - 1  # versions travel as int64


@dataclass
class _Served:
    """One loaded version. `users` counts requests in flight; the model closes when it is retired and they are
    done."""

    version: int
    model: Model
    stamp: int  # modification time of its manifest
    users: int = 0
    retired: bool = False


# Path, size and modification time of every file. A version that failed is tried again when they change:
# copying a bundle is not atomic, and its manifest may come before its other files.
_Files = frozenset[tuple[str, int, int]]


@dataclass
class _State:
    served: dict[str, _Served] = field(default_factory=dict)
    failed: dict[tuple[str, int], _Files] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    scanned: bool = False


class ModelRepository:
    """The models of one directory. `lend` is the only way to a model; it is safe from any thread."""

    def __init__(
        self,
        models_dir: Path,
        *,
        target: str = "cpu",
        engine: str | None = None,
        streams: int | None = None,
    ):
        self._models_dir = models_dir
        self._target = target
        self._engine = engine
        self._streams = streams
        self._state = _State()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def scan(self) -> None:
        """Looks at the directory once and loads, switches and unloads what changed. Never raises for a bad
        bundle."""
        found = self._models()
        if found is not None:
            for name, directory in found.items():
                versions = self._versions(directory)
                if versions is not None:
                    self._update(name, versions)
            for name in self._state.served.keys() - found.keys():
                log.warning("model %s: its directory is gone; unloaded", name)
                self._swap(name, None)
            with self._lock:
                for key in [key for key in self._state.failed if key[0] not in found]:
                    del self._state.failed[key]
        with self._lock:
            self._state.scanned = True

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
        if not self._state.scanned:
            return ModelUnavailableError(f"model {shown!r} is not loaded yet; the server is starting")
        there = ", ".join(sorted(self._state.served)) or "none"
        return ModelNotFoundError(f"there is no model {shown!r}; models: {there}")

    def _models(self) -> dict[str, Path] | None:
        listed = self._list(self._models_dir)
        return None if listed is None else {p.name: p for p in listed if p.is_dir()}

    def _versions(self, directory: Path) -> dict[int, Path] | None:
        listed = self._list(directory)
        if listed is None:
            return None
        numbered = {int(p.name): p for p in listed if p.name.isascii() and p.name.isdecimal()}
        return {n: p for n, p in numbered.items() if n <= _MAX_VERSION and (p / MANIFEST).is_file()}

    def _list(self, directory: Path) -> list[Path] | None:
        """What is in a directory, hidden names aside; `None`, and one log line, where it cannot be read."""
        try:
            listed = [p for p in directory.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            if self._state.unreadable.get(directory) != str(error):
                self._state.unreadable[directory] = str(error)
                log.error("cannot read %s: %s; serving what is loaded from it", directory, error)
            return None
        if self._state.unreadable.pop(directory, None) is not None:
            log.info("%s can be read again", directory)
        return listed

    def _update(self, name: str, versions: dict[int, Path]) -> None:
        served = self._state.served.get(name)
        for version in sorted(versions, reverse=True):
            if served is not None and served.version in versions and version < served.version:
                break  # what is loaded is better than an older version, whatever became of its files
            path = versions[version]
            try:
                stamp = (path / MANIFEST).stat().st_mtime_ns
                if served is not None and served.version == version and served.stamp == stamp:
                    break
                tree = _files(path)
            except OSError:
                continue  # it went away while we looked; the next scan knows more
            if self._state.failed.get((name, version)) == tree:
                continue
            try:
                model = Model.load(path, target=self._target, engine=self._engine, streams=self._streams)
            except Exception as error:  # one bad bundle must not keep others from being served
                with self._lock:
                    self._state.failed[name, version] = tree
                kept = f"version {served.version} keeps serving" if served else "no version is served"
                log.error(
                    "model %s: version %d does not load, %s: %s",
                    name,
                    version,
                    kept,
                    error if isinstance(error, JaxrankError | OSError) else repr(error),
                    exc_info=not isinstance(error, JaxrankError | OSError),
                )
                continue
            with self._lock:
                self._state.failed.pop((name, version), None)
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


def _files(directory: Path) -> _Files:
    stats = ((path, path.stat()) for path in directory.rglob("*"))
    return frozenset((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
