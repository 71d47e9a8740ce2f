"""A document as Markdown: `docs/performance.md`."""

import os
from pathlib import Path

from bench.report.blocks import Block, Chart, Listing, Table
from bench.report.document import Document


def charts_directory(results: Path) -> Path:
    """Where the page's charts are: beside its results."""
    return results / "charts"


def page(made: Document, results: Path, path: Path) -> str:
    """The page, written for a file at `path`, with its charts beside the results."""
    where = os.path.relpath(results, path.parent)
    lines = [
        "# How fast it is",
        "",
        f"Written by `jaxrank bench report` from the files of [`bench/results/`]({where}); the same with "
        f"every figure is [report.html]({where}/report.html). [bench.md](bench.md) says how to measure this "
        "again, here or on your model.",
        "",
    ]
    for section in made.sections:
        if not section.detail:
            lines += [f"## {section.title}", ""]
            for block in section.blocks:
                lines += [*_lines(block, where), ""]
    return "\n".join(lines)


def _lines(block: Block, where: str) -> list[str]:
    match block:
        case str():
            return [block]
        case Listing():
            return [f"- {item}" for item in block.items]
        case Table():
            rows = [
                [_cell(text, (at, column) in block.best) for column, text in enumerate(row)]
                for at, row in enumerate(block.rows)
            ]
            head = [_cell(c) for c in block.columns]
            return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
        case Chart():
            return [f"![{block.title}]({where}/charts/{block.name}.svg)", "", block.about]


def _cell(text: str, best: bool = False) -> str:
    text = text.replace("|", "\\|")
    return f"**{text}**" if best else text
