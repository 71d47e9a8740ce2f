"""What a search for precision found: the plot that goes into the bundle, and what was decided in words."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot  # noqa: E402

from mlir_pipeline.precision.search import Search  # noqa: E402

# One hue for each type, the lighter for storage only; distinguishable without colours by the markers.
_MARKS = {
    "f16": ("#0b63ce", "o"),
    "bf16": ("#c2410c", "s"),
    "f16_storage": ("#7db2f0", "^"),
    "bf16_storage": ("#f2a679", "v"),
}
_SETTINGS: Any = {
    "svg.hashsalt": "jaxrank",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot(search: Search) -> str:
    """SVG: what each module alone, and each step of the search, saves and uses of the bounds. The same search
    gives the same bytes."""
    with pyplot.rc_context(_SETTINGS):
        figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
        for name, (colour, marker) in _MARKS.items():
            points = [t for t in search.alone if t.format == name]
            axes.scatter(
                [_shown(t.used) for t in points], [t.saved for t in points],
                color=colour, marker=marker, s=26, label=f"one module, {name}",
            )  # fmt: skip
        line = [(0.0, 0.0), *((t.used, t.saved) for t in search.steps if t.stays)]
        axes.plot(
            [_shown(x) for x, _ in line],
            [y for _, y in line],
            color="black",
            marker=".",
            label="chosen, step by step",
        )
        axes.axvline(1, color="#b91c1c", linewidth=1, linestyle="--", label="bound")
        axes.axhline(0, color="#888888", linewidth=0.6)
        axes.set_xscale("log")
        unit = "Milliseconds" if search.prefer == "time" else "Bytes of weights"
        axes.set_xlabel("Share of the tightest bound that is used (beyond 1 it is broken)")
        kind = " (estimated)" if search.estimated and search.prefer == "time" else ""
        axes.set_ylabel(f"{unit} saved{kind}")
        axes.set_title(
            f"Precision for {search.target}, {search.candidates:,} candidates, {search.requests} requests",
            loc="left",
        )
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return text.getvalue()


def verdict(search: Search, milliseconds: Mapping[str, float], faster: bool) -> str:
    """What the whole program's times say about a choice."""
    measured = (
        f"the whole program takes {milliseconds['chosen']:.3g} ms, in float32 {milliseconds['f32']:.3g} ms"
    )
    if search.prefer == "bytes":
        return f"{measured}; bytes were preferred"
    if not faster:
        return f"{measured}: no gain that three quarters of the runs show, so all modules stay in float32"
    return f"{measured}"


def _shown(used: float) -> float:
    """On a logarithmic axis: nothing is drawn at its left end, a broken infinity at its right one."""
    return min(max(used, 1e-4), 1e3)
