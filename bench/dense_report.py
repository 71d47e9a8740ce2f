"""What the suite `dense` says: figures, and a table."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from bench.dense import LARGE, OUR_NAME, STATIC_SIZES, TF_NAME, TOLERANCE, XLA_NAME, Measured
from bench.results import Figure, NotMeasured
from bench.timing import Estimate, Timing, mean_ratio, overhead

_ENGINES = (
    "jaxrank",
    "tensorflow",
    "tensorflow_xla",
    "onnxruntime",
    "openvino",
    "jax",
    "torch_compile",
    "tvm",
)
OF_SUITE = (
    "speedup_vs_tf_request_side",
    "speedup_vs_best_peer_request_side",
    "speedup_vs_tf_min",
    "speedup_vs_best_peer_no_request_side",
    "dynamic_over_static",
    "ms_per_candidate_5000_over_200",
    "harness_overhead",
    "max_abs_error",
)
"""Figures of no model in particular, which are listed where nothing was measured of them."""
VS_BEST = "speedup_vs_best_other"
"""Names of figures by model and size: how many times longer the fastest other engine takes, which is the
note."""


def figures(measured: Sequence[Measured]) -> tuple[list[Figure], list[NotMeasured]]:
    """The suite's figures, then those of each (model, engine, size); a figure that nothing measured is
    listed."""
    found: list[Figure] = []
    missing = [m for model in measured for m in model.missing]
    sizes = {rows for m in measured for rows in m.times}
    with_side = [m for m in measured if m.request_side]
    without = [m for m in measured if not m.request_side]
    ratios: dict[str, tuple[Estimate | None, str]] = {
        "speedup_vs_tf_request_side": (
            _mean(_against_tf(with_side, LARGE)),
            f"geometric mean over models with a request side and sizes from {LARGE}"
            f"{_without(with_side, sizes, LARGE, TF_NAME)}",
        ),
        "speedup_vs_best_peer_request_side": (
            _mean(_against_peers(with_side, LARGE)),
            f"against the fastest other engine for each model and size; geometric mean, sizes from {LARGE}"
            f"{_without(with_side, sizes, LARGE)}",
        ),
        "speedup_vs_tf_min": (
            _extreme(_against_tf(measured, 1), min),
            f"the smallest over all models and sizes{_without(measured, sizes, 1, TF_NAME)}",
        ),
        "speedup_vs_best_peer_no_request_side": (
            _mean(_against_peers(without, LARGE)),
            f"models with candidate features only; geometric mean, sizes from {LARGE}"
            f"{_without(without, sizes, LARGE)}",
        ),
        "dynamic_over_static": (
            _mean([(t, m.static[rows]) for m in measured for rows, t in m.dynamic.items()]),
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
            found.append(value.figure(name, "ratio", 1, note))
    timed = [t for m in measured for times in m.times.values() for t in times.values()]
    if timed:
        shortest = min(timed, key=lambda t: t.median)
        added = overhead()
        note = (
            f"what timing adds to a run, of the shortest median, {shortest.median:.3g} ms; the bound is 0.02"
        )
        found.append(
            Figure(
                name="harness_overhead",
                value=added.median / shortest.median,
                unit="ratio",
                lo=added.lo / shortest.hi,
                hi=added.hi / shortest.lo if shortest.lo else None,
                note=note,
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
    request_columns, candidate_columns = m.columns
    if candidate_columns:
        yield Figure(name=f"{m.name}/request_columns", value=request_columns, unit="columns", note=m.shape)
        yield Figure(name=f"{m.name}/candidate_columns", value=candidate_columns, unit="columns")
    source, request, candidate = m.mflop
    if source:
        yield Figure(name=f"{m.name}/source_mflop_per_candidate", value=source, unit="MFLOP")
        yield Figure(name=f"{m.name}/request_mflop", value=request, unit="MFLOP")
        yield Figure(name=f"{m.name}/mflop_per_candidate", value=candidate, unit="MFLOP")
    for rows, dynamic in m.dynamic.items():
        ratio = mean_ratio([(dynamic, m.static[rows])])
        yield ratio.figure(f"{m.name}/dynamic_over_static/{rows}", "ratio", dynamic.runs)
    for rows, times in m.times.items():
        others = [engine for engine in times if engine != OUR_NAME]
        if OUR_NAME in times and others:
            best = min(others, key=lambda engine: times[engine].median)
            ratio = mean_ratio([(times[best], times[OUR_NAME])])
            yield ratio.figure(f"{m.name}/{VS_BEST}/{rows}", "ratio", times[best].runs, best)
        for engine, t in times.items():
            note = m.threads if engine in (TF_NAME, XLA_NAME) else ""
            yield t.estimate.figure(f"{m.name}/{engine}/{rows}", "ms", t.runs, note)


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


def _without(measured: Sequence[Measured], sizes: Iterable[int], smallest: int, *engines: str) -> str:
    """Which models and sizes of the run a mean is without, as one of the engines, ours among them, was not
    timed there, or nothing but ours was."""
    lost = [
        f"{m.name} at {rows:,}"
        for m in measured
        for rows in sorted(sizes)
        if rows >= smallest
        and (len(held := m.times.get(rows, {})) < 2 or not {OUR_NAME, *engines} <= held.keys())
    ]
    return f"; without {', '.join(lost)}" if lost else ""


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
    return [e for e in _ENGINES if any(e in times for m in measured for times in m.times.values())]


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
