"""`report.html`: one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from converters.report import plots
from converters.report.schema import ERROR_EDGES, ConversionReport
from jaxrank.manifest import Certificate, TensorSpec

_PLACES = {
    "unsupported": "no place: the model does not convert",
    "host": "on the CPU, before the dense program",
    "dense": "in the Flax module",
    "folded": "computed once, at conversion",
}
_NUMERIC = {"rows", "dim", "bytes", "ops", "candidates", "max abs error", "max rel error", "rank correlation",
            "top 1", "top 10", "top 50", "inverted pairs"}  # fmt: skip


def render(report: ConversionReport) -> str:
    """The page. Everything from the model is escaped."""
    template = Template(resources.files("converters.report").joinpath("template.html").read_text("utf-8"))
    source = report.source
    sections = [
        _unsupported(report),
        _certificate(report) if report.certificate is not None else "",
        _places(report),
        _inputs(report),
        _tables(report),
        _ops(report),
    ]
    return template.substitute(
        title=escape(f"Conversion of {source.path}"),
        heading=f"Conversion of <code>{escape(source.path)}</code>",
        origin=escape(
            f"{source.format}, signature {report.signature.name!r}, TensorFlow {source.tensorflow}, "
            f"jaxrank {source.jaxrank}, {source.created}"
        ),
        tiles="".join(_tiles(report)),
        notes="".join(f"<p>{escape(note)}</p>" for note in report.notes),
        sections="\n".join(s for s in sections if s),
    )


def _tiles(report: ConversionReport) -> Iterable[str]:
    counts = {place: sum(kinds.values()) for place, kinds in report.counts.items()}
    certificate = report.certificate
    if report.unsupported:
        yield _tile(f"{len(report.unsupported):,}", "unsupported ops", "bad")
    elif certificate is None:
        yield _tile("dry run", "every op has a place", "good")
    elif certificate.outputs:
        yield _tile(f"{certificate.max_abs_error:.1e}", "largest absolute error", "good")
        inverted = sum(o.inversions for o in certificate.outputs)
        yield _tile(f"{inverted:,}", "inverted pairs of candidates", "good" if not inverted else "")
        overlap = min(o.top50_overlap for o in certificate.outputs)
        yield _tile(f"{overlap:.0%}", "smallest top-50 overlap", "good" if overlap == 1 else "")
    yield _tile(f"{counts.get('host', 0):,} / {counts.get('dense', 0):,}", "ops on the host / dense")
    removed = f"ops folded, {report.removed.frozen:,} of them frozen weights"
    if report.removed.training:
        removed += f"; {report.removed.training:,} for training dropped"
    yield _tile(f"{report.removed.folded:,}", removed)
    embeddings = [t for t in report.tables if t.kind == "embedding"]
    yield _tile(_bytes(sum(t.bytes for t in embeddings)), f"in {len(embeddings):,} embedding tables")


def _tile(figure: str, label: str, kind: str = "") -> str:
    label = f'<span class="quiet">{escape(label)}</span>'
    return f'<div class="tile"><b class="{kind}">{escape(figure)}</b>{label}</div>'


def _unsupported(report: ConversionReport) -> str:
    if not report.unsupported:
        return ""
    rows = [[u.op, _name(u.name), u.advice] for u in report.unsupported]
    return "<h2>Unsupported ops</h2>" + _table("unsupported", ("op", "name", "why, and what to do"), rows)


def _places(report: ConversionReport) -> str:
    counts = {place: report.counts.get(place, {}) for place in _PLACES}
    bar = "".join(
        f'<span class="fill-{place}" style="flex:{count}" title="{place}: {count:,}"></span>'
        for place, kinds in counts.items()
        if (count := sum(kinds.values()))
    )
    rows = [
        [
            _place(place),
            f"{sum(kinds.values()):,}",
            _Markup(f'<span class="quiet">{_PLACES[place]}</span><br>')
            + ", ".join(f"{op} {n:,}" if n > 1 else op for op, n in kinds.items()),
        ]
        for place, kinds in counts.items()
        if kinds
    ]
    return f'<h2>Where each op went</h2><div class="stack">{bar}</div>' + _table(
        "places", ("place", "ops", "what"), rows
    )


def _inputs(report: ConversionReport) -> str:
    rows = [
        [_name(t.name), _type(t), t.scope, report.scope_reasons.get(t.feature or t.name, "")]
        for t in report.signature.inputs
    ]
    outputs = ", ".join(f"<code>{escape(t.name)}</code> {escape(_type(t))}" for t in report.signature.outputs)
    return (
        "<h2>Inputs</h2>"
        + _table("inputs", ("input", "type", "scope", "why"), rows)
        + f'<p class="quiet">Outputs: {outputs}</p>'
    )


def _type(spec: TensorSpec) -> str:
    shape = ", ".join("N" if d is None else str(d) for d in spec.shape)
    part = "" if spec.part == "rows" else f", {spec.part.replace('_', ' ')} of {spec.feature}"
    return f"{spec.dtype} [{shape}]{part}"


def _certificate(report: ConversionReport) -> str:
    certificate = report.certificate
    assert certificate is not None
    rows = [
        [
            _name(o.output),
            f"{o.rows:,}",
            f"{o.max_abs_error:.1e}",
            f"{o.max_rel_error:.1e}",
            f"{o.spearman:.6f}",
            f"{o.top1_overlap:.0%}",
            f"{o.top10_overlap:.0%}",
            f"{o.top50_overlap:.0%}",
            f"{o.inversions:,}" + (f" ({o.inversion_share:.2%})" if o.inversions else ""),
        ]
        for o in certificate.outputs
    ]
    columns = (
        "output", "candidates", "max abs error", "max rel error", "rank correlation", "top 1", "top 10",
        "top 50", "inverted pairs",
    )  # fmt: skip
    return (
        "<h2>Certificate</h2>"
        f"<p>{escape(certificate.stage)} against TensorFlow on {certificate.requests:,} requests; tolerance "
        f"{certificate.tolerance:.0e}, absolute up to 1 and relative beyond.</p>"
        '<p class="quiet">Top k: share of our k best rows that are among TensorFlow\'s. Inverted: pairs that '
        "TensorFlow orders by more than the tolerance and the bundle does not order the same way.</p>"
        + _table("certificate", columns, rows)
        + "".join(
            _plots(report, certificate, name) for name in dict.fromkeys(o.output for o in certificate.outputs)
        )
    )


def _plots(report: ConversionReport, certificate: Certificate, output: str) -> str:
    errors = [(o.rows, o.max_abs_error) for o in certificate.outputs if o.output == output]
    figures = [plots.error_by_candidates("Largest absolute error", errors, certificate.tolerance)]
    for sample in report.scores:
        if sample.output == output:
            figures.append(plots.scatter("Our score against TensorFlow's", sample.expected, sample.found))
            figures.append(plots.error_histogram("Values by error", sample.exact, sample.errors, ERROR_EDGES))
    return f'<h3><code>{escape(output)}</code></h3><div class="plots">{"".join(figures)}</div>'


def _tables(report: ConversionReport) -> str:
    if not report.tables:
        return ""
    rows = [
        [
            _name(t.name),
            f"{t.kind} {t.dtype}",
            _place(t.place),
            f"{t.rows:,}",
            f"{t.dim:,}",
            _bytes(t.bytes),
            _Markup(", ".join(_name(r) for r in t.readers)),
        ]
        for t in sorted(report.tables, key=lambda t: -t.bytes)
    ]
    columns = ("table", "kind", "place", "rows", "dim", "bytes", "read by")
    return "<h2>Tables and vocabularies</h2>" + _table("tables", columns, rows)


def _ops(report: ConversionReport) -> str:
    ops = [(u.name, u.op, "unsupported", u.advice) for u in report.unsupported]
    ops += [(o.name, o.op, o.place, o.reason) for o in report.ops]
    order = {place: i for i, place in enumerate(_PLACES)}
    ops.sort(key=lambda o: (order[o[2]], o[1], o[0]))
    boxes = "".join(
        f'<label><input type="checkbox" value="{place}" checked> {_place(place)}</label>'
        for place in _PLACES
        if report.counts.get(place)
    )
    rows = [[_place(place), op, _name(name), reason] for name, op, place, reason in ops]
    return (
        '<h2>Every op</h2><div class="filter" data-table="ops"><input type="search" '
        f'placeholder="Filter by op, name, scope or reason" aria-label="Filter ops">{boxes}'
        '<output class="quiet"></output></div>'
        + _table("ops", ("place", "op", "name", "reason"), rows, [place for *_, place, _ in ops])
    )


class _Markup(str):
    """Text that is HTML already."""

    def __add__(self, other: str) -> _Markup:
        return _Markup(str.__add__(self, _html(other)))


def _html(text: str) -> str:
    return text if isinstance(text, _Markup) else escape(text)


def _name(name: str) -> _Markup:
    # Long names break at their scopes.
    return _Markup(f'<span class="name">{escape(name).replace("/", "/<wbr>")}</span>')


def _place(place: str) -> _Markup:
    return _Markup(f'<span class="place place-{place}">{place}</span>')


def _table(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[str] | None = None
) -> str:
    kinds = [' class="number"' if c in _NUMERIC else "" for c in columns]
    head = "".join(f"<th{kind}>{escape(c)}</th>" for c, kind in zip(columns, kinds, strict=True))
    body = []
    for i, row in enumerate(rows):
        place = f' data-place="{places[i]}"' if places else ""
        cells = "".join(f"<td{kind}>{_html(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        body.append(f"<tr{place}>{cells}</tr>")
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>'
        f"{''.join(body)}</tbody></table></div>"
    )


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count:,} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
