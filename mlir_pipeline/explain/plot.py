"""Draws an explanation: FLOPs over candidates, the share of each rewrite, the time of each dispatch."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mlir_pipeline.explain.explanation import DispatchRow, Explanation, TowerProfile

_SOURCE, _COMPILED, _OTHER = "#b5532a", "#2a6fb5", "#9aa0a6"
_MOST_BARS = 12
_LABEL_LENGTH = 58


def draw(explanation: Explanation, path: Path) -> None:
    """Writes the picture; `path` ends in .svg, .png or .pdf."""
    bars = max((len(_bars(p)) for p in explanation.profiles), default=4)
    heights = (3.8, 1.4 + 0.34 * (len(_changes(explanation)) + 2), 1.6 + 0.34 * bars)
    figure = Figure(figsize=(9.5, sum(heights)), layout="constrained")
    # A figure of its own for each: the long labels of the last would narrow the others.
    panels: Any = figure.subfigures(3, 1, height_ratios=heights)
    for panel, draw_panel in zip(panels, (_draw_flops, _draw_rewrites, _draw_time), strict=True):
        axes = panel.subplots()
        axes.set_axisbelow(True)
        draw_panel(axes, explanation)
    figure.savefig(path, dpi=140)


def _draw_flops(axes: Any, explanation: Explanation) -> None:
    counts = [w.candidates for w in explanation.work]
    for values, label, color in (
        ([w.source.flops / 1e9 for w in explanation.work], "as TensorFlow runs the graph", _SOURCE),
        ([w.compiled.flops / 1e9 for w in explanation.work], "compiled", _COMPILED),
    ):
        axes.plot(counts, values, marker="o", color=color, label=label)
        if values:
            axes.annotate(
                f"{values[-1]:.3g}", (counts[-1], values[-1]), xytext=(7, -3), textcoords="offset points"
            )
    name = f"{Path(explanation.bundle).name} ({explanation.target or 'not compiled'})"
    axes.set(title=f"{name}: work of one request", xlabel="candidates", ylabel="GFLOP")
    axes.set(xscale="log", yscale="log")
    axes.margins(x=0.09)
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def _changes(explanation: Explanation) -> list[tuple[str, float, float]]:
    """(step, MFLOP before, MFLOP after) of the steps that change FLOPs."""
    found, before = [], _source_mflop(explanation)
    for step in explanation.rewrites:
        after = (step.request_flops + step.candidate_flops) / 1e6
        if after != before:
            found.append((step.name, before, after))
        before = after
    return found


def _draw_rewrites(axes: Any, explanation: Explanation) -> None:
    changes, first = _changes(explanation), _source_mflop(explanation)
    last = changes[-1][2] if changes else first
    axes.barh(["source graph"], [first], color=_SOURCE)
    axes.text(first, 0, f" {first:,.4g}", va="center")
    for i, (name, before, after) in enumerate(changes, 1):
        axes.barh(
            [name], [before - after], left=after, color=_COMPILED if after < before else _SOURCE, alpha=0.6
        )
        share = f"{after / before - 1:+.1%}" if before else "new"
        axes.text(max(before, after), i, f" {share}", va="center")
    axes.barh(["compiled"], [last], color=_COMPILED)
    axes.text(last, len(changes) + 1, f" {last:,.4g}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(first, last, *(c[2] for c in changes), 1e-9) * 1.14)
    axes.set(
        title=f"What each step of the compiler changes, {explanation.reference_candidates:,} candidates",
        xlabel="MFLOP of one request",
    )
    axes.grid(axis="x", alpha=0.3)


def _draw_time(axes: Any, explanation: Explanation) -> None:
    if not explanation.profiles:
        why = next((m.why for m in explanation.not_measured if m.name.startswith("time")), "not asked for")
        axes.set(title="Time of each dispatch", xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"not measured: {why}", ha="center", va="center", wrap=True)
        return
    found = explanation.profiles[-1]
    bars = _bars(found)
    axes.barh(
        range(len(bars)),
        [milliseconds for _, milliseconds in bars],
        color=[_OTHER if label.startswith("others") else _COMPILED for label, _ in bars],
    )
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    for i, (_, milliseconds) in enumerate(bars):
        axes.text(
            milliseconds,
            i,
            f" {1e3 * milliseconds / found.dispatch_microseconds:.0%}",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(
        title=f"Time of each dispatch of {found.function}, {found.candidates:,} candidates in one call",
        xlabel="milliseconds of one stream, medians",
    )
    axes.grid(axis="x", alpha=0.3)


def _bars(found: TowerProfile) -> list[tuple[str, float]]:
    shown, rest = found.dispatches[:_MOST_BARS], found.dispatches[_MOST_BARS:]
    bars = [(_label(d), d.microseconds / 1e3) for d in shown]
    if rest:
        bars.append((f"others ({len(rest)})", sum(d.microseconds for d in rest) / 1e3))
    return bars


def _label(row: DispatchRow) -> str:
    """The dispatch's number and kind over its modules and primitives."""
    kind = row.name.partition("_dispatch_")[2] or row.name
    within = ", ".join(m or "model" for m in row.modules)
    inside = f"{within}: {', '.join(row.primitives)}" if row.primitives else "a copy"
    short = inside if len(inside) <= _LABEL_LENGTH else inside[: _LABEL_LENGTH - 1] + "…"
    return f"{kind}\n{short}"


def _source_mflop(explanation: Explanation) -> float:
    """Of the source graph at the reference number of candidates."""
    by_count = {w.candidates: w.source.flops / 1e6 for w in explanation.work}
    return by_count.get(explanation.reference_candidates, 0.0)
