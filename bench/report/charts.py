"""Charts as SVG. Every series differs from the others by its marker and its line or its hatching, not by its
colour alone, so that a chart can be read in grey and by those who see colours otherwise."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from bench.report.blocks import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MADE = ("jaxrank", "tensorflow", "tensorflow_xla", "onnxruntime", "openvino", "jax", "torch_compile", "tvm")
# Colours that most kinds of colour blindness keep apart (Okabe and Ito, 2008).
_COLORS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#000000", "#E69F00", "#7F7F7F")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (3, 3)), (0, (7, 2)))
_HATCHES = ("", "///", "\\\\\\", "...", "xxx", "ooo", "+++", "---")
_LIMIT: Mapping[str, Any] = {"color": "#444444", "linewidth": 1.0, "linestyle": (0, (6, 3))}
_INCHES = 3.4
"""Width of a panel; three of them are as wide as a printed page at 9 points."""


@dataclass(frozen=True)
class Line:
    """One series of a panel. `lo` and `hi` bound a band, where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    lo: Sequence[float] = ()
    hi: Sequence[float] = ()
    style: str = ""
    """Name of the engine or server whose colour and marker it has; its own where it is empty."""
    thin: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    lines: Sequence[Line]
    ticks: Sequence[float] = ()
    """Of x, where they are not numbers of any size."""
    limit: tuple[float, str] | None = None
    """A horizontal line, and its name."""


def _drawn(draw: Callable[..., str]) -> Callable[..., str]:
    """Takes the chart's name first, which makes ids that are nobody else's on a page, and the same bytes of
    the same figures."""

    @wraps(draw)
    def with_name(name: str, *args: Any, **kwargs: Any) -> str:
        import matplotlib

        settings: Any = {"font.size": 9, "axes.titlesize": 10, "hatch.linewidth": 0.8, "svg.hashsalt": name}
        with matplotlib.rc_context(settings):
            text = draw(*args, **kwargs)
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])

    return with_name


@_drawn
def lines(panels: Sequence[Panel], x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> str:
    """Panels side by side, three in a row, with one legend."""
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    canvas = _canvas(max(2, across), down)
    axes = canvas.subplots(down, across, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        for line in panel.lines:
            _line(axis, line)
        if panel.limit is not None:
            axis.axhline(panel.limit[0], label=panel.limit[1], **_LIMIT)
        axis.set(title=panel.title, xlabel=x, ylabel=y)
        if log_x:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:,g}")
        if log_y:
            _log_y(axis)
        else:
            axis.set_ylim(bottom=0)
        if panel.ticks:
            axis.set_xticks(panel.ticks, [f"{t:,g}" for t in panel.ticks])
            axis.xaxis.minorticks_off()
        axis.grid(alpha=0.3, linewidth=0.6)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _legend(canvas, list(axes))
    return _svg(canvas)


@_drawn
def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    x: str,
    *,
    stacked: bool = False,
    errors: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
    limit: tuple[float, str] | None = None,
) -> str:
    """Horizontal bars with their values, grouped or stacked.

    Args:
        series: values by name, one for each group; none where there is none.
        errors: (lo, hi) of values that have an interval.
        limit: a vertical line, and its name.
    """
    thick = 0.8 if stacked else 0.8 / len(series)
    rows = len(groups) * (1 if stacked else len(series))
    canvas = _canvas(2, 0, extra=0.9 + 0.27 * rows + 0.16 * len(groups))
    axis = canvas.subplots()
    base = [0.0] * len(groups)
    for order, (label, values) in enumerate(series.items()):
        color, _, _, hatch = _style(label, order)
        shift = 0.0 if stacked else (order - (len(series) - 1) / 2) * thick
        at = [i + shift for i in range(len(groups))]
        shown = [0.0 if v is None else v for v in values]
        axis.barh(
            at, shown, thick, base if stacked else None, label=label, color=color, hatch=hatch,
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        for i, (value, where) in enumerate(zip(values, at, strict=True)):
            span = errors[label][i] if errors is not None and label in errors else None
            if span is not None and value is not None:
                axis.plot(span, [where, where], color="black", linewidth=1.1, marker="|", markersize=5)
            end = max(shown[i], span[1] if span is not None else 0.0)
            text = "not measured" if value is None else number(value)
            if not stacked:
                _label(axis, text, end, where)
        base = [b + v for b, v in zip(base, shown, strict=True)] if stacked else base
    if stacked:
        for i, total in enumerate(base):
            _label(axis, number(total), total, i)
    if limit is not None:
        axis.axvline(limit[0], label=limit[1], **_LIMIT)
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.set_xlabel(x)
    axis.margins(x=0.12)
    axis.grid(axis="x", alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    _legend(canvas, [axis])
    return _svg(canvas)


def _label(axis: "Axes", text: str, x: float, y: float) -> None:
    """Beside the end of a bar, above lines."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", bbox=box, zorder=4)


def _log_y(axis: "Axes") -> None:
    """With numbers that are read, not powers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:,g}")


def _line(axis: "Axes", line: Line) -> None:
    color, marker, dashes, _ = _style(line.style or line.name)
    ours = (line.style or line.name) == _MADE[0]
    axis.plot(
        line.x, line.y, color=color, marker=marker, markersize=4.5, linestyle=":" if line.thin else dashes,
        linewidth=1.0 if line.thin else 2.2 if ours else 1.4, label=line.name, zorder=3 if ours else 2,
        markerfacecolor="white" if line.thin else color,
    )  # fmt: skip
    if line.lo:
        axis.fill_between(line.x, line.lo, line.hi, color=color, alpha=0.12, linewidth=0)


def _style(name: str, order: int = 0) -> tuple[str, str, Any, str]:
    """Colour, marker, line and hatching: of an engine or server always the same."""
    at = _MADE.index(name) if name in _MADE else order % len(_MADE)
    return _COLORS[at], _MARKERS[at], _LINES[at], _HATCHES[at]


def _canvas(across: int, down: int, extra: float = 0.7) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(_INCHES * across, 2.8 * down + extra), layout="constrained")


def _legend(canvas: "Canvas", axes: Sequence["Axes"]) -> None:
    handles = {label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    if len(handles) < 2:
        return
    columns = 4 if canvas.get_figwidth() > 2 * _INCHES else 3
    canvas.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
        handlelength=4, frameon=False,
    )  # fmt: skip


def _svg(canvas: "Canvas") -> str:
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
