"""Compares the engines of a target on the machine that compiles, and chooses the fastest."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from jaxrank.certificate import load_examples
from jaxrank.manifest import EngineTime, Manifest
from jaxrank.targets import runs_here
from mlir_pipeline.interleaved import interleaved
from serving.engines import Engine, load_engine
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks

CANDIDATES = (200, 1000)
"""Numbers of candidates of a page of results and of a full request; the recorded one is repeated to them."""
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
    least geometric mean over `CANDIDATES` as the target's choice. The bundle must be as the manifest says.
    """
    times = [t for t in manifest.engine_times if t.target not in names] + list(refused)
    chosen = dict(manifest.chosen_engines)
    for name in sorted(names):
        targets = [t for t in manifest.targets if t.name == name and runs_here(t)]
        if not targets:
            continue
        progress(f"timing the engines of {name}: {', '.join(t.engine for t in targets)}")
        loaded: dict[str, tuple[Engine, float]] = {}
        try:
            for target in targets:
                start = time.perf_counter()
                loaded[target.engine] = load_engine(bundle, manifest, target), time.perf_counter() - start
            engines = {engine: running for engine, (running, _) in loaded.items()}
            medians = _medians(engines, _requests(bundle, manifest))
        finally:
            for running, _ in loaded.values():
                running.close()
        for engine, (_, seconds) in loaded.items():
            found = {str(rows): round(ms, 3) for rows, ms in medians[engine].items()}
            times.append(
                EngineTime(target=name, engine=engine, load_seconds=round(seconds, 3), milliseconds=found)
            )
        chosen[name] = min(medians, key=lambda engine: math.prod(medians[engine].values()))
    return replace(manifest, engine_times=tuple(times), chosen_engines=chosen)


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


def _medians(engines: dict[str, Engine], requests: dict[int, FeatureBlocks]) -> dict[str, dict[int, float]]:
    """Milliseconds by engine and number of candidates."""
    calls = {
        (name, rows): functools.partial(engine.run, blocks)
        for rows, blocks in requests.items()
        for name, engine in engines.items()
    }
    times = interleaved(calls, warm=2, fewest=RUNS, most=RUNS)
    return {e: {n: 1e3 * statistics.median(times[e, n]) for n in requests} for e in engines}
