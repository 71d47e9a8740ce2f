"""What the other suites say: lookups, the host half, memory, accuracy."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from bench.report import charts
from bench.report.blocks import Block, Chart, Table, times, with_interval
from bench.report.dense import level_at
from bench.results import Figure, Results

Series = Mapping[str, Sequence[float | None]]
_COPIES = ("copies_per_byte", "*allocations_per_request", "*page_faults_per_1000_requests")
_MEMORY = ("peak_rss_*", "*/peak_rss_mib", "soak_memory_growth", "*_kept_bytes", "redis_bytes_per_row")
_ACCURACY = ("*error*", "auc_difference", "zoo_converted", "onnx_node_passed", "soak_wrong_scores")
_FAULTS = (
    "soak_*",
    "fuzzed_rpcs",
    "damaged_bundles*",
    "crashes",
    "load_p99_ratio",
    "*kills_survived",
    "dead_node_*",
)
_RIVALS = {
    "speedup_vs_numpy_take": "lookups by NumPy's take and reduceat",
    "speedup_vs_tf_lookup": "TensorFlow's embedding_lookup_sparse",
    "speedup_vs_tf_safe_lookup": "TensorFlow's safe_embedding_lookup_sparse",
    "speedup_vs_torch_embedding_bag": "torch's embedding_bag",
    "speedup_vs_numpy": "the host half on NumPy",
    "speedup_vs_tf": "the host half in TensorFlow",
}


def chosen(results: Mapping[str, Results], patterns: Sequence[str]) -> list[tuple[str, Figure]]:
    """(suite, figure) of those that fit a pattern; what `serve` took from another suite's file, once."""
    elsewhere = {f.name for suite, held in results.items() if suite != "serve" for f in held.figures}
    return [
        (suite, figure)
        for suite, held in results.items()
        for figure in held.figures
        if any(fnmatchcase(figure.name, p) for p in patterns)
        and not (suite == "serve" and figure.name in elsewhere)
    ]


def figure_blocks(results: Mapping[str, Results], patterns: Sequence[str], about: str) -> list[Block]:
    """A table of figures from every suite."""
    rows = [[s, f.name, with_interval(f), f.note or "-"] for s, f in chosen(results, patterns)]
    if not rows:
        return [f"{about} None of these was measured in these results."]
    return [about, Table(["suite", "figure", "value", ""], rows)]


def copy_blocks(results: Mapping[str, Results]) -> list[Block]:
    return figure_blocks(
        results, _COPIES,
        "Copies of a request's bytes between the wire and the programs; allocations and page faults of the "
        "host half under the allocators that docs/memory.md compares.",
    )  # fmt: skip


def memory_blocks(results: Mapping[str, Results]) -> list[Block]:
    return figure_blocks(results, _MEMORY, "Memory of the converter, the server and the stores.")


def accuracy_blocks(results: Mapping[str, Results]) -> list[Block]:
    return figure_blocks(
        results, _ACCURACY,
        "Largest differences from TensorFlow's scores, absolute up to 1 and relative beyond; what is beyond "
        "1e-05 is not timed but listed as not measured.",
    )  # fmt: skip


def fault_blocks(results: Mapping[str, Results]) -> list[Block]:
    return figure_blocks(
        results, _FAULTS, "Kills, hostile requests, dead nodes, versions that change under load."
    )


def contests(results: Mapping[str, Results]) -> tuple[list[str], list[str], list[str]]:
    """Sentences on lookups and the host half: faster, level, slower."""
    wins, level, losses = [], [], []
    for figure in _rivals(results):
        name = _RIVALS[figure.name]
        if level_at(figure.value, figure):
            level.append(f"Beside {name}.")
        elif figure.value > 1:
            wins.append(f"Beside {name}: {times(figure.value)} as fast.")
        else:
            losses.append(f"Beside {name}: it is {times(1 / figure.value)} as fast.")
    sparse = results.get("sparse")
    worst = sparse.figure("roofline_fraction_min") if sparse is not None else None
    if worst is not None and worst.value < 0.9:
        losses.append(f"Lookups reach {worst.value:.2f} of the plainest C++ loop where they reach least.")
    return wins, level, losses


def _rivals(results: Mapping[str, Results]) -> list[Figure]:
    found = {f.name: f for suite in ("sparse", "host") if suite in results for f in results[suite].figures}
    return [found[name] for name in _RIVALS if name in found]


def lookup_blocks(results: Mapping[str, Results]) -> list[Block]:
    """Embedding lookups; `sparse` is among the results."""
    sparse = results["sparse"]
    blocks: list[Block] = []
    rivals = _rivals(results)
    if rivals:
        names = [_RIVALS[f.name] for f in rivals]
        series: Series = {"time over jaxrank's": [f.value for f in rivals]}
        about = "How many times as long as jaxrank others take for the same lookups, or the same host half."
        draw = partial(
            charts.bars, "rivals", names, series, "times jaxrank's time", limit=(1.0, "jaxrank's time")
        )
        blocks.append(Chart("rivals", "Lookups and the host half beside other libraries", about, draw))
    fractions = {kind: _numbered(sparse, f"roofline_fraction_{kind}_", -1) for kind in ("uniform", "zipf")}
    if dims := sorted({d for by_dim in fractions.values() for d in by_dim}):
        names = [f"rows of {d}" for d in dims]
        series = {f"{kind} ids": [by_dim.get(d) for d in dims] for kind, by_dim in fractions.items()}
        about = "Speed of our lookups on one thread over that of the plainest C++ loop that fetches ahead."
        draw = partial(
            charts.bars, "roofline", names, series, "of the plain loop's speed", limit=(1.0, "the plain loop")
        )
        blocks.append(Chart("roofline", "Lookups beside the memory's roofline", about, draw))
    if growth := _numbered(sparse, "ns_per_row_", 3):
        panels = [charts.Panel("uniform ids", [charts.Line("jaxrank", list(growth), list(growth.values()))])]
        about = "Nanoseconds of one row of 32 bytes on one thread, as the table outgrows the caches."
        draw = partial(charts.lines, "growth", panels, "rows of the table", "ns a row", log_x=True)
        blocks.append(Chart("growth", "Lookups as tables grow", about, draw))
    return blocks or ["This run has no figures of lookups."]


def _numbered(results: Results, prefix: str, place: int) -> dict[int, float]:
    """Values by the number at a place of their figures' names, ascending."""
    found = {int(f.name.split("_")[place]): f.value for f in results.figures if f.name.startswith(prefix)}
    return dict(sorted(found.items()))
