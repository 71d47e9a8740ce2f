"""`jaxrank tables delta` and `apply`: what changed in a model's tables, and how it gets into them."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jaxrank import bundle as bundles


def delta(
    old: Annotated[Path, typer.Argument(help="Bundle, or table, before.")],
    new: Annotated[Path, typer.Argument(help="The same model, trained further.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="What to write: a directory for bundles, a file for tables."),
    ],
    after: Annotated[
        Path | None,
        typer.Option(
            help="What led to OLD: the new delta continues it. Not for an OLD that deltas were applied to."
        ),
    ] = None,
) -> None:
    """Write the rows of tables that differ between two bundles, or two tables.

    Put the result into `<model>/<version>.deltas/` of a server that serves OLD, or `apply` it to OLD.
    """
    from serving.tables import open_table, write_delta
    from serving.updates.bundles import read_deltas, write_bundle_deltas

    led = read_deltas(after) if after is not None else []
    with _bars() as bars:
        if (old / bundles.MANIFEST).is_file():
            manifest = bundles.read_manifest(new)
            of = _tasks(bars, {t.name: t.rows * (1 + t.keyed) for t in manifest.tables})
            found = write_bundle_deltas(old, new, output, after=led, progress=of)
            dense, differences = found.dense, found.tables
        else:
            a, b = open_table(old), open_table(new)
            name = led[0].table if led else old.stem
            of = _tasks(bars, {name: (a.rows if a.keyed else 0) + b.rows})
            progress: Callable[[int], None] = lambda rows: of(name, rows)  # noqa: E731
            after_delta = led[0] if led else None
            differences = {name: write_delta(a, b, output, name=name, after=after_delta, progress=progress)}
            dense = False
        for name, rows in differences.items():
            bars.console.print(
                f"{name}: {rows.changed:,} rows changed, {rows.added:,} new, {rows.deleted:,} deleted",
                highlight=False,
            )
        if dense:
            bars.console.print(
                f"the dense half of {new} differs, too: a delta does not carry it; serve {new} as a new "
                "version to switch both in one step",
                highlight=False,
            )


def apply(
    paths: Annotated[
        list[Path], typer.Argument(metavar="DELTA... TARGET", help="Deltas, and then a table or a bundle.")
    ],
) -> None:
    """Apply deltas to a table's file, or to the tables of a bundle.

    The target takes its new state in one step: who is killed leaves it as it was. Deltas that are applied
    already do nothing; one whose predecessor is missing is refused.
    """
    from serving.tables import apply_deltas
    from serving.updates.bundles import apply_to_bundle, read_deltas

    *sources, target = paths
    if not sources:
        raise typer.BadParameter("give at least one delta, and the table or bundle to apply it to")
    deltas = [d for source in sources for d in read_deltas(source)]
    with _bars() as bars:
        of = _tasks(bars, {d.table: None for d in deltas})
        if target.is_dir():
            positions = apply_to_bundle(target, deltas, progress=of)
        else:
            name = deltas[0].table
            positions = {name: apply_deltas(target, deltas, progress=lambda count: of(name, count))}
        for name, position in positions.items():
            bars.console.print(f"{name}: at sequence {position.sequence}", highlight=False)


def _tasks(bars: Progress, totals: dict[str, int | None] | dict[str, int]) -> Callable[[str, int], None]:
    tasks: dict[str, TaskID] = {name: bars.add_task(name, total=total) for name, total in totals.items()}
    return lambda name, count: bars.advance(tasks[name], count)


@contextmanager
def _bars():
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars
