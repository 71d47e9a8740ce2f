"""A document as one HTML file that loads nothing."""

import html
import re

from bench.report.blocks import Block, Chart, Listing, Table
from bench.report.document import Document

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
nav a { margin-right: 1em; white-space: nowrap; }
figure { margin: 1rem 0; break-inside: avoid; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: #444; max-width: 50rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: 2px 8px; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr { break-inside: avoid; }
@media print {
  body { font-size: 10pt; margin: 0; }
  nav, details { display: none; }
  table { font-size: 8pt; }
}
"""
_NUMBER = re.compile(r"-?[\d.,]+(e-?\d+)?|-")


def page(made: Document) -> str:
    """The file."""
    dates = sorted(r.date[:10] for r in made.results.values())
    titles = [(f"s{i}", section.title) for i, section in enumerate(made.sections)]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>jaxrank: measured</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>jaxrank, measured</h1>",
        f"<p>Results of {', '.join(map(html.escape, made.results))}; measured from {dates[0]} to "
        f"{dates[-1]}. Made by <code>jaxrank bench report</code> from results files alone.</p>",
        "<nav>"
        + " ".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in titles)
        + "</nav>",
    ]
    for (name, title), section in zip(titles, made.sections, strict=True):
        inside = "\n".join(_block(block) for block in section.blocks)
        if section.detail:
            inside = f"<details><summary>Show</summary>{inside}</details>"
        parts.append(f'<section id="{name}"><h2>{html.escape(title)}</h2>\n{inside}</section>')
    return "\n".join([*parts, "</body></html>\n"])


def _block(block: Block) -> str:
    match block:
        case str():
            return f"<p>{_text(block)}</p>"
        case Listing():
            return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in block.items)}</ul>"
        case Table():
            return _table(block)
        case Chart():
            label = html.escape(f"{block.title}. {block.about}", quote=True)
            drawing = block.draw().replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
            caption = f"<figcaption>{_text(block.about)}</figcaption>"
            return f'<figure id="chart-{block.name}">{drawing}{caption}</figure>'


def _table(block: Table) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in block.columns)
    body = []
    columns = range(len(block.columns))
    numbers = {c for c in columns if all(_NUMBER.fullmatch(row[c]) for row in block.rows)}
    for at, row in enumerate(block.rows):
        cells = []
        for column, cell in enumerate(row):
            text = f"<b>{_text(cell)}</b>" if (at, column) in block.best else _text(cell)
            cells.append(f'<td class="number">{text}</td>' if column in numbers else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    rows = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table>{rows}</table></div>'


def _text(text: str) -> str:
    """With what `**` and backquotes mark."""
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
