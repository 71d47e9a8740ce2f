"""What the suite `serve` says: figures and a table."""

import math
from collections.abc import Iterable
from statistics import median

from rich.table import Table

from bench.results import Figure, NotMeasured, read_figures
from bench.serve import DEGRADED, OURS, PLAIN, TENSORFLOW, Found, Measured, Overhead, Overload
from bench.serve_search import Point

ELSEWHERE = {
    "soak": ("python -m bench soak BUNDLE", ("soak_minutes", "soak_wrong_scores")),
    "loading": ("python -m bench loading", ("load_p99_ratio",)),
    "faults": ("make faults", ("fuzzed_rpcs", "crashes")),
}
"""Figures of the server that other commands measure: by results file, the command and the names."""


def figures(found: Found) -> tuple[list[Figure], list[NotMeasured]]:
    """The suite's figures, then those of each model; a figure that this run does not have is listed."""
    made = [Figure(name="slo_ms", value=found.slo_ms, unit="ms", note="the promise, at the 99th percentile")]
    missing = list(found.missing)
    if ratios := [r for m in found.models if (r := _ratio(m)) is not None]:
        note = (
            f"requests/s with p99 within {found.slo_ms:g} ms, ours over TensorFlow's; geometric mean of "
            f"{len(ratios)} models, the least is {min(ratios):.2f}"
        )
        made.append(Figure(name="throughput_at_slo_vs_tf", value=_mean(ratios), unit="ratio", note=note))
    else:
        missing.append(NotMeasured(name="throughput_at_slo_vs_tf", why="no rate kept the promise on both"))
    if found.overhead is not None:
        made += _of_overhead(found.overhead)
    else:
        missing += [
            NotMeasured(name=name, why="that part did not run")
            for name in ("overhead_us_per_request", "copies_per_byte")
        ]
    if found.overload is not None and found.overload.points:
        made += of_overload(found.overload, found.slo_ms)
    else:
        missing.append(NotMeasured(name="goodput_at_2x", why="that part did not run"))
    for suite, (command, names) in ELSEWHERE.items():
        known = read_figures(found.results / f"{suite}.json")
        made += [known[name] for name in names if name in known]
        why = f"{suite}.json does not have it; {command} writes it"
        missing += [NotMeasured(name=name, why=why) for name in names if name not in known]
    return [*made, *(f for m in found.models for f in (*of_model(m), *_replayed(m, found.slo_ms)))], missing


def _of_overhead(o: Overhead) -> Iterable[Figure]:
    note = (
        f"CPU time outside of the host program and the invocations of IREE's dense program, {o.model}, "
        f"{o.request_bytes / 1024:.0f} KiB; these two take {o.host_us:.0f} and {o.dense_us:.0f} us"
    )
    yield Figure(
        name="overhead_us_per_request", value=median(o.rounds), unit="us", lo=min(o.rounds),
        hi=max(o.rounds), runs=len(o.rounds), note=note,
    )  # fmt: skip
    yield Figure(name="host_us_per_request", value=o.host_us, unit="us", note=f"CPU time, {o.model}")
    yield Figure(name="dense_us_per_request", value=o.dense_us, unit="us", note=f"CPU time, {o.model}")
    note = (
        f"{o.copied:.0f} bytes that the copy budget counts (docs/monitoring.md), over {o.request_bytes} of "
        f"the request and {o.answer_bytes} of the answer, {o.model}"
    )
    per_byte = o.copied / (o.request_bytes + o.answer_bytes)
    yield Figure(name="copies_per_byte", value=per_byte, unit="copies", note=note)


def of_overload(overload: Overload, slo_ms: float) -> Iterable[Figure]:
    """What is answered in time at each multiple of saturation."""
    plain = overload.points[PLAIN]
    peak = max(p.sample.goodput(slo_ms) for p in plain)
    for kind, short in ((PLAIN, "plain"), (DEGRADED, "degraded")):
        name = "goodput_at_2x" if kind == PLAIN else "goodput_at_2x_degraded"
        for point in overload.points.get(kind, ()):
            multiple = point.rate / overload.saturation
            goodput = point.sample.goodput(slo_ms)
            if math.isclose(multiple, 2.0):
                note = f"{overload.model}: answers within {slo_ms:g} ms at twice saturation, {kind}, over "
                note += f"the peak without, {peak:.0f} requests/s; the engine {overload.engine}"
                yield Figure(name=name, value=goodput / peak, unit="ratio", note=note)
            yield Figure(
                name=f"{overload.model}/goodput/{short}/{multiple:g}", value=goodput, unit="1/s",
                note=_statuses(point),
            )  # fmt: skip


def of_model(m: Measured) -> Iterable[Figure]:
    """A model's throughput, and the latencies at each rate."""
    yield Figure(name=f"{m.name}/max_abs_error", value=m.error, unit="score")
    for name, rate in m.closed.items():
        yield Figure(name=f"{m.name}/closed_loop/{name}", value=rate, unit="1/s")
    for name, search in m.searches.items():
        if not search.points:
            continue
        note = {OURS: f"the engine {m.engine}", TENSORFLOW: str(m.setting)}.get(name, "")
        if not search.throughput:
            least = min(search.points, key=lambda p: p.rate)
            median_ms = least.sample.percentile(0.5)
            note = (
                f"no rate kept the promise; at {least.rate:.1f}/s the median was {median_ms:.0f} ms, {note}"
            )
        yield Figure(
            name=f"{m.name}/throughput/{name}", value=search.throughput, unit="1/s", lo=search.low,
            hi=search.high, runs=len(search.points), note=note,
        )  # fmt: skip
        for point in sorted(search.points, key=lambda p: p.rate):
            p99 = point.sample.percentile(0.99)
            if math.isfinite(p99):
                note = _statuses(point)
                yield Figure(
                    name=f"{m.name}/p99/{name}/{point.rate:.1f}", value=p99, unit="ms",
                    lo=point.sample.percentile(0.5), note=f"lo is the median; {note}",
                )  # fmt: skip


def _replayed(m: Measured, slo_ms: float) -> Iterable[Figure]:
    for name, sample in m.replayed.items():
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(sample.statuses.items()))
        note = f"{sample.sent} recorded requests with their own timing: {statuses}"
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            if math.isfinite(value := sample.percentile(share)):
                yield Figure(name=f"{m.name}/replay_{label}/{name}", value=value, unit="ms", note=note)
        in_time = sample.goodput(slo_ms) * sample.seconds / sample.sent
        note = f"within {slo_ms:g} ms; {note}"
        yield Figure(name=f"{m.name}/replay_goodput/{name}", value=in_time, unit="ratio", note=note)


def _statuses(point: Point) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(point.sample.statuses.items()))


def _ratio(m: Measured) -> float | None:
    rates = [m.searches[name].throughput for name in (OURS, TENSORFLOW) if name in m.searches]
    return rates[0] / rates[1] if len(rates) == 2 and all(rates) else None


def _mean(ratios: Iterable[float]) -> float:
    logs = [math.log(r) for r in ratios]
    return math.exp(sum(logs) / len(logs))


def table(found: Found) -> Table:
    """Throughput of each model on both servers."""
    made = Table(title=f"requests/s with p99 within {found.slo_ms:g} ms")
    for column in ("model", OURS, TENSORFLOW, "ratio", "TensorFlow's threads"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for m in found.models:
        rates = [f"{m.searches[n].throughput:.0f}" if n in m.searches else "-" for n in (OURS, TENSORFLOW)]
        ratio = _ratio(m)
        made.add_row(m.name, *rates, "-" if ratio is None else f"{ratio:.2f}", str(m.setting))
    return made
