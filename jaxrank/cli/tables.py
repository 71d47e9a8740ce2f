"""`jaxrank tables`: moves embedding tables between bundles and stores, compares them, shows what is where,
and brings them from one step of training to the next."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Sheet

from jaxrank import bundle as bundles
from jaxrank.cli.console import results_console
from jaxrank.cli.table_deltas import apply, delta
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest

Config = Annotated[
    Path, typer.Option("--config", "-c", help="The tables config (TOML or JSON); see docs/tiers.md.")
]
StoreName = Annotated[str, typer.Option("--store", "-s", help="A store of the config, by its name.")]
Names = Annotated[
    list[str] | None, typer.Option("--table", "-t", help="A table; may be repeated. Default: all tables.")
]
Version = Annotated[
    str | None,
    typer.Option(help="First digits of the sha256 of the version that is meant; `stat` shows them."),
]
Bundle = Annotated[Path, typer.Argument(help="Bundle directory.")]

TABLES_HELP = """Keep embedding tables in RocksDB or a Redis Cluster instead of a server's memory.

A config file names the stores, and which table of which model lives where. Then:

  jaxrank tables push models/ranker/1 -c tables.toml -s cluster    store the bundle's tables

  jaxrank tables verify models/ranker/1 -c tables.toml -s cluster  compare every row with the bundle

  jaxrank serve models --tables-config tables.toml                 serve from the stores

Every version of a table is stored under its name and the sha256 of its file: a new model is pushed beside \
the one that is served. Each command may be killed at any moment: the same command goes on where it was.

What training changed in the tables is a delta: `delta` makes one of two bundles, `apply` brings one into a
bundle, and a server takes it while it serves (docs/updates.md).
"""


def push(bundle: Bundle, config: Config, store: StoreName, table: Names = None) -> None:
    """Store a bundle's tables.

    Only rows that are not stored yet are written: the command may be killed, or stop because a disk is full,
    and run again. Tables of other versions stay; `drop` removes them.
    """
    from serving.tables import open_table
    from serving.tiers.transfer import push as run
    from serving.tiers.transfer import record_of

    manifest = bundles.verify(bundle)
    with _store(config, store) as opened, _bars() as bars:
        for name in _chosen(manifest, bundle, table):
            entry = next(t for t in manifest.tables if t.name == name)
            source = open_table(bundle / entry.file, trusted=True)
            record = record_of(name, manifest.files[entry.file], source)
            task = bars.add_task(record.identity, total=record.rows)
            before = run(source, record, opened, lambda done, task=task: bars.advance(task, done))
            there = f", of which {before:,} were there" if before else ""
            bars.console.print(
                f"{record.identity}: {record.rows:,} rows of dim {record.dim} in store {store!r}{there}",
                highlight=False,
            )


def pull(
    name: Annotated[str, typer.Argument(help="Name of a table in the store.")],
    config: Config,
    store: StoreName,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    version: Version = None,
) -> None:
    """Write a stored table to a file, in the format of a bundle's tables.

    Rows are gathered in OUTPUT.pull until all are there. The file is then compared with the sha256 of the
    one that was pushed.
    """
    from serving.tiers.transfer import pull as run

    with _store(config, store) as opened, _bars() as bars:
        record = _find(opened, name, version)
        task = bars.add_task(record.identity, total=record.rows)
        same = run(opened, record, output, lambda done: bars.advance(task, done))
        what = "the file that was pushed, byte by byte" if same else "the same rows; only the header differs"
        bars.console.print(f"{output}: {record.rows:,} rows of {record.identity}, {what}", highlight=False)


def verify(bundle: Bundle, config: Config, store: StoreName, table: Names = None) -> None:
    """Compare every row of a bundle's tables with what a store holds.

    Exits with 2 if a row differs or is missing, and names the first ones.
    """
    from serving.tables import open_table
    from serving.tiers.errors import StoredTableError
    from serving.tiers.placement import find_record
    from serving.tiers.transfer import verify as run

    manifest = bundles.verify(bundle)
    with _store(config, store) as opened, _bars() as bars:
        for name in _chosen(manifest, bundle, table):
            entry = next(t for t in manifest.tables if t.name == name)
            record = find_record(opened, name, manifest.files[entry.file])
            source, stored = open_table(bundle / entry.file, trusted=True), opened.open(record)
            task = bars.add_task(record.identity, total=record.rows)
            try:
                found = run(source, stored, lambda done, task=task: bars.advance(task, done))
            finally:
                stored.close()
            if found.differing or found.missing:
                raise StoredTableError(
                    f"{record.identity} in store {store!r}: of {found.rows:,} rows {found.differing:,} "
                    "differ and "
                    f"{found.missing:,} are missing, first {', '.join(map(str, found.first))}; drop the "
                    "table "
                    "(`jaxrank tables drop`) and push it again"
                )
            bars.console.print(
                f"{record.identity}: all {found.rows:,} rows are the bundle's", highlight=False
            )


def stat(config: Config, store: StoreName, table: Names = None) -> None:
    """Show what a store holds: rows, bytes, dimensions, and how they lie on the nodes."""
    with _store(config, store) as opened:
        records = [r for r in opened.records() if not table or r.name in table]
        sheet = Sheet(title=f"Store {store!r}", title_justify="left")
        for column in ("table", "rows", "stored", "dim", "format", "bytes of rows"):
            sheet.add_column(column, justify="left" if column in ("table", "format") else "right")
        for r in records:
            stored = opened.position(r)
            sheet.add_row(
                r.identity,
                f"{r.rows:,}",
                "all" if stored == r.rows else f"{stored:,}",
                str(r.dim),
                r.row_format + (" by key" if r.keyed else ""),
                f"{r.total_bytes:,}",
            )
        shares = Sheet(title="Where", title_justify="left")
        for column in ("table", "place", "rows", "share", "bytes used there in all"):
            shares.add_column(column, justify="left" if column in ("table", "place") else "right")
        for r in records:
            for share in opened.shares(r):
                part = "" if share.rows is None else f"{share.rows / max(r.rows, 1):.1%}"
                rows = "no answer" if share.rows is None else f"{share.rows:,}"
                used = "" if share.bytes is None else f"{share.bytes:,}"
                shares.add_row(r.identity, share.place, rows, part, used)
    results_console().print(sheet, shares)


def drop(
    name: Annotated[str, typer.Argument(help="Name of a table in the store.")],
    config: Config,
    store: StoreName,
    version: Annotated[str, typer.Option(help="First digits of the sha256 of the version that goes.")],
) -> None:
    """Remove one version of a table from a store. Servers that have it open answer with default rows."""
    with _store(config, store) as opened:
        record = _find(opened, name, version)
        opened.drop(record)
    results_console().print(f"{record.identity} is gone from store {store!r}", highlight=False)


def add_to(app: typer.Typer, reporting_errors) -> None:
    """Adds `tables` with its commands."""
    tables = typer.Typer(no_args_is_help=True, help=TABLES_HELP)
    for command in (push, pull, verify, stat, drop, delta, apply):
        tables.command()(reporting_errors(command))
    app.add_typer(tables, name="tables")


@contextmanager
def _store(config: Path, name: str) -> Iterator:
    from serving.tiers.config import load_config
    from serving.tiers.placement import Tiers

    tiers = Tiers(load_config(config))
    try:
        yield tiers.store(name)
    finally:
        tiers.close()


def _find(store, name: str, version: str | None):
    from serving.tiers.errors import TableNotStoredError
    from serving.tiers.placement import find_record

    if version is not None:
        return find_record(store, name, version)
    same = [r for r in store.records() if r.name == name]
    if len(same) > 1:
        raise TableNotStoredError(
            f"store {store.name!r} holds {len(same)} versions of table {name!r}: "
            f"{', '.join(r.identity for r in same)}; say which with --version"
        )
    return same[0] if same else find_record(store, name, "")


def _chosen(manifest: Manifest, bundle: Path, wanted: list[str] | None) -> list[str]:
    names = [t.name for t in manifest.tables]
    unknown = [w for w in wanted or () if w not in names]
    if unknown or not names:
        what = f"has no table {unknown[0]!r}" if unknown else "has no tables"
        raise BundleError(f"{bundle} {what}; its tables are: {', '.join(names) or 'none'}")
    return wanted or names


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    width = max(80, shutil.get_terminal_size().columns)
    with Progress(*columns, console=Console(stderr=True, width=width)) as bars:
        yield bars
