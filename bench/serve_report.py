"""What the suite `serve` says: figures and a table."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rich.table import Table

from bench.results import Figure, NotMeasured, read_figures
from bench.serve import DEGRADED, OURS, PLAIN, TENSORFLOW, Found, Measured, Overhead, Overload
from bench.serve_load import Sample
from bench.timing import over_processes

ELSEWHERE = {
    "soak": ("python -m bench soak BUNDLE", ("soak_minutes", "soak_wrong_scores")),
    "loading": ("python -m bench loading", ("load_p99_ratio",)),
    "faults": ("make faults", ("fuzzed_rpcs", "crashes")),
}
"""Figures of the server that other commands measure: by results file, the command and the names."""


def figures(found: Found) -> tuple[list[Figure], list[NotMeasured]]:
    """The suite's figures, then those of each model; a figure that this run does not have is listed."""
    made = [Figure(name="slo_ms", value=found.slo_ms, unit="ms", note="the promise, at the 99th percentile")]
    missing = list(dict.fromkeys(found.missing))
    if ratios := {m.name: r for m in found.models if len(r := _ratios(m))}:
        least = min(over_processes(r).value for r in ratios.values())
        fewest = min(map(len, ratios.values()))
        mean = over_processes(np.exp(np.mean([np.log(r[:fewest]) for r in ratios.values()], axis=0)))
        note = (
            f"requests/s with p99 within {found.slo_ms:g} ms, ours over TensorFlow's; geometric mean of "
            f"{len(ratios)} models, the least is {least:.2f}"
        )
        made.append(mean.figure("throughput_at_slo_vs_tf", "ratio", fewest, note))
    else:
        missing.append(NotMeasured(name="throughput_at_slo_vs_tf", why="no rate kept the promise on both"))
    if found.overhead is not None and found.overhead.rounds:
        made += _of_overhead(found.overhead)
    else:
        missing += [
            NotMeasured(name=name, why="that part did not run")
            for name in ("overhead_us_per_request", "copies_per_byte")
        ]
    if found.overload is not None and found.overload.rounds:
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
    runs = len(o.rounds)
    host = over_processes([s.host / s.requests for s in o.rounds])
    dense = over_processes([s.dense / s.requests for s in o.rounds])
    note = (
        f"CPU time outside of the host program and the invocations of IREE's dense program, {o.model}, "
        f"{o.request_bytes / 1024:.0f} KiB; these two take {host.value:.0f} and {dense.value:.0f} us"
    )
    overhead = over_processes([s.overhead_us for s in o.rounds])
    yield overhead.figure("overhead_us_per_request", "us", runs, note)
    yield host.figure("host_us_per_request", "us", runs, f"CPU time, {o.model}")
    yield dense.figure("dense_us_per_request", "us", runs, f"CPU time, {o.model}")
    copied = sum(s.copied for s in o.rounds) / sum(s.requests for s in o.rounds)
    note = (
        f"{copied:.0f} bytes that the copy budget counts (docs/monitoring.md), over {o.request_bytes} of "
        f"the request and {o.answer_bytes} of the answer, {o.model}"
    )
    per_byte = copied / (o.request_bytes + o.answer_bytes)
    yield Figure(name="copies_per_byte", value=per_byte, unit="copies", note=note)


def of_overload(overload: Overload, slo_ms: float) -> Iterable[Figure]:
    """What is answered in time at each multiple of saturation."""
    rounds = overload.rounds
    peaks = [max(sample.goodput(slo_ms) for sample in r[PLAIN].values()) for r in rounds]
    for kind, short in ((PLAIN, "plain"), (DEGRADED, "degraded")):
        name = "goodput_at_2x" if kind == PLAIN else "goodput_at_2x_degraded"
        for multiple in rounds[0].get(kind, ()):
            samples = [r[kind][multiple] for r in rounds]
            goodputs = [sample.goodput(slo_ms) for sample in samples]
            if multiple == 2.0 and all(peaks):
                note = f"{overload.model}: answers within {slo_ms:g} ms at twice saturation, {kind}, over "
                note += f"the peak without, {over_processes(peaks).value:.0f} requests/s; the engine "
                note += overload.engine
                ratio = over_processes([g / peak for g, peak in zip(goodputs, peaks, strict=True)])
                yield ratio.figure(name, "ratio", len(rounds), note)
            found = over_processes(goodputs)
            name_of_load = f"{overload.model}/goodput/{short}/{multiple:g}"
            yield found.figure(name_of_load, "1/s", len(rounds), _statuses(samples))


def of_model(m: Measured) -> Iterable[Figure]:
    """A model's throughput, and the latencies at each rate."""
    yield Figure(name=f"{m.name}/max_abs_error", value=m.error, unit="score")
    for name, rate in m.closed.items():
        yield Figure(name=f"{m.name}/closed_loop/{name}", value=rate, unit="1/s")
    for name, searches in m.searches.items():
        tried = [search for search in searches if search.points]
        if not tried:
            continue
        note = {OURS: f"the engine {m.engine}", TENSORFLOW: str(m.setting)}.get(name, "")
        found = over_processes([search.throughput for search in tried])
        if not found.value:
            least = min((p for search in tried for p in search.points), key=lambda p: p.rate)
            median_ms = least.sample.percentile(0.5)
            kept = sum(search.throughput > 0 for search in tried)
            note = (
                f"{kept} of {len(tried)} rounds had a rate that kept the promise; at {least.rate:.1f}/s the "
                f"median was {median_ms:.0f} ms, {note}"
            )
        yield found.figure(f"{m.name}/throughput/{name}", "1/s", len(tried), note)
        if name == TENSORFLOW and len(ratios := _ratios(m)):
            note = "ours over TensorFlow's, of each round in which both kept the promise"
            ratio = over_processes(ratios)
            yield ratio.figure(f"{m.name}/throughput_vs_{TENSORFLOW}", "ratio", len(ratios), note)
        # A curve of one round: rounds differ in their rates.
        for point in sorted(tried[0].points, key=lambda p: p.rate):
            p99 = point.sample.percentile(0.99)
            if math.isfinite(p99):
                note = _statuses([point.sample])
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


def _statuses(samples: Sequence[Sample]) -> str:
    counts = sum((Counter(sample.statuses) for sample in samples), Counter())
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _ratios(m: Measured) -> np.ndarray:
    """Ours over TensorFlow's throughput, of each round in which both kept the promise."""
    if OURS not in m.searches or TENSORFLOW not in m.searches:
        return np.zeros(0)
    pairs = zip(m.searches[OURS], m.searches[TENSORFLOW], strict=False)
    rates = [(ours.throughput, theirs.throughput) for ours, theirs in pairs]
    return np.array([ours / theirs for ours, theirs in rates if ours and theirs])


def table(found: Found) -> Table:
    """Throughput of each model on both servers."""
    made = Table(title=f"requests/s with p99 within {found.slo_ms:g} ms")
    for column in ("model", OURS, TENSORFLOW, "ratio", "TensorFlow's threads"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for m in found.models:
        rates = [
            f"{over_processes([s.throughput for s in m.searches[n]]).value:.0f}" if n in m.searches else "-"
            for n in (OURS, TENSORFLOW)
        ]
        ratios = _ratios(m)
        ratio = f"{over_processes(ratios).value:.2f}" if len(ratios) else "-"
        made.add_row(m.name, *rates, ratio, str(m.setting))
    return made
