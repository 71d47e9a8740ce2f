"""Deltas between two bundles, and bundles on the disk brought to a later step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest
from jaxrank.staging import staging
from serving.tables import (
    Delta,
    DeltaMismatchError,
    Position,
    TableMismatchError,
    open_table,
    pending,
    read_delta,
    rewrite,
    write_delta,
)
from serving.tables.delta import SUFFIX
from serving.tables.updates import Difference

Progress = Callable[[str, int], None]
"""Called with a table's name and what is done more."""


@dataclass(frozen=True)
class BundleDifference:
    """By table, those that are the same left out; and whether the dense half differs, which deltas do not
    carry."""

    tables: Mapping[str, Difference]
    dense: bool


def read_deltas(path: Path) -> list[Delta]:
    """A delta, or all those of a directory. Raises as `read_delta`, and `DeltaMismatchError` for an empty
    directory."""
    found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not found:
        raise DeltaMismatchError(f"{path} has no file *{SUFFIX}; give what `jaxrank tables delta` wrote")
    return [read_delta(file) for file in found]


def write_bundle_deltas(
    old: Path, new: Path, output: Path, *, after: Sequence[Delta] = (), progress: Progress
) -> BundleDifference:
    """Writes the directory `output` with a delta for each table that differs; nothing if none does.

    Args:
        after: the deltas that led to `old`, if it was not made by applying them.
        progress: of rows that were compared.

    Raises `BundleError` for bundles that are not of the same model, and as `write_delta`.
    """
    before, now = files.read_manifest(old), files.read_manifest(new)
    _refuse_other_model(old, before, new, now)
    entries = {t.name: t for t in now.tables}
    led = {delta.table: delta for delta in after}
    found: dict[str, Difference] = {}
    with staging(output) as work:
        for entry in before.tables:
            a, b = open_table(old / entry.file), open_table(new / entries[entry.name].file)
            if before.files[entry.file] == now.files[entries[entry.name].file]:
                progress(entry.name, b.rows * (1 + b.keyed))
                continue
            path = work / f"{entry.name.replace('/', '_')}{SUFFIX}"
            difference = write_delta(
                a,
                b,
                path,
                name=entry.name,
                after=led.get(entry.name),
                progress=lambda rows, name=entry.name: progress(name, rows),
            )
            if difference == Difference(0, 0, 0) and read_delta(path).default_bytes is None:
                path.unlink()  # the same rows in another order
            else:
                found[entry.name] = difference
        if not found:
            raise BundleError(f"the tables of {new} have the rows of {old}; there is nothing to write")
    return BundleDifference(found, before.files.get(files.PARAMS) != now.files.get(files.PARAMS))


def apply_to_bundle(bundle: Path, deltas: Sequence[Delta], *, progress: Progress) -> dict[str, Position]:
    """Applies deltas to the tables of a bundle, which takes its place in one step: all tables and the
    manifest, or nothing. Files that stay are linked, not copied.

    Args:
        progress: of bytes that were written.

    Returns:
        Where each table with a delta then stands.

    Raises `BundleError`, and as `apply_deltas`.
    """
    manifest = files.read_manifest(bundle)
    entries = {t.name: t for t in manifest.tables}
    unknown = sorted({d.table for d in deltas} - entries.keys())
    if unknown:
        raise DeltaMismatchError(
            f"{bundle} has no table {unknown[0]!r}; its tables: {', '.join(entries) or 'none'}"
        )
    positions: dict[str, Position] = {}
    steps: dict[str, list[Delta]] = {}
    for name in {d.table: None for d in deltas}:
        table = open_table(bundle / entries[name].file)
        steps[name] = pending([d for d in deltas if d.table == name], table, table.position)
        positions[name] = steps[name][-1].after if steps[name] else table.position
    steps = {name: found for name, found in steps.items() if found}
    if not steps:
        return positions
    with staging(bundle, start_from=bundle, unchanged=manifest.files.keys()) as work:
        sums = dict(manifest.files)
        for name, found in steps.items():
            entry, path = entries[name], work / entries[name].file
            table = open_table(bundle / entry.file)
            rewrite(table, found, path, lambda count, name=name: progress(name, count))
            sums[entry.file] = files.sha256(path)
            rows = open_table(path).rows
            entries[name] = msgspec.structs.replace(entry, rows=rows, bytes=path.stat().st_size)
        tables = tuple(entries.values())
        files.rewrite_manifest(work, msgspec.structs.replace(manifest, tables=tables, files=sums))
    return positions


def _refuse_other_model(old: Path, before: Manifest, new: Path, now: Manifest) -> None:
    names = [sorted(t.name for t in m.tables) for m in (before, now)]
    if names[0] != names[1] or not names[0]:
        raise BundleError(
            f"{old} has the tables {', '.join(names[0]) or 'none'}, {new} has "
            f"{', '.join(names[1]) or 'none'}; give two bundles of the same model with tables"
        )
    same = files.host_files(before) == files.host_files(now)
    if not same or before.signature != now.signature:
        raise TableMismatchError(
            f"{new} has another signature, host program or vocabulary than {old}: ids no longer mean the "
            "same; serve it as a new version"
        )
