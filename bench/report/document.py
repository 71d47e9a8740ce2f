"""The sections of a report, of whatever results there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec

from bench.__main__ import SUITES
from bench.every import MAIN
from bench.report import dense, others, prices, serving
from bench.report.blocks import Block, Listing, Section, Table, number, with_interval
from bench.report.prices import Prices
from bench.results import Results, ResultsError, same_machine

EXPECTED = (*MAIN, "host", "state", "tiers", "updates", "loading", "soak")
"""Suites whose absence is told."""
_DETAILS = ("roofline_fraction_uniform_", "roofline_fraction_zipf_", "ns_per_row_")
"""What begins the names of figures that are points of a chart."""


@dataclass(frozen=True)
class Document:
    """A report before it is written."""

    results: Mapping[str, Results]
    prices: Prices
    sections: list[Section]
    missing: list[str]
    """Suites that are not there."""


def document(results: Mapping[str, Results], table: Prices) -> Document:
    """Raises `ResultsError` where there is no figure at all."""
    if not any(held.figures for held in results.values()):
        reasons = [f"{m.name}: {m.why}" for held in results.values() for m in held.not_measured]
        told = f"; not measured: {'; '.join(reasons[:5])}" if reasons else ""
        raise ResultsError(f"the results of {', '.join(results)} have no figures to report{told}")
    missing = [suite for suite in EXPECTED if suite not in results]
    costs = partial(prices.cost_blocks, prices=table)
    sections = [
        Section("Who wins where", _contests(results)),
        Section("What was measured", _measured(results, missing)),
        Section("Headlines", [_headlines(results)]),
        Section("Cost against candidates", _of("dense", results, _dense)),
        *_gpu(results),
        Section("FLOP budget", _of("dense", results, dense.flop_blocks)),
        Section("Latency against load", _of("serve", results, serving.load_blocks)),
        Section("Throughput within the promise", _of("serve", results, serving.throughput_blocks)),
        Section("Beyond saturation", _of("serve", results, serving.overload_blocks)),
        Section("Where a request's time goes", _of("serve", results, serving.phase_blocks)),
        Section("Cost of a million requests", _of("serve", results, costs)),
        Section("Lookups", _of("sparse", results, lambda sparse: others.lookup_blocks(results))),
        Section("Copies, allocations and page faults", others.copy_blocks(results)),
        Section("Memory", others.memory_blocks(results)),
        Section("Accuracy", others.accuracy_blocks(results)),
        Section("Faults", others.fault_blocks(results)),
        Section("Not measured", _not_measured(results, missing)),
        Section("Every figure", [_every_figure(results)], detail=True),
    ]
    return Document(results, table, sections, missing)


def _of(suite: str, results: Mapping[str, Results], make: Callable[[Results], list[Block]]) -> list[Block]:
    if suite not in results:
        return [_absent(suite)]
    return make(results[suite])


def _gpu(results: Mapping[str, Results]) -> list[Section]:
    """Figures of the kit that was carried to a GPU (docs/gpu.md), where there are any."""
    if "gpu_dense" not in results:
        return []
    return [Section("On a GPU", dense.cost_blocks(results["gpu_dense"], "cost_gpu"))]


def _absent(suite: str) -> str:
    command = f"jaxrank bench {suite}" if suite in MAIN else f"python -m bench {suite}"
    return f"Not measured: there are no results of `{suite}` ({SUITES[suite]}). `{command}` measures them."


def _dense(results: Results) -> list[Block]:
    engines = dense.engine_table()
    return [dense.TASK, *([engines] if engines is not None else []), *dense.cost_blocks(results, "cost")]


def _contests(results: Mapping[str, Results]) -> list[Block]:
    wins, level, losses = others.contests(results)
    for suite, contests in (("dense", dense.contests), ("serve", serving.contests)):
        if suite in results:
            more = contests(results[suite])
            wins, level, losses = more[0] + wins, more[1] + level, more[2] + losses
    if not wins and not level and not losses:
        return ["Nothing in these results was measured beside anything else."]
    blocks: list[Block] = []
    for title, items in (("Where jaxrank wins", wins), ("Level", level), ("Where jaxrank loses", losses)):
        if items:
            blocks += [f"**{title}**", Listing(items)]
        elif title == "Where jaxrank loses":
            blocks.append("**Where jaxrank loses**: nowhere in these results.")
    return blocks


def _measured(results: Mapping[str, Results], missing: list[str]) -> list[Block]:
    rows = [
        [
            suite, f"`{r.command}`", r.commit, r.date[:10],
            f"{r.machine.get('cpu') or 'CPU unknown'}, {r.machine.get('cores') or '?'} cores",
            str(len(r.figures)), str(len(r.not_measured)),
        ]
        for suite, r in results.items()
    ]  # fmt: skip
    blocks: list[Block] = [
        Table(["suite", "command", "commit", "date", "machine", "figures", "not measured"], rows),
    ]
    versions = {f"{name} {version}": None for r in results.values() for name, version in r.versions.items()}
    if versions:
        blocks.append(f"Versions: {', '.join(versions)}.")
    if not all(same_machine(a, b) for a, b in combinations(results.values(), 2)):
        blocks.append("Suites were run on more than one machine: their figures cannot be compared.")
    if missing:
        blocks.append(f"Not in these results: {', '.join(missing)}.")
    return blocks


def _headlines(results: Mapping[str, Results]) -> Table:
    rows = [
        [suite, f.name, with_interval(f), f.note or "-"]
        for suite, held in results.items()
        if suite in MAIN or suite in ("first_light", "loading")
        for f in held.figures
        if "/" not in f.name and not f.name.startswith(_DETAILS)
    ]
    return Table(["suite", "figure", "value", ""], rows)


def _not_measured(results: Mapping[str, Results], missing: list[str]) -> list[Block]:
    told = [f"{suite}, {m.name}: {m.why}" for suite, held in results.items() for m in held.not_measured]
    told += [_absent(suite) for suite in missing]
    return [Listing(told)] if told else ["Every figure that these suites know was measured."]


def _every_figure(results: Mapping[str, Results]) -> Table:
    rows = [
        [
            suite, f.name, number(f.value), f.unit, "-" if f.lo is None else number(f.lo),
            "-" if f.hi is None else number(f.hi), str(f.runs), f.note or "-",
        ]
        for suite, held in results.items()
        for f in held.figures
    ]  # fmt: skip
    return Table(["suite", "figure", "value", "unit", "lo", "hi", "runs", "note"], rows)


def as_json(made: Document) -> bytes:
    """Everything: the results as they are, and what the report makes of them, charts left out."""
    sections: list[dict[str, Any]] = []
    for section in made.sections:
        if section.detail:
            continue
        texts = [b for b in section.blocks if isinstance(b, str)]
        texts += [item for b in section.blocks if isinstance(b, Listing) for item in b.items]
        tables = [
            [dict(zip(b.columns, row, strict=True)) for row in b.rows]
            for b in section.blocks
            if isinstance(b, Table)
        ]
        sections.append({"title": section.title, "texts": texts, "tables": tables})
    found = {
        "sections": sections,
        "missing_suites": made.missing,
        "prices": msgspec.structs.replace(made.prices, directory=""),
        "results": dict(made.results),
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def write(path: Path, content: str | bytes) -> None:
    """In one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f"{path.name}.tmp")
    work.write_bytes(content.encode() if isinstance(content, str) else content)
    work.rename(path)
