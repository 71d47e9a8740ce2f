"""Tables that several commands print."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from jaxrank.bundle import PRECISION_EXAMPLES
from jaxrank.manifest import Certificate, Manifest, Signature

PLACES = ("unsupported", "host", "dense", "folded")


def certificate_table(certificate: Certificate, held_to: Manifest | None = None) -> Table:
    """The certificate, a line for each output and number of candidates.

    `held_to` is the manifest of a compiled program's certificate: in lower precision its bounds hold, where
    it has some, and the tolerance of float32 does not.
    """
    kept = held_to.kept if held_to is not None else ()
    bounds = f"tolerance {certificate.tolerance:.0e}"
    if held_to is not None and kept:
        bounds = f"bounds {','.join(f'{k.metric}:{k.bound:g}' for k in kept)}"
        if PRECISION_EXAMPLES in held_to.files:
            bounds += f" on the requests of {PRECISION_EXAMPLES}"
    table = Table(
        title=f"Certificate: {certificate.stage} against TensorFlow, {certificate.requests} requests, "
        f"{bounds}",
        title_justify="left",
    )
    if kept:
        table.caption = (
            f"inverted pairs are counted among those that TensorFlow orders by more than "
            f"{certificate.tolerance:.0e}"
        )
    for column in (
        "output",
        "candidates",
        "max abs error",
        "max rel error",
        "rank correlation",
        "top-1 overlap",
        "top-10 overlap",
        "top-50 overlap",
        "inverted pairs",
    ):
        table.add_column(column, justify="left" if column == "output" else "right")
    for o in certificate.outputs:
        table.add_row(
            escape(o.output),
            f"{o.rows:,}",
            f"{o.max_abs_error:.1e}",
            f"{o.max_rel_error:.1e}",
            f"{o.spearman:.6f}",
            f"{o.top1_overlap:.0%}",
            f"{o.top10_overlap:.0%}",
            f"{o.top50_overlap:.0%}",
            f"{o.inversions:,} ({o.inversion_share:.2%})" if o.inversions else "0",
        )
    return table


def engine_table(manifest: Manifest) -> Table:
    """The engines that were compared when the bundle was compiled."""
    sizes = sorted({int(n) for t in manifest.engine_times for n in t.milliseconds})
    table = Table(
        title="Engines, dense half: medians of interleaved runs on the machine that compiled",
        title_justify="left",
    )
    for column in ("target", "engine", "load, s", *(f"{n:,} candidates, ms" for n in sizes), "note"):
        table.add_column(column, justify="right" if column.endswith("s") else "left", overflow="fold")
    for t in manifest.engine_times:
        chosen = manifest.chosen_engines.get(t.target) == t.engine
        times = [f"{t.milliseconds[str(n)]:.2f}" if str(n) in t.milliseconds else "" for n in sizes]
        load = "" if t.refused else f"{t.load_seconds:.2f}"
        table.add_row(t.target, t.engine, load, *times, escape(t.refused) or ("chosen" if chosen else ""))
    return table


def scope_table(signature: Signature, reasons: Mapping[str, str]) -> Table:
    """Every input with its scope and why; `reasons` are by input, or by feature for parts of one."""
    table = Table(title="Inputs", title_justify="left")
    for column in ("input", "dtype", "shape", "scope", "why"):
        table.add_column(column)
    for spec in signature.inputs:
        shape = ", ".join("N" if d is None else str(d) for d in spec.shape)
        why = reasons.get(spec.feature or spec.name, "")
        table.add_row(escape(spec.name), spec.dtype, f"\\[{shape}]", spec.scope, escape(why))
    return table


def placement_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Ops by place and type."""
    table = Table(title="Where each op went", title_justify="left")
    table.add_column("place")
    table.add_column("ops", justify="right")
    table.add_column("what")
    for place in PLACES:
        kinds = counts.get(place, {})
        if kinds or place != "unsupported":
            what = ", ".join(f"{op} {n:,}" if n > 1 else op for op, n in kinds.items())
            table.add_row(place, f"{sum(kinds.values()):,}", what)
    return table


def unsupported_table(found: Sequence[tuple[str, str, str]]) -> Table:
    """Ops without a place: `(op, name, advice)`."""
    table = Table(title=f"{len(found)} unsupported ops", title_justify="left")
    for column in ("op", "name", "why, and what to do"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*map(escape, row))
    return table
