"""The options `--precision`, `--keep`, `--examples` and `--prefer` of `jaxrank compile`, and the table of a
search."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from rich.markup import escape
from rich.table import Table

from jaxrank import bundle as files
from jaxrank.manifest import Manifest

if TYPE_CHECKING:
    from mlir_pipeline.precision.choice import Precision
    from mlir_pipeline.precision.search import Search, Trial


def read_precision(
    bundle: Path,
    rules: Sequence[str],
    keep: str | None,
    examples: Path | None,
    prefer: Literal["time", "bytes"] | None,
) -> "Precision | None":
    """What the options ask for; None without `--precision`.

    Raises `CompileError` or `ConversionError`: options that do not go together, a format, metric or bound
    that does not exist, examples that do not fit the bundle's signature.
    """
    from converters.examples import read_labelled
    from jaxrank.certificate import Example
    from mlir_pipeline.errors import CompileError
    from mlir_pipeline.precision.bounds import parse_bounds
    from mlir_pipeline.precision.choice import AUTO_BOUNDS, Precision
    from mlir_pipeline.precision.rules import parse_rules

    if prefer is not None and "auto" not in rules:
        raise CompileError("--prefer is about what --precision auto saves; give that too, or leave it out")
    if not rules:
        if keep is not None or examples is not None:
            given = "--keep" if keep is not None else "--examples"
            raise CompileError(f"{given} bounds what --precision may do; give --precision too")
        return None
    auto = "auto" in rules
    if auto and len(rules) > 1:
        raise CompileError(
            "--precision auto chooses for every module; give it alone, or give rules without it"
        )
    bounds = parse_bounds(keep if keep is not None else AUTO_BOUNDS) if auto or keep is not None else ()
    recorded: Sequence[Example] = ()
    if examples is not None:
        if not bounds:
            raise CompileError("--examples are requests that --keep is checked on; give --keep too")
        signature = files.read_manifest(bundle).signature
        recorded = [Example(f, {}, labels) for f, labels in read_labelled(examples, signature)]
    return Precision(None if auto else parse_rules(rules), bounds, recorded, prefer or "time")


def read_search(bundle: Path) -> "Search | None":
    """What a bundle's last search found."""
    from mlir_pipeline.precision.search import Search

    path = bundle / files.PRECISION_JSON
    return msgspec.json.decode(path.read_bytes(), type=Search) if path.exists() else None


def search_table(search: "Search") -> Table:
    """A line for each module and format alone, then the steps."""
    unit, scale = ("ms", 1.0) if search.prefer == "time" else ("KiB", 1 / 1024)
    kind = ", estimated" if search.estimated and search.prefer == "time" else ""
    title = (
        f"Precision for {search.target}: {search.candidates:,} candidates, {search.requests} "
        "requests; scores against "
        f"{search.scores}, labels are {search.labels}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("module")
    table.add_column("format")
    for column in (f"{unit} saved{kind}", *search.bounds, "bound used"):
        table.add_column(column, justify="right")
    table.add_column("")

    def row(trial: "Trial", remark: str) -> None:
        values = (f"{trial.values[metric]:.3g}" for metric in search.bounds)
        share = f"{trial.used:.0%}" if trial.used <= 9.99 else "> 999%"
        table.add_row(
            escape(trial.module), trial.format, f"{trial.saved * scale:.3g}", *values, share, remark
        )

    table.add_row("all", "f32", "0", *(f"{search.float32[m]:.3g}" for m in search.bounds), "", "")
    for trial in search.alone:
        no_gain = "saves nothing" if trial.saved <= 0 else ""
        row(trial, no_gain if trial.stays else "breaks a bound")
    if search.steps:
        table.add_section()
    for trial in search.steps:
        row(trial, "added" if trial.stays else "breaks a bound with the others: left out")
    table.caption = search.note
    return table


def precision_table(manifest: Manifest) -> Table:
    """A bundle's rules, and the bounds that its scores were held to."""
    table = Table(title="Precision", title_justify="left")
    table.add_column("modules")
    table.add_column("format")
    for rule in manifest.precision:
        table.add_row(escape(rule.pattern), rule.format)
    bounds = ", ".join(f"{k.metric} {k.value:.3g} (bound {k.bound:g})" for k in manifest.kept)
    table.caption = f"kept: {bounds}" if bounds else "within the certificate's tolerance"
    return table
