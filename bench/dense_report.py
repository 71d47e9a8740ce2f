"""What the suite `dense` says: figures, a table, a plot, and the page `docs/performance.md`."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.table import Table

from bench.dense import LARGE, OUR_NAME, STATIC_SIZES, TF_NAME, TOLERANCE, Measured
from bench.results import Figure, NotMeasured
from bench.timing import Estimate, Timing, mean_ratio, overhead

_COLORS = {
    "jaxrank": "#d62728",
    "tensorflow": "#1f77b4",
    "tensorflow_xla": "#17becf",
    "onnxruntime": "#2ca02c",
    "openvino": "#9467bd",
    "jax": "#ff7f0e",
    "torch_compile": "#8c564b",
    "tvm": "#7f7f7f",
}


def figures(measured: Sequence[Measured]) -> tuple[list[Figure], list[NotMeasured]]:
    """The suite's figures, then those of each (model, engine, size); a figure that nothing measured is
    listed."""
    found: list[Figure] = []
    missing = [m for model in measured for m in model.missing]
    with_side = [m for m in measured if m.request_side]
    without = [m for m in measured if not m.request_side]
    ratios: dict[str, tuple[Estimate | None, str]] = {
        "speedup_vs_tf_request_side": (
            _mean(_against_tf(with_side, LARGE)),
            f"geometric mean over models with a request side and sizes from {LARGE}",
        ),
        "speedup_vs_best_peer_request_side": (
            _mean(_against_peers(with_side, LARGE)),
            f"against the fastest other engine for each model and size; geometric mean, sizes from {LARGE}",
        ),
        "speedup_vs_tf_min": (
            _extreme(_against_tf(measured, 1), min),
            "the smallest over all models and sizes",
        ),
        "speedup_vs_best_peer_no_request_side": (
            _mean(_against_peers(without, LARGE)),
            f"models with candidate features only; geometric mean, sizes from {LARGE}",
        ),
        "dynamic_over_static": (
            _mean([pair for m in measured for pair in m.dynamic_and_static.values()]),
            "a request on one stream, our module in the engine's slices over one compiled for exactly that "
            f"shape; geometric mean over models at {' and '.join(map(str, STATIC_SIZES))} candidates",
        ),
        "ms_per_candidate_5000_over_200": (
            _extreme([pair for m in measured if (pair := _growth(m)) is not None], max),
            "our time for each candidate at 5,000 over that at 200; the worst model",
        ),
    }
    for name, (value, note) in ratios.items():
        if value is None:
            missing.append(NotMeasured(name=name, why="no model and size of this run says anything about it"))
        else:
            found.append(
                Figure(name=name, value=value.value, unit="ratio", lo=value.lo, hi=value.hi, note=note)
            )
    if shortest := min(
        (t.median for m in measured for times in m.times.values() for t in times.values()), default=None
    ):
        added = overhead().scaled(1 / shortest)
        note = f"what timing adds to a run, of the shortest median, {shortest:.3g} ms; the bound is 0.02"
        found.append(
            Figure(
                name="harness_overhead", value=added.median, unit="ratio", lo=added.lo, hi=added.hi, note=note
            )
        )
    else:
        missing.append(NotMeasured(name="harness_overhead", why="nothing was timed"))
    checked = [m for m in measured if any(OUR_NAME in times for times in m.times.values())]
    if checked:
        note = (
            f"against TensorFlow's SavedModel, absolute up to 1, relative beyond; the bound is {TOLERANCE:g}"
        )
        worst = max(m.error for m in checked)
        found.append(Figure(name="max_abs_error", value=worst, unit="score", note=note))
    else:
        missing.append(NotMeasured(name="max_abs_error", why="no model was scored"))
    compiled = [m.seconds["compile"] for m in measured if "compile" in m.seconds]
    if compiled:
        found.append(Figure(name="compile_s", value=max(compiled), unit="s", note="the slowest model"))
    return [*found, *(f for m in measured for f in _of_model(m))], missing


def _of_model(m: Measured) -> Iterable[Figure]:
    for step in ("convert", "compile"):
        if step in m.seconds:
            note = f"runs on {m.engine}" if step == "compile" else ""
            yield Figure(name=f"{m.name}/{step}_s", value=m.seconds[step], unit="s", note=note)
    source, request, candidate = m.mflop
    if source:
        yield Figure(name=f"{m.name}/source_mflop_per_candidate", value=source, unit="MFLOP")
        yield Figure(name=f"{m.name}/request_mflop", value=request, unit="MFLOP")
        yield Figure(name=f"{m.name}/mflop_per_candidate", value=candidate, unit="MFLOP")
    for rows, pair in m.dynamic_and_static.items():
        ratio = mean_ratio([pair])
        yield Figure(
            name=f"{m.name}/dynamic_over_static/{rows}",
            value=ratio.value,
            unit="ratio",
            lo=ratio.lo,
            hi=ratio.hi,
        )
    for rows, times in m.times.items():
        for engine, t in times.items():
            yield Figure(
                name=f"{m.name}/{engine}/{rows}", value=t.median, unit="ms", lo=t.lo, hi=t.hi, runs=t.runs
            )


Pair = tuple[Timing, Timing]


def _against_tf(measured: Sequence[Measured], smallest: int) -> list[Pair]:
    return [
        (times[TF_NAME], times[OUR_NAME])
        for m in measured
        for rows, times in m.times.items()
        if rows >= smallest and TF_NAME in times and OUR_NAME in times
    ]


def _against_peers(measured: Sequence[Measured], smallest: int) -> list[Pair]:
    return [
        (times[peer], times[OUR_NAME])
        for m in measured
        for rows, times in m.times.items()
        if rows >= smallest and OUR_NAME in times and (peer := m.best_peer(rows)) is not None
    ]


def _growth(m: Measured) -> Pair | None:
    """Our time for each candidate at 5,000, and at 200."""
    few, many = (m.times.get(rows, {}).get(OUR_NAME) for rows in (200, 5000))
    return None if few is None or many is None else (many.scaled(1 / 5000), few.scaled(1 / 200))


def _mean(pairs: Sequence[Pair]) -> Estimate | None:
    return mean_ratio(pairs) if pairs else None


def _extreme(pairs: Sequence[Pair], choose: Callable[..., Estimate]) -> Estimate | None:
    found = [mean_ratio([pair]) for pair in pairs]
    return choose(found, key=lambda e: e.value) if found else None


def _engines(measured: Sequence[Measured]) -> list[str]:
    return [e for e in _COLORS if any(e in times for m in measured for times in m.times.values())]


def table(measured: Sequence[Measured]) -> Table:
    """Medians in milliseconds, the fastest of each row in bold, and our ratios."""
    engines = _engines(measured)
    made = Table(title="dense half, ms (median)")
    for column in ("model", "candidates", *engines, "x TF", "x best other"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for m in measured:
        for rows, times in m.times.items():
            made.add_row(m.name, str(rows), *_cells(times, engines, "[bold]{}[/bold]"), *_ratios(m, rows))
    return made


def _cells(times: dict, engines: Sequence[str], best: str) -> list[str]:
    fastest = min((t.median for t in times.values()), default=0.0)
    cells = []
    for engine in engines:
        text = _ms(times[engine].median) if engine in times else "-"
        cells.append(best.format(text) if engine in times and times[engine].median == fastest else text)
    return cells


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratios(m: Measured, rows: int) -> list[str]:
    peer = m.best_peer(rows)
    found = (m.speedup(rows, TF_NAME), m.speedup(rows, peer) if peer else None)
    return ["-" if r is None else f"{r:.2f}" for r in found]


def plot(measured: Sequence[Measured], path: Path) -> None:
    """Milliseconds over candidates, one panel for each model, both axes logarithmic; a band of the
    median's interval. Raises `ImportError` without matplotlib."""
    from matplotlib.figure import Figure as Canvas

    shown = [m for m in measured if m.times]
    if not shown:
        return
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    canvas = Canvas(figsize=(4.2 * across, 3.4 * down + 0.5), layout="constrained")
    axes = canvas.subplots(down, across, squeeze=False).flatten()
    for axis, m in zip(axes, shown, strict=False):
        for engine in _engines(shown):
            rows = sorted(n for n in m.times if engine in m.times[n])
            if not rows:
                continue
            times = [m.times[n][engine] for n in rows]
            ours = engine == OUR_NAME
            axis.plot(
                rows, [t.median for t in times], marker="o", markersize=3.5, color=_COLORS[engine],
                linewidth=2.4 if ours else 1.2, zorder=3 if ours else 2, label=engine,
            )  # fmt: skip
            lo, hi = [t.lo for t in times], [t.hi for t in times]
            axis.fill_between(rows, lo, hi, color=_COLORS[engine], alpha=0.10, linewidth=0)
        axis.set(xscale="log", yscale="log", title=m.name, xlabel="candidates", ylabel="ms")
        axis.set_xticks(sorted(m.times), [f"{n:,}" for n in sorted(m.times)])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    handles = {label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 * across)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110)


def page(measured: Sequence[Measured]) -> str:
    """The page `docs/performance.md`."""
    from bench import peers
    from bench.results import machine

    found, missing = figures(measured)
    engines = _engines(measured)
    cpu = machine()
    lines = [
        "# How fast the dense half is",
        "",
        "Written by `python -m bench dense`; figures, with the commit and versions they are of, in",
        f"`bench/results/dense.json`. One machine ({cpu['cpu']}, {cpu['cores']} cores), float32, one request "
        "at a time, every engine",
        "on all cores. The engines take turns in one process, so what else the machine did met all of them.",
        "",
        "The task is the same for all: the inputs of the dense half in (looked-up vectors, masks, numbers;",
        "the user's as one row), scores out, as NumPy arrays. For TensorFlow and the engines that run its",
        "graph it is the part of the SavedModel's graph after the lookups, where the user's row is repeated",
        "as the model does it. Before an engine is timed, its scores must be those of the whole SavedModel",
        f"within {TOLERANCE:g}.",
        "",
        *(line for line in (peers.__doc__ or "").splitlines() if line.startswith("|")),
        "",
        "## Models",
        "",
        "MFLOP are of matrix products: of TensorFlow's graph for each candidate, then ours once for each",
        "request and for each candidate. Columns are what goes into the dense half. The engine is the one",
        "that `jaxrank compile --engine auto` chose; compiling and timing all of them is in its time.",
        "",
        "| model | sizes | request columns | candidate columns | source | ours, request | ours, candidate |"
        " compile, s | engine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        source, request, candidate = m.mflop
        lines.append(
            f"| {m.name} | {m.shape} | {m.columns[0]:,} | {m.columns[1]:,} | {source:.2f} | {request:.2f} | "
            f"{candidate:.2f} | {m.seconds.get('compile', math.nan):.1f} | {m.engine} |"
        )
    lines += [
        "",
        "## Milliseconds of a request",
        "",
        "Medians. The last columns are TensorFlow's time, and that of the fastest engine that is neither",
        "TensorFlow's graph nor ours, over our time: above 1 we are faster.",
        "",
        f"| model | candidates | {' | '.join(engines)} | x TF | x best other |",
        f"|---|{'---|' * (len(engines) + 3)}",
    ]
    for m in measured:
        for rows, times in m.times.items():
            cells = [*_cells(times, engines, "**{}**"), *_ratios(m, rows)]
            lines.append(f"| {m.name} | {rows:,} | {' | '.join(cells)} |")
    lines += ["", "![milliseconds over candidates](../bench/results/dense.png)", "", "## In short", ""]
    lines += ["| figure | value | |", "|---|---|---|"]
    lines += [f"| {f.name} | {f.value:.3g} {f.unit} | {f.note} |" for f in found if "/" not in f.name]
    lines += ["", "## Where we lose", "", *_losses(measured), ""]
    if missing:
        lines += ["## Not measured", "", *(f"- {m.name}: {m.why}" for m in missing), ""]
    return "\n".join(lines)


def _losses(measured: Sequence[Measured]) -> list[str]:
    lines = []
    for m in measured:
        lost = []
        for rows, times in m.times.items():
            faster = [e for e in times if (r := m.speedup(rows, e)) is not None and r < 1]
            if faster:
                best = min(faster, key=lambda e: times[e].median)
                share = times[OUR_NAME].median / times[best].median
                lost.append(f"{rows:,} candidates ({best}, {share:.2f}x our speed)")
        if lost:
            lines.append(f"- {m.name}: {', '.join(lost)}")
        growth = _growth(m)
        if growth is not None and (more := mean_ratio([growth]).value) > 1.15:
            lines.append(f"- {m.name}: a candidate costs {more:.2f} times more at 5,000 than at 200")
        slow = {
            rows: r for rows, pair in m.dynamic_and_static.items() if (r := mean_ratio([pair]).value) > 1.1
        }
        if slow:
            told = ", ".join(f"{r:.2f} at {rows:,}" for rows, r in slow.items())
            lines.append(f"- {m.name}: a module for exactly that number of candidates is faster ({told})")
    return lines or ["Nowhere in this run."]
