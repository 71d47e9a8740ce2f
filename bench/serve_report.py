"""What the suite `serve` says: figures and a table."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.table import Table

from bench.results import Figure, NotMeasured, read_figures
from bench.serve_found import DEGRADED, OURS, PLAIN, TENSORFLOW, Found, Measured, Overhead, Overload
from bench.serve_load import Sample
from bench.serve_search import Search
from bench.timing import over_processes

ELSEWHERE = {
    "soak": ("python -m bench soak BUNDLE", ("soak_minutes", "soak_wrong_scores")),
    "loading": ("python -m bench loading", ("load_p99_ratio",)),
    "faults": ("make faults", ("fuzzed_rpcs", "damaged_bundles", "crashes")),
}
"""Figures of the server that other commands measure: by results file, the command and the names."""
_ENOUGH = 100
"""Requests of a load of which the 99th percentile leaves one out."""
BEHIND = 0.02
"""Of the promise: a client that sends later than that is told, as it is charged to the server."""


def figures(found: Found) -> tuple[list[Figure], list[NotMeasured]]:
    """The suite's figures, then those of each model; a figure that this run does not have is listed."""
    made = [Figure(name="slo_ms", value=found.slo_ms, unit="ms", note="the promise, at the 99th percentile")]
    missing = list(dict.fromkeys(found.missing))
    for m in found.models:
        missing += _unkept(m)
    missing += _not_compared(found, missing)
    compared = _compared(found)
    if isinstance(compared, Figure):
        made.append(compared)
    else:
        missing.append(compared)
    if found.overhead is not None and found.overhead.rounds:
        made += _of_overhead(found.overhead)
    else:
        missing += [
            NotMeasured(name=name, why=_why(found, "overhead"))
            for name in ("overhead_us_per_request", "copies_per_byte")
        ]
    if found.overload is not None and found.overload.rounds:
        made += of_overload(found.overload, found.slo_ms)
    else:
        missing.append(NotMeasured(name="goodput_at_2x", why=_why(found, "overload")))
    for suite, (command, names) in ELSEWHERE.items():
        known = read_figures(found.results / f"{suite}.json")
        made += [known[name] for name in names if name in known]
        why = f"{suite}.json does not have it; {command} writes it"
        missing += [NotMeasured(name=name, why=why) for name in names if name not in known]
    return [*made, *(f for m in found.models for f in (*of_model(m), *_replayed(m, found.slo_ms)))], missing


def _why(found: Found, part: str) -> str:
    """Why there is nothing of a part."""
    return next((m.why for m in found.missing if m.name == part), "that part did not run")


def _compared(found: Found) -> Figure | NotMeasured:
    """Ours over TensorFlow's over all models."""
    name = "throughput_at_slo_vs_tf"
    ratios = {m.name: r for m in found.models if (r := _ratios(m))}
    if not ratios:
        return NotMeasured(name=name, why="TensorFlow kept the promise at no rate, or no rate was tried")
    each = {model: over_processes(list(r.values())).value for model, r in ratios.items()}
    shared = sorted(set.intersection(*(set(r) for r in ratios.values())))
    rounds = [_mean([r[round] for r in ratios.values()]) for round in shared] or [_mean(list(each.values()))]
    note = (
        f"requests/s with p99 within {found.slo_ms:g} ms, ours over TensorFlow's; geometric mean of "
        f"{len(ratios)} models, the least is {min(each.values()):.2f}"
    )
    if nothing := [model for model, ratio in each.items() if not ratio]:
        note += f"; 0 as ours did not keep the promise in every round of {', '.join(nothing)}"
    if lacking := [m for m in found.asked if m not in ratios]:
        note += f"; without {', '.join(lacking)}, for the reasons among what was not measured"
    return over_processes(rounds).figure(name, "ratio", len(rounds), note)


def _mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 where a value is."""
    return float(np.exp(np.mean(np.log(values)))) if all(values) else 0.0


def _unkept(m: Measured) -> Iterable[NotMeasured]:
    """Promises that a server did not keep, each with what became of them."""
    for server, searches in m.searches.items():
        kept = sum(search.throughput > 0 for search in searches.values())
        if kept < len(searches):
            why = f"{kept} of {len(searches)} rounds had a rate that kept the promise; {_least(searches)}"
            yield NotMeasured(name=f"{m.name}/throughput/{server}", why=why)


def _not_compared(found: Found, missing: Sequence[NotMeasured]) -> Iterable[NotMeasured]:
    """Models without a ratio, each with what is missing for it."""
    compared = {m.name for m in found.models if _ratios(m)}
    for model in (name for name in found.asked if name not in compared):
        needs = (model, f"{model}/throughput/{OURS}", f"{model}/throughput/{TENSORFLOW}")
        reasons = [f"{one.name}: {one.why}" for one in missing if one.name in needs]
        why = "; ".join(reasons) or "no round was finished"
        yield NotMeasured(name=f"{model}/throughput_vs_{TENSORFLOW}", why=why)


def _least(searches: Mapping[int, Search]) -> str:
    """What was answered at the least rate that was tried."""
    tried = [(p, s.slo_ms) for s in searches.values() for p in s.points]
    point, slo_ms = min(tried, key=lambda t: t[0].rate)
    told = f"at {point.rate:.1f}/s {point.sample.in_time(slo_ms):.0%} of {point.sample.sent} requests were "
    return f"{told}answered within {slo_ms:g} ms ({_statuses([point.sample])})"


def _of_overhead(o: Overhead) -> Iterable[Figure]:
    runs = len(o.rounds)
    host = over_processes([s.host / s.requests for s in o.rounds])
    dense = over_processes([s.dense / s.requests for s in o.rounds])
    note = (
        f"CPU time outside of the host program and the invocations of IREE's dense program, {o.model}, "
        f"{_size(o.candidates)}{o.request_bytes / 1024:.0f} KiB; these two take {host.value:.0f} and "
        f"{dense.value:.0f} us"
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
                note = f"{overload.model}, {_size(overload.candidates)}answers within {slo_ms:g} ms at twice "
                note += f"saturation, {kind}, over the peak without, "
                note += f"{over_processes(peaks).value:.0f} requests/s; the engine {overload.engine}"
                ratio = over_processes([g / peak for g, peak in zip(goodputs, peaks, strict=True)])
                yield ratio.figure(name, "ratio", len(rounds), note)
            found = over_processes(goodputs)
            name_of_load = f"{overload.model}/goodput/{short}/{multiple:g}"
            yield found.figure(name_of_load, "1/s", len(rounds), _statuses(samples))


def of_model(m: Measured) -> Iterable[Figure]:
    """A model's throughput, and the latencies at each rate."""
    yield Figure(name=f"{m.name}/max_abs_error", value=m.error, unit="score")
    for name, rates in m.closed.items():
        yield over_processes(rates).figure(f"{m.name}/closed_loop/{name}", "1/s", len(rates))
    for name, searches in m.searches.items():
        tried = [search for search in searches.values() if search.points]
        if not tried:
            continue
        how = {OURS: f"the engine {m.engine}", TENSORFLOW: str(m.setting)}.get(name, "")
        notes = [f"{_size(m.candidates)}{how}"]
        found = over_processes([search.throughput for search in tried])
        if not found.value:
            kept = sum(search.throughput > 0 for search in tried)
            told = f"{kept} of {len(tried)} rounds had a rate that kept the promise"
            notes = [told, _least(searches), *notes]
        if more := sum(search.unbounded for search in tried):
            notes.append(f"in {more} of {len(tried)} rounds the highest rate tried was kept: it may be more")
        best = [search.best.sample for search in tried if search.best is not None]
        if best and (fewest := min(sample.sent for sample in best)) < _ENOUGH:
            notes.append(f"loads of as few as {fewest} requests, of which p99 is the slowest")
        behind = [sample.behind_ms for sample in best]
        limit = BEHIND * tried[0].slo_ms
        if behind and max(behind) > limit:
            late = f"the client itself sent up to {max(behind):.1f} ms late (p99), over {limit:g} ms, "
            notes.append(f"{late}which counts as latency")
        yield found.figure(f"{m.name}/throughput/{name}", "1/s", len(tried), "; ".join(filter(None, notes)))
        if behind:
            note = "99th percentile of the client's own delay, at the largest rate that kept the promise; "
            note += "the largest of the rounds"
            name_of_delay = f"{m.name}/client_behind_ms/{name}"
            yield Figure(name=name_of_delay, value=max(behind), unit="ms", runs=len(behind), note=note)
        if name == TENSORFLOW and (ratios := _ratios(m)):
            yield _ratio_figure(m, list(ratios.values()))
        # A curve of one round: rounds differ in their rates.
        for point in sorted(tried[0].points, key=lambda p: p.rate):
            p99 = point.sample.percentile(0.99)
            if math.isfinite(p99):
                note = _statuses([point.sample])
                yield Figure(
                    name=f"{m.name}/p99/{name}/{point.rate:.1f}", value=p99, unit="ms",
                    lo=point.sample.percentile(0.5), note=f"lo is the median; {note}",
                )  # fmt: skip

    for name, rounds in m.memory.items():
        anonymous, files = (max(column) for column in zip(*rounds.values(), strict=True))
        note = f"resident after loads, the most: {anonymous:.0f} MiB anonymous, {files:.0f} MiB of files"
        memory = over_processes([seen.total for seen in rounds.values()])
        yield memory.figure(f"{m.name}/memory_mib/{name}", "MiB", len(rounds), note)


def _ratio_figure(m: Measured, ratios: Sequence[float]) -> Figure:
    note = "ours over TensorFlow's, of each round in which TensorFlow kept the promise"
    if nothing := sum(not ratio for ratio in ratios):
        note += f"; ours kept it in {len(ratios) - nothing} of {len(ratios)} of them"
    name = f"{m.name}/throughput_vs_{TENSORFLOW}"
    return over_processes(ratios).figure(name, "ratio", len(ratios), note)


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


def _size(candidates: int) -> str:
    return f"{candidates} candidates, " if candidates else ""


def _ratios(m: Measured) -> dict[int, float]:
    """Ours over TensorFlow's throughput by round, of each round that both have and in which TensorFlow kept
    the promise; 0 where ours did not."""
    ours, theirs = m.searches.get(OURS, {}), m.searches.get(TENSORFLOW, {})
    return {
        round: ours[round].throughput / theirs[round].throughput
        for round in ours
        if round in theirs and theirs[round].throughput
    }


def table(found: Found) -> Table:
    """Throughput of each model on both servers."""
    made = Table(title=f"requests/s with p99 within {found.slo_ms:g} ms")
    for column in ("model", OURS, TENSORFLOW, "ratio", "TensorFlow's threads"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for m in found.models:
        rates = [
            f"{over_processes([s.throughput for s in m.searches[n].values()]).value:.0f}"
            if m.searches.get(n)
            else "-"
            for n in (OURS, TENSORFLOW)
        ]
        ratios = list(_ratios(m).values())
        ratio = f"{over_processes(ratios).value:.2f}" if ratios else "-"
        made.add_row(m.name, *rates, ratio, str(m.setting))
    return made
