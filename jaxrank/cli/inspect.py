"""`jaxrank inspect`."""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrank import bundle as files
from jaxrank.cli.report import certificate_table, placement_table
from jaxrank.manifest import Flops, Manifest


def inspect_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    ops: Annotated[
        bool, typer.Option("--ops", help="List every op of the source graph with its place and reason.")
    ] = False,
) -> None:
    """Show what a bundle is: signature with scopes, tables, where each op runs, FLOPs, targets, certificates.

    The bundle's report.html shows the same and more in a browser.

    Every file is checked against its sha256 first.
    """
    manifest = files.verify(bundle)
    console = Console()
    console.print(
        f"[bold]{bundle}[/]: {manifest.source.format} {manifest.source.path!r}, converted "
        f"{manifest.source.created} with "
        f"TensorFlow {manifest.source.tensorflow}, schema {manifest.schema_version}; all "
        f"{len(manifest.files)} files intact",
        highlight=False,
    )
    console.print(_signature(manifest, bundle), _tables(manifest), _places(manifest))
    if manifest.flops is not None:
        console.print(_flops(manifest.flops, manifest))
    console.print(_targets(manifest), certificate_table(manifest.certificate))
    for target in manifest.targets:
        if target.certificate is not None:
            console.print(certificate_table(target.certificate))
    if ops:
        console.print(_ops(manifest))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        numeric = column in {"rows", "dim", "bytes", "ops", "entries"} or column.endswith("candidates")
        table.add_column(column, justify="right" if numeric else "left")
    return table


def _signature(manifest: Manifest, bundle: Path) -> Table:
    from converters.report import REPORT_JSON, read_report

    why = read_report(bundle).scope_reasons if REPORT_JSON in manifest.files else {}
    table = _table(f"Signature {manifest.signature.name!r}", "", "name", "dtype", "shape", "scope", "why")
    for kind, specs in (("in", manifest.signature.inputs), ("out", manifest.signature.outputs)):
        for spec in specs:
            shape = ", ".join("N" if d is None else str(d) for d in spec.shape)
            reason = why.get(spec.feature or spec.name, "") if kind == "in" else ""
            table.add_row(kind, escape(spec.name), spec.dtype, f"\\[{shape}]", spec.scope, escape(reason))
    return table


def _tables(manifest: Manifest) -> Table:
    table = _table("Tables and vocabularies", "name", "kind", "rows", "dim", "bytes")
    for t in manifest.tables:
        table.add_row(t.name, f"embedding {t.dtype}", f"{t.rows:,}", str(t.dim), f"{t.bytes:,}")
    for v in manifest.vocabularies:
        table.add_row(v.name, f"vocabulary {v.key_dtype} -> int64", f"{v.size:,}", "", "")
    return table


def _places(manifest: Manifest) -> Table:
    places = dict.fromkeys(op.place for op in manifest.ops)
    return placement_table(
        {p: dict(Counter(op.op for op in manifest.ops if op.place == p).most_common()) for p in places}
    )


def _flops(flops: Flops, manifest: Manifest) -> Table:
    sizes = [n for n in (1, 200, 1000, 5000) if n <= manifest.max_candidates]
    table = _table("Dense FLOPs of one request (matrix products)", "", *(f"{n:,} candidates" for n in sizes))
    table.add_row("TensorFlow graph", *(f"{flops.source_per_candidate * n:,}" for n in sizes))
    if manifest.targets:
        compiled = [flops.request + flops.candidate * n for n in sizes]
        table.add_row("compiled", *(f"{c:,}" for c in compiled))
        table.add_row("  once for the request", *(f"{flops.request:,}" for _ in sizes))
        table.add_row("  for the candidates", *(f"{flops.candidate * n:,}" for n in sizes))
        table.add_row(
            "saved",
            *(
                f"{1 - c / max(flops.source_per_candidate * n, 1):.0%}"
                for c, n in zip(compiled, sizes, strict=True)
            ),
        )
    return table


def _targets(manifest: Manifest) -> Table:
    table = _table("Targets", "target", "engine", "driver", "module", "checked here")
    for t in manifest.targets:
        checked = (
            f"max abs error {t.certificate.max_abs_error:.1e}" if t.certificate else "not run at compile time"
        )
        table.add_row(t.name, f"{t.engine} ({t.compiler})", t.driver, t.module, checked)
    if not manifest.targets:
        table.add_row("none", "", "", "", "run jaxrank compile")
    state = sum(math.prod(s.shape) * (1 if s.dtype == "bool" else 4) for s in manifest.state)
    table.caption = f"state from request to candidate tower: {len(manifest.state)} tensors, {state:,} bytes"
    return table


def _ops(manifest: Manifest) -> Table:
    table = _table("Every op", "place", "op", "name", "reason")
    for op in sorted(manifest.ops, key=lambda o: (o.place, o.op, o.name)):
        table.add_row(op.place, op.op, escape(op.name), escape(op.reason))
    return table
