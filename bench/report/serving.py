"""What the suite `serve` says."""

from collections.abc import Sequence

from bench.report import charts
from bench.report.blocks import Block, Chart, Table, number, times, with_interval
from bench.report.dense import OURS, TENSORFLOW, level_at
from bench.results import Figure, Results

KINDS = {"plain": "without degradation", "degraded": "with degradation"}
PHASES = {
    "host_us_per_request": "host program",
    "dense_us_per_request": "dense program",
    "overhead_us_per_request": "everything else",
}


def throughput(results: Results) -> dict[str, dict[str, Figure]]:
    """Requests per second within the promise, by model and server; 0 where no rate kept it."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in results.figures:
        model, _, rest = figure.name.partition("/")
        kind, _, server = rest.partition("/")
        if kind == "throughput":
            found.setdefault(model, {})[server] = figure
    return found


def promise(results: Results) -> str:
    """In words, such as `p99 within 100 ms`."""
    slo = results.figure("slo_ms")
    return "the promised latency" if slo is None else f"p99 within {slo.value:g} ms"


def contests(results: Results) -> tuple[list[str], list[str], list[str]]:
    """Sentences: where ours answers more, about as much, less."""
    wins, level, losses = [], [], []
    for model, rates in throughput(results).items():
        for server, rate in rates.items():
            if server == OURS or OURS not in rates:
                continue
            ours, theirs = rates[OURS].value, rate.value
            told = f"Serving {model}, requests/s with {promise(results)}: "
            told += f"jaxrank {number(ours)}, {server} {number(theirs)}"
            if not ours:
                losses.append(f"{told}; jaxrank did not keep the promise in every round.")
            elif not theirs:
                wins.append(f"{told}; {server} did not keep the promise in every round.")
            elif level_at(ours / theirs, results.figure(f"{model}/throughput_vs_{server}")):
                level.append(f"{told}.")
            elif ours > theirs:
                wins.append(f"{told}: {times(ours / theirs)} as many.")
            else:
                losses.append(f"{told}: {times(theirs / ours)} as many there.")
    return wins, level, losses


def load_blocks(results: Results) -> list[Block]:
    """Latency against load."""
    curves = _curves(results)
    if not curves:
        return ["No rate of this run has a finite 99th percentile: nothing to draw."]
    slo = results.figure("slo_ms")

    def draw() -> str:
        panels = []
        for model, servers in curves.items():
            made = []
            for server, points in servers.items():
                points = sorted(points)
                made.append(charts.Line(f"{server}, p99", *_columns(points, 1), style=server))
                half = [p for p in points if p[2] is not None]
                made.append(charts.Line(f"{server}, median", *_columns(half, 2), style=server, thin=True))
            limit = None if slo is None else (slo.value, f"promised: {slo.value:g} ms")
            panels.append(charts.Panel(model, made, limit=limit))
        return charts.lines("load", panels, "requests/s sent", "ms since the intended time", log_y=True)

    about = (
        "Milliseconds from the time at which a request was to be sent to its answer, over the rate at which "
        "requests arrive (a Poisson process: a server that stalls is charged for what arrived meanwhile); "
        "the vertical axis is logarithmic. Rates at which over 1% of all requests were refused or late "
        "without end are not drawn."
    )
    return [Chart("load", "Latency against load", about, draw)]


def _columns(points: Sequence[tuple], at: int) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[at] for p in points]


def _curves(results: Results) -> dict[str, dict[str, list[tuple[float, float, float | None]]]]:
    """(rate, p99, median) by model and server."""
    found: dict[str, dict[str, list[tuple[float, float, float | None]]]] = {}
    for figure in results.figures:
        parts = figure.name.split("/")
        if len(parts) == 4 and parts[1] == "p99":
            point = (float(parts[3]), figure.value, figure.lo)
            found.setdefault(parts[0], {}).setdefault(parts[2], []).append(point)
    return found


def throughput_blocks(results: Results) -> list[Block]:
    """The largest rate at which the promise is kept."""
    found = throughput(results)
    if not found:
        return ["No throughput was searched for in this run."]
    servers = list(dict.fromkeys(s for rates in found.values() for s in rates))
    series = {s: [rates[s].value if s in rates else None for rates in found.values()] for s in servers}
    about = f"Requests/s with {promise(results)}, at the largest rate that kept it. Higher is better."
    chart = Chart(
        "throughput", "Throughput within the promise", about,
        lambda: charts.bars("throughput", list(found), series, "requests/s"),
    )  # fmt: skip
    rows = []
    for model, rates in found.items():
        cells = [_rate(rates[s]) if s in rates else "-" for s in servers]
        ratio = rates[OURS].value / rates[TENSORFLOW].value if _both(rates) else None
        setting = rates[TENSORFLOW].note if TENSORFLOW in rates else ""
        rows.append([model, *cells, "-" if ratio is None else f"{ratio:.2f}", setting or "-"])
    return [chart, Table(["model", *servers, "x TF", "TensorFlow's threads"], rows)]


def _rate(figure: Figure) -> str:
    return number(figure.value) if figure.value else "promise not kept at any rate tried"


def _both(rates: dict[str, Figure]) -> bool:
    return all(s in rates and rates[s].value > 0 for s in (OURS, TENSORFLOW))


def overload_blocks(results: Results) -> list[Block]:
    """Answers in time beyond saturation."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for figure in results.figures:
        parts = figure.name.split("/")
        if len(parts) == 4 and parts[1] == "goodput":
            point = (float(parts[3]), figure.value)
            found.setdefault(parts[0], {}).setdefault(KINDS.get(parts[2], parts[2]), []).append(point)
    if not found:
        return ["This run did not go beyond saturation."]

    def draw() -> str:
        panels = [
            charts.Panel(
                model,
                [
                    charts.Line(kind, *_columns(sorted(points), 1), style=style)
                    for (kind, points), style in zip(kinds.items(), (OURS, "onnxruntime"), strict=False)
                ],
            )
            for model, kinds in found.items()
        ]
        return charts.lines("overload", panels, "requests sent, multiples of saturation", "answers/s in time")

    about = f"Answers/s with {promise(results)}, over the load as a multiple of what the server can answer."
    return [Chart("overload", "Beyond saturation", about, draw)]


def phase_blocks(results: Results) -> list[Block]:
    """CPU time of one request, by where it goes."""
    found = {name: f for name in PHASES if (f := results.figure(name)) is not None}
    if len(found) < len(PHASES):
        lacking = ", ".join(name for name in PHASES if name not in found)
        return [f"This run does not have {lacking}."]
    series: dict[str, list[float | None]] = {PHASES[name]: [f.value] for name, f in found.items()}
    about = "CPU microseconds of one request on the server, by where they are spent; one request at a time."
    chart = Chart(
        "phases", "Where a request's time goes", about,
        lambda: charts.bars("phases", ["a request"], series, "CPU us", stacked=True),
    )  # fmt: skip
    rows = [[PHASES[n], with_interval(f), f.note or "-"] for n, f in found.items()]
    return [chart, Table(["phase", "CPU time", ""], rows)]
