"""Deltas that come while a model serves."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrank.errors import JaxrankError
from serving.host import HostProgramRunner
from serving.tables import (
    Delta,
    DeltaGapError,
    Position,
    Table,
    TableError,
    merged,
    open_table,
    overlaid,
    pending,
    read_delta,
    rewrite,
)
from serving.tables.delta import SUFFIX

log = logging.getLogger("jaxrank")

COMPACT_SHARE = 0.25
"""An overlay with more rows than this share of its table's is written to a file of its own."""

_Signature = tuple[tuple[str, int, int], ...]
"""Name, size and modification time of every file of an entry."""


def deltas_of(bundle: Path) -> Path:
    """Where a server looks for the deltas of a version: `<model>/<version>.deltas`."""
    return bundle.with_name(f"{bundle.name}.deltas")


class LiveUpdates:
    """Applies the deltas of a directory to the tables of a model that serves.

    An entry of the directory is a delta, or a directory of deltas of several tables. What an entry brings
    becomes visible in one step; an epoch is the state between two steps. A request sees one epoch: it takes
    the tables of its host program once. Thread-safe.
    """

    def __init__(self, directory: Path, host: HostProgramRunner, model: str):
        """`model` is its name, for the log."""
        self._directory, self._host, self._model = directory, host, model
        self._bases = dict(host.tables)
        self._positions = {name: table.position for name, table in host.tables.items()}
        self._read: dict[Path, _Signature] = {}  # applied, or refused for good
        self._said: dict[Path, str] = {}
        self._too_large: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def positions(self) -> Mapping[str, Position]:
        """Of every table, after the last `poll`."""
        return self._positions

    def poll(self) -> None:
        """Looks once, and applies what there is. A bad entry is logged, once, and looked at again when its
        files change; one whose predecessors are missing waits for them."""
        with self._lock:
            waiting = self._entries()
            while waiting:
                applied = [path for path, signature in waiting.items() if self._apply(path, signature)]
                if not applied:
                    break
                for path in applied:
                    del waiting[path]
            for name, table in self._host.tables.items():
                if table.overlay_rows > max(
                    COMPACT_SHARE * self._bases[name].rows, self._too_large.get(name, 0)
                ):
                    self._compact(name, table)

    def _entries(self) -> dict[Path, _Signature]:
        """Entries that are new or have changed, with what tells that."""
        try:
            listed = sorted(self._directory.iterdir())
            found = {p: _signature(p) for p in listed if not p.name.startswith(".")}
        except FileNotFoundError:
            found = {}  # there is no such directory, or an entry went away: the next poll knows more
        except OSError as error:
            self._say(self._directory, f"cannot be read: {error}")
            found = {}
        for gone in self._read.keys() - found.keys():
            del self._read[gone]
        return {path: s for path, s in found.items() if s and self._read.get(path) != s}

    def _apply(self, path: Path, signature: _Signature) -> bool:
        """Applies an entry if it is the next one. Returns whether it is done with."""
        try:
            files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
            steps = self._steps([read_delta(file) for file in files])
        except DeltaGapError as error:
            self._say(path, f"waits: {error}")
            return False
        except (JaxrankError, OSError) as error:
            self._say(path, f"is refused: {error}")
            self._read[path] = signature
            return False
        if steps:
            tables = self._host.tables
            new = {name: overlaid(self._bases[name], tables[name], deltas) for name, deltas in steps.items()}
            self._host.replace_tables(new)
            self._positions = {**self._positions, **{n: deltas[-1].after for n, deltas in steps.items()}}
            stands = ", ".join(f"{name} at {self._positions[name].sequence}" for name in sorted(new))
            log.info("model %s: applied %s; tables: %s", self._model, path.name, stands)
        self._read[path] = signature
        return True

    def _steps(self, deltas: Sequence[Delta]) -> dict[str, list[Delta]]:
        """The deltas that change something, by table. Raises `TableError` where one of them cannot be
        applied."""
        by_table: dict[str, list[Delta]] = {}
        for delta in deltas:
            why = self._host.why_fixed(delta.table)
            if why is not None:
                raise TableError(
                    f"{delta.path} is for table {delta.table!r}, which takes no deltas while it serves: "
                    f"{why}; serve a new version"
                )
            by_table.setdefault(delta.table, []).append(delta)
        steps = {
            name: pending(of_table, self._bases[name], self._positions[name])
            for name, of_table in by_table.items()
        }
        return {name: found for name, found in steps.items() if found}

    def _compact(self, name: str, table: Table) -> None:
        """Writes a table with its overlay to a file that only this process has, and serves that one."""
        path = self._directory / f".{name.replace('/', '_')}.{os.getpid()}.compacted"
        position = self._positions[name]
        try:
            rewrite(self._bases[name], [merged(self._bases[name], table, position)], path)
            base = open_table(path, memory=table.memory, trusted=True, dtype=table.dtype)
            path.unlink()
        except (TableError, OSError) as error:
            self._too_large[name] = 2 * table.overlay_rows
            self._say(path, f"cannot be written; table {name!r} stays in memory as it is: {error}")
            return
        self._bases[name] = base
        self._too_large.pop(name, None)
        self._host.replace_tables({name: base})
        log.info("model %s: table %s compacted at sequence %d", self._model, name, position.sequence)

    def _say(self, path: Path, what: str) -> None:
        if self._said.get(path) != what:
            self._said[path] = what
            log.error("model %s: %s %s", self._model, path, what)


def _signature(entry: Path) -> _Signature:
    """Raises `OSError`."""
    files = sorted(entry.glob(f"*{SUFFIX}")) if entry.is_dir() else [entry] if entry.suffix == SUFFIX else []
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
