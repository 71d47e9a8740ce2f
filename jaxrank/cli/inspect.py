"""`jaxrank inspect`."""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jaxrank import bundle as files
from jaxrank.cli.console import results_console
from jaxrank.cli.precision import precision_table
from jaxrank.cli.report import certificate_table, engine_table, placement_table
from jaxrank.errors import BundleError
from jaxrank.manifest import Flops, Manifest, Target
from jaxrank.targets import CPU_TARGETS, HOST_CPU, choose_target

_BYTES = {"bool": 1, "float16": 2, "bfloat16": 2}


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
    console = results_console()
    console.print(
        f"[bold]{bundle}[/]: {manifest.source.format} {manifest.source.path!r}, converted "
        f"{manifest.source.created} with "
        f"TensorFlow {manifest.source.tensorflow}, schema {manifest.schema_version}; all "
        f"{len(manifest.files)} files intact",
        highlight=False,
    )
    console.print(_signature(manifest, bundle), _tables(manifest), _places(manifest))
    console.print(_host(bundle, manifest))
    if manifest.flops is not None:
        console.print(_flops(manifest.flops, manifest))
    if manifest.precision:
        console.print(precision_table(manifest))
    if manifest.state:
        console.print(_state(manifest))
    console.print(_targets(manifest, bundle), *(_costs(t) for t in manifest.targets if t.costs))
    console.print(certificate_table(manifest.certificate))
    for target in manifest.targets:
        if target.certificate is not None:
            console.print(certificate_table(target.certificate, manifest))
    if manifest.engine_times:
        console.print(engine_table(manifest))
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
        keys = " by key" if t.keyed else ""
        table.add_row(
            t.name, f"embedding {t.dtype} as {t.row_format}{keys}", f"{t.rows:,}", str(t.dim), f"{t.bytes:,}"
        )
    for v in manifest.vocabularies:
        table.add_row(v.name, f"vocabulary {v.key_dtype} -> int64", f"{v.size:,}", "", "")
    return table


def _places(manifest: Manifest) -> Table:
    places = dict.fromkeys(op.place for op in manifest.ops)
    return placement_table(
        {p: dict(Counter(op.op for op in manifest.ops if op.place == p).most_common()) for p in places}
    )


def _host(bundle: Path, manifest: Manifest) -> Table:
    """How the server runs the host program, and which operators keep it on NumPy."""
    from serving.host import HostProgramRunner

    runner = HostProgramRunner(bundle, manifest)
    table = _table("Host program", "runs", "operators", "because of")
    reasons = "\n".join(runner.not_native)
    table.add_row("on NumPy" if reasons else "natively", str(len(runner.program.operators)), escape(reasons))
    return table


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
    if flops.uncounted_loops:
        loops = "a loop" if flops.uncounted_loops == 1 else f"{flops.uncounted_loops} loops"
        table.caption = f"{loops} of the compiled program ends by the data: its products are counted once"
    return table


def _targets(manifest: Manifest, bundle: Path) -> Table:
    table = _table(
        "Targets", "target", "engine", "driver", "module", "candidate programs", "notes", "checked here"
    )
    for t in manifest.targets:
        checked = (
            f"max abs error {t.certificate.max_abs_error:.1e}" if t.certificate else "not run at compile time"
        )
        programs = ", ".join(["any number of rows", *(f"{p.rows}" for p in t.programs)] if t.module else [])
        if t.batch is not None:
            programs += f"; many requests in tiles of {t.batch.rows}"
        table.add_row(
            t.name,
            f"{t.engine} ({t.compiler})",
            t.driver,
            "\n".join(t.modules),
            programs,
            escape("\n".join(t.notes)),
            checked,
        )
    if not manifest.targets:
        table.add_row("none", "", "", "", "", "", "run jaxrank compile")
    if any(t.name in CPU_TARGETS and t.module for t in manifest.targets):
        try:
            chosen = f"this machine's CPU runs {choose_target(bundle, manifest, HOST_CPU).name}"
        except BundleError as error:
            chosen = str(error)
        table.caption = escape(chosen)
    return table


def _costs(target: Target) -> Table:
    """Measured times: a line for each program, a column for each number of rows."""
    sizes = sorted({c.rows for c in target.costs})
    table = _table(
        f"Measured costs of {target.name}, ms of one call on one stream",
        "program",
        *(f"{n:,} candidates" for n in sizes),
    )
    for function in dict.fromkeys(c.function for c in target.costs):
        ms = {c.rows: f"{c.ms:.3f}" for c in target.costs if c.function == function}
        table.add_row(function, *(ms.get(n, "") for n in sizes))
    return table


def _state(manifest: Manifest) -> Table:
    """What the request tower hands to the candidate tower, in order."""
    table = _table("State from request to candidate tower", "name", "dtype", "shape", "bytes")
    total = 0
    for tensor in manifest.state:
        size = math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 4)
        total += size
        name = escape(tensor.name) or "unnamed"
        table.add_row(name, tensor.dtype, escape(str(list(tensor.shape))), f"{size:,}")
    table.caption = f"{len(manifest.state)} tensors, {total:,} bytes"
    return table


def _ops(manifest: Manifest) -> Table:
    table = _table("Every op", "place", "op", "name", "reason")
    for op in sorted(manifest.ops, key=lambda o: (o.place, o.op, o.name)):
        table.add_row(op.place, op.op, escape(op.name), escape(op.reason))
    return table
