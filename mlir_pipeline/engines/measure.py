"""Compares the engines of a target on the machine that compiles, and chooses the fastest."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from jaxrank.certificate import load_examples
from jaxrank.manifest import EngineTime, Manifest, Target
from jaxrank.targets import runs_here
from mlir_pipeline.interleaved import interleaved
from serving.engines import Engine, load_engine
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks

CANDIDATES = (200, 1000)
"""Numbers of candidates of a page of results and of a full request; the recorded one is repeated to them."""
SLICE_ROWS = (64, 128, 256)
"""Candidates of a call that are tried for ONNX Runtime on a CPU: what is best is the caches' and the weights'
sizes, and differs by 20%."""
RUNS = 25
"""Runs of each engine and size after two that do not count. They take turns, so that what else the machine
does slows all alike."""


def choose_engines(
    bundle: Path,
    manifest: Manifest,
    names: Iterable[str],
    refused: Iterable[EngineTime],
    progress: Callable[[str], None],
) -> Manifest:
    """Times every engine of the targets `names` that runs here.

    Returns the manifest with `engine_times`, those that refused the model among them, and the engine with the
    least geometric mean over `CANDIDATES` as the target's choice; of ONNX Runtime with its best `slice_rows`.
    The bundle must be as the manifest says.
    """
    times = [t for t in manifest.engine_times if t.target not in names] + list(refused)
    chosen = dict(manifest.chosen_engines)
    for name in sorted(names):
        targets = [t for t in manifest.targets if t.name == name and runs_here(t)]
        if not targets:
            continue
        progress(f"timing the engines of {name}: {', '.join(t.engine for t in targets)}")
        tried = [form for target in targets for form in _forms(target, manifest)]
        engines: list[Engine] = []
        seconds: list[float] = []
        try:
            for form in tried:
                start = time.perf_counter()
                engines.append(load_engine(bundle, manifest, form))
                seconds.append(time.perf_counter() - start)
            medians = _medians(engines, _requests(bundle, manifest))
        finally:
            for running in engines:
                running.close()
        # The fastest form of each engine, the fastest engine first.
        best: dict[str, int] = {}
        for i in sorted(range(len(tried)), key=lambda i: math.prod(medians[i].values())):
            best.setdefault(tried[i].engine, i)
        for engine, i in best.items():
            found = {str(rows): round(ms, 3) for rows, ms in medians[i].items()}
            times.append(
                EngineTime(target=name, engine=engine, load_seconds=round(seconds[i], 3), milliseconds=found)
            )
        chosen[name] = next(iter(best))
        kept = {id(target): tried[best[target.engine]] for target in targets}
        manifest = replace(manifest, targets=tuple(kept.get(id(t), t) for t in manifest.targets))
    return replace(manifest, engine_times=tuple(times), chosen_engines=chosen)


def _forms(target: Target, manifest: Manifest) -> list[Target]:
    """What is timed of a target."""
    if target.engine != "onnxruntime" or not (target.on_cpu and manifest.row_wise):
        return [target]
    return [replace(target, slice_rows=rows) for rows in SLICE_ROWS]


def _requests(bundle: Path, manifest: Manifest) -> dict[int, FeatureBlocks]:
    """The largest recorded request with its candidates repeated, by number of candidates."""
    host = HostProgramRunner(bundle, manifest)
    largest = max(load_examples(bundle), key=lambda example: example.rows)
    blocks = host.run(largest.features)
    sizes = [n for n in CANDIDATES if n <= manifest.max_candidates] or [manifest.max_candidates]
    return {
        n: FeatureBlocks(
            request=blocks.request,
            candidate=np.ascontiguousarray(blocks.candidate[np.arange(n) % len(blocks.candidate)]),
            outputs={},
        )
        for n in sizes
    }


def _medians(engines: Sequence[Engine], requests: dict[int, FeatureBlocks]) -> list[dict[int, float]]:
    """Milliseconds of each engine by number of candidates."""
    calls = {
        (i, rows): functools.partial(engine.run, blocks)
        for rows, blocks in requests.items()
        for i, engine in enumerate(engines)
    }
    times = interleaved(calls, warm=2, fewest=RUNS, most=RUNS)
    return [{n: 1e3 * statistics.median(times[i, n]) for n in requests} for i in range(len(engines))]
