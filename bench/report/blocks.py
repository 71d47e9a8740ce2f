"""What sections are made of, and how numbers are written."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.results import Figure


@dataclass(frozen=True)
class Table:
    """Cells are plain text; a cell that ends a row's contest is marked by `best`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells that are shown in bold."""


@dataclass(frozen=True)
class Chart:
    """A drawing. `draw` returns an SVG document; `about` says what is shown and how it is read."""

    name: str
    title: str
    about: str
    draw: Callable[[], str]


@dataclass(frozen=True)
class Listing:
    """Sentences that stand on their own."""

    items: Sequence[str]


Block = str | Table | Chart | Listing
"""Text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """`detail` is only in the HTML file, folded."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    detail: bool = False


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.1e}"
    if size < 100:
        return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return f"{value:,.0f}"


def times(ratio: float) -> str:
    """A ratio in words."""
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def with_interval(figure: Figure) -> str:
    """The value, its unit, and its interval where it has one."""
    text = f"{number(figure.value)} {figure.unit}".strip()
    if figure.lo is None or figure.hi is None:
        return text
    return f"{text} ({number(figure.lo)} to {number(figure.hi)})"


def counted(values: Sequence[int]) -> str:
    """`1, 50 and 200 candidates`."""
    texts = [f"{v:,}" for v in values]
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"{joined} candidate{'' if values[-1] == 1 else 's'}"
