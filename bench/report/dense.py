"""What the suite `dense` says, and `gpu_dense`, whose figures have the same names."""

import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.dense import TOLERANCE
from bench.dense_report import OF_SUITE, VS_BEST
from bench.report import charts
from bench.report.blocks import Block, Chart, Table, counted, number, times
from bench.results import Figure, Results

OURS, TENSORFLOW = "jaxrank", "tensorflow"
LEVEL = 1.03
"""What differs by less is called level, and so is what differs by more where the interval of the ratio has 1
in it."""
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
"""Which come first, in this order."""


@dataclass
class Model:
    """What a run says of one model: milliseconds by number of candidates and engine, and other figures."""

    name: str
    times: dict[int, dict[str, Figure]] = field(default_factory=dict)
    others: dict[str, Figure] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        found = self.others.get(name)
        return None if found is None else found.value

    def speedup(self, rows: int, engine: str) -> float | None:
        """How many times longer the engine takes than ours."""
        found = self.times.get(rows, {})
        return found[engine].value / found[OURS].value if OURS in found and engine in found else None

    def rival(self, rows: int, *but: str) -> str | None:
        """The fastest engine that is not ours, nor one of `but`."""
        found = self.times.get(rows, {})
        others = [e for e in found if e != OURS and e not in but]
        return min(others, key=lambda e: found[e].value, default=None)


def level_at(ratio: float, measured: Figure | None) -> bool:
    """Whether a ratio is as good as 1, where `measured` is the same with its interval, if there is one."""
    lo, hi = (None, None) if measured is None else (measured.lo, measured.hi)
    return 1 / LEVEL < ratio < LEVEL or (lo is not None and hi is not None and lo <= 1 <= hi)


def models(results: Results) -> list[Model]:
    """In the order of the file."""
    found: dict[str, Model] = {}
    for figure in results.figures:
        model, _, rest = figure.name.partition("/")
        if not rest:
            continue
        engine, _, rows = rest.partition("/")
        made = found.setdefault(model, Model(model))
        if rows.isdecimal() and figure.unit == "ms" and figure.value > 0:
            made.times.setdefault(int(rows), {})[engine] = figure
        else:
            made.others[rest] = figure
    return list(found.values())


def engines(found: Sequence[Model]) -> list[str]:
    """Of these models, in the order of the tables."""
    seen = {e for m in found for by_engine in m.times.values() for e in by_engine}
    return [*(e for e in _ENGINES if e in seen), *sorted(seen.difference(_ENGINES))]


def failures(results: Results) -> list[str]:
    """Sentences: where ours was refused or failed, or a whole model did."""
    told = []
    for missing in results.not_measured:
        model, _, rest = missing.name.partition("/")
        engine, _, rows = rest.partition("/")
        if engine == OURS:
            of = counted([int(rows)]) if rows.isdecimal() else "all sizes"
            told.append(f"Dense half of {model}, {of}: jaxrank has no figure: {missing.why}")
        elif not rest and missing.name not in (*OF_SUITE, results.suite):
            told.append(f"Dense half of {model}: its measurement failed: {missing.why}")
    return told


def contests(results: Results) -> tuple[list[str], list[str], list[str]]:
    """Sentences: where ours is faster than every other engine, where it is level, where it is slower or has
    failed, which comes first."""
    wins, level, losses = [], [], failures(results)
    for m in models(results):
        ahead: dict[int, float] = {}
        even, behind = [], []
        for rows in sorted(m.times):
            rival = m.rival(rows)
            ratio = None if rival is None else m.speedup(rows, rival)
            if rival is None or ratio is None:
                continue
            if level_at(ratio, m.others.get(f"{VS_BEST}/{rows}")):
                even.append(f"{counted([rows])} ({rival})")
            elif ratio > 1:
                ahead[rows] = ratio
            else:
                behind.append(f"{counted([rows])} ({rival}, {times(1 / ratio)} as fast)")
        if ahead:
            least, most = min(ahead.values()), max(ahead.values())
            span = times(most) if times(least) == times(most) else f"{least:.2f} to {times(most)}"
            wins.append(f"Dense half of {m.name}, {counted(list(ahead))}: {span} as fast as the next engine.")
        if even:
            level.append(f"Dense half of {m.name}, {', '.join(even)}.")
        if behind:
            losses.append(f"Dense half of {m.name}, {', '.join(behind)}.")
        losses += _other_losses(m)
    return wins, level, losses


def _other_losses(m: Model) -> Iterable[str]:
    few, many = (m.times.get(rows, {}).get(OURS) for rows in (200, 5000))
    if few is not None and many is not None and (more := many.value / few.value / 25) > 1.15:
        yield f"Dense half of {m.name}: a candidate costs {times(more)} as much at 5,000 as at 200."
    slow = {n: f.value for n, f in m.others.items() if n.startswith("dynamic_over_static/") and f.value > 1.1}
    if slow:
        told = ", ".join(f"{times(r)} at {int(n.rpartition('/')[2]):,}" for n, r in slow.items())
        yield f"Dense half of {m.name}: a module for exactly that number of candidates is faster ({told})."


def cost_blocks(results: Results, name: str) -> list[Block]:
    """Milliseconds against candidates."""
    found = [m for m in models(results) if m.times]
    if not found:
        return ["No engine was timed in this run."]
    about = (
        "Milliseconds of one request's dense half, inputs in, scores out, over its number of candidates; "
        "both axes are logarithmic. Lower is better. A band is the interval of a figure."
    )
    ratios = (
        "The same as multiples of jaxrank's time: an engine above the line takes longer than jaxrank, one "
        "below it is faster."
    )
    return [
        Chart(name, "Cost against candidates", about, lambda: _cost_chart(found, name)),
        Chart(f"{name}_ratios", "Cost over jaxrank's", ratios, lambda: _ratio_chart(found, f"{name}_ratios")),
        _cost_table(found),
    ]


def _cost_chart(found: Sequence[Model], name: str) -> str:
    panels = []
    for m in found:
        drawn = []
        for engine in engines(found):
            rows = [n for n in sorted(m.times) if engine in m.times[n]]
            held = [m.times[n][engine] for n in rows]
            if rows:
                spans = [(f.lo, f.hi) for f in held if f.lo is not None and f.hi is not None]
                lo, hi = zip(*spans, strict=True) if len(spans) == len(held) else ((), ())
                drawn.append(charts.Line(engine, rows, [f.value for f in held], lo, hi))
        panels.append(charts.Panel(m.name, drawn, sorted(m.times)))
    return charts.lines(name, panels, "candidates", "ms", log_x=True, log_y=True)


def _ratio_chart(found: Sequence[Model], name: str) -> str:
    panels = []
    for m in found:
        drawn = []
        for engine in engines(found):
            held = {n: r for n in sorted(m.times) if (r := m.speedup(n, engine)) is not None}
            if held and engine != OURS:
                drawn.append(charts.Line(engine, list(held), list(held.values())))
        panels.append(charts.Panel(m.name, drawn, sorted(m.times), (1.0, "jaxrank's time")))
    return charts.lines(name, panels, "candidates", "times jaxrank's time", log_x=True, log_y=True)


def _cost_table(found: Sequence[Model]) -> Table:
    names = engines(found)
    rows, best = [], set()
    for m in found:
        for n in sorted(m.times):
            held = m.times[n]
            fastest = min(f.value for f in held.values())
            for at, engine in enumerate(names):
                if engine in held and held[engine].value == fastest:
                    best.add((len(rows), at + 2))
            ratios = [m.speedup(n, TENSORFLOW), m.speedup(n, m.rival(n, TENSORFLOW) or "")]
            rows.append(
                [m.name, f"{n:,}", *(number(held[e].value) if e in held else "-" for e in names)]
                + ["-" if r is None else f"{r:.2f}" for r in ratios]
            )
    return Table(["model", "candidates", *names, "x TF", "x best other"], rows, frozenset(best))


def flop_blocks(results: Results, candidates: int = 200) -> list[Block]:
    """The FLOP budget of each model."""
    found = [m for m in models(results) if m.value("mflop_per_candidate") is not None]
    if not found:
        return ["This run has no counts of FLOPs."]
    about = (
        f"MFLOP of matrix products for one candidate of a request of {candidates}: of TensorFlow's graph, "
        f"and of jaxrank's candidate tower with its share (1/{candidates}) of the request tower."
    )
    ours: list[float | None] = [
        (m.value("mflop_per_candidate") or 0.0) + (m.value("request_mflop") or 0.0) / candidates
        for m in found
    ]
    series = {
        TENSORFLOW: [m.value("source_mflop_per_candidate") for m in found],
        OURS: ours,
    }
    chart = Chart(
        "flops", "FLOP budget", about,
        lambda: charts.bars("flops", [m.name for m in found], series, "MFLOP for each candidate"),
    )  # fmt: skip
    return [chart, _model_table(found)]


def _model_table(found: Sequence[Model]) -> Table:
    columns = {
        "sizes": [_note(m, "request_columns") or None for m in found],
        "request columns": _column(found, "request_columns", "{:,.0f}"),
        "candidate columns": _column(found, "candidate_columns", "{:,.0f}"),
        "TensorFlow, candidate": _column(found, "source_mflop_per_candidate"),
        "ours, request": _column(found, "request_mflop"),
        "ours, candidate": _column(found, "mflop_per_candidate"),
        "convert, s": _column(found, "convert_s", "{:.1f}"),
        "compile, s": _column(found, "compile_s", "{:.1f}"),
        "engine": [_note(m, "compile_s").removeprefix("runs on ") or None for m in found],
    }
    kept = {name: cells for name, cells in columns.items() if any(c is not None for c in cells)}
    rows = [[m.name, *(cells[i] or "-" for cells in kept.values())] for i, m in enumerate(found)]
    return Table(["model", *kept], rows)


def _note(m: Model, name: str) -> str:
    return m.others[name].note if name in m.others else ""


def _column(found: Sequence[Model], name: str, form: str = "{:.2f}") -> list[str | None]:
    return [None if (v := m.value(name)) is None or math.isnan(v) else form.format(v) for m in found]


def engine_table() -> Table | None:
    """The table of bench/peers.py, which sets the engines up; reading it needs none of them."""
    text = ast.get_docstring(ast.parse(Path(__file__).parents[1].joinpath("peers.py").read_text())) or ""
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if x.startswith("|")]
    return Table(lines[0], lines[2:]) if len(lines) > 2 else None


TASK = (
    "The task is the same for all engines: the inputs of the dense half in (looked-up vectors, masks, "
    "numbers; the user's as one row), scores out, as NumPy arrays. For TensorFlow and the engines that run "
    "its graph it is the part of the SavedModel's graph after the lookups, where the user's row is repeated "
    "as the model does it. Engines take turns in one process, float32, one request at a time, on all cores. "
    f"Before an engine is timed, its scores must be the whole SavedModel's within {TOLERANCE:g}."
)
