"""Decisions by measurement: whether a CPU module packs matrices into tiles, and which tiles of a fixed number
of rows are worth having.

Everything runs as the server runs it, on one stream, on the bundle's largest recorded request with its
candidates repeated. A stream computes on the thread that calls it, so what is counted is that thread's CPU
time: a busy machine does not change a decision. What is compared runs in turns all the same, because a
neighbour takes its share of the cache.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.certificate import load_examples
from jaxrank.manifest import Cost, Manifest, Program
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.errors import CompileError
from mlir_pipeline.interleaved import interleaved
from mlir_pipeline.iree import IreeTarget, compile_module, move_module, remove_module
from mlir_pipeline.lower import tile_function
from serving.engines.streams import Stream, Weights
from serving.host import HostProgramRunner

TILE_ROWS = (8, 32, 128, 256)
DYNAMIC_ROWS = (1, 8, 32, 64, 128, 256, 512, 1000)
"""Numbers of rows at which the module for any number is timed; a plan interpolates between them."""

_DECISION_ROWS = 64
_FEW_FLOPS = 100_000
"""FLOPs per candidate below which data tiling is not tried: a slice of 64 takes a tenth of a millisecond."""
_GAIN = 0.97
"""A variant must take less than this share of the plain one's time: less is noise."""
_ROUNDS, _FEWEST_ROUNDS, _SECONDS = 11, 5, 2.0


@dataclass(frozen=True)
class Call:
    """One function of a compiled module at a number of candidate rows."""

    module: Path
    function: str
    rows: int


@dataclass(frozen=True)
class DataTiling:
    """Whether a module packs matrices into tiles, and how that was decided. `ms` is without and with, where
    both were measured."""

    chosen: bool
    ms: tuple[float, float] | None
    note: str


class Stopwatch:
    """Times candidate towers on the bundle's largest recorded request."""

    def __init__(self, bundle: Path, manifest: Manifest, driver: str):
        example = max(load_examples(bundle), key=lambda e: e.rows)
        self._blocks = HostProgramRunner(bundle, manifest).run(example.features)
        archive = bundle / files.WEIGHTS
        self._weights = Weights(archive if archive.is_file() else None)
        self._driver = driver
        self._has_state = bool(manifest.state)

    def medians(
        self, calls: Sequence[Call], towers: Path, done: Callable[[int], None] = lambda calls: None
    ) -> list[float]:
        """Milliseconds of CPU time of one call on one stream, the median of interleaved runs of each.

        Args:
            towers: the module whose request tower makes the state.
            done: called with 1 after each number of rows.
        """
        streams: dict[Path, Stream] = {}
        for module in dict.fromkeys(c.module for c in calls):
            streams[module] = Stream(self._driver, self._weights)
            streams[module].load(module, list(dict.fromkeys(c.function for c in calls if c.module == module)))
        state: list[np.ndarray] = []
        if self._has_state:
            request = Stream(self._driver, self._weights)
            request.load(towers, [REQUEST_TOWER])
            state = request.call(REQUEST_TOWER, [self._blocks.request])
        found: dict[Call, float] = {}
        for rows in dict.fromkeys(c.rows for c in calls):
            candidates = np.resize(self._blocks.candidate, (rows, self._blocks.candidate.shape[1]))
            runs = {
                c: partial(streams[c.module].call, c.function, [*state, candidates])
                for c in calls
                if c.rows == rows
            }
            found.update(_interleaved(runs))
            done(1)
        return [found[c] for c in calls]


def decide_data_tiling(
    text: str,
    target: IreeTarget,
    plain: Path,
    weights: Path,
    *,
    flops: int,
    stopwatch: Callable[[], Stopwatch] | None,
    otherwise: DataTiling,
) -> DataTiling:
    """Compiles the module once more with data tiling, and puts that in the place of `plain` if it is faster.

    Args:
        text: the module that `plain` was compiled from.
        weights: the archive of both.
        flops: of one candidate.
        stopwatch: None where the target does not run here; then `otherwise` decides.
    """
    if flops < _FEW_FLOPS:
        return DataTiling(False, None, f"no data tiling: {flops:,} FLOPs per candidate are too few to gain")
    if stopwatch is None and not otherwise.chosen:
        return otherwise
    tiled = plain.with_name("dense.tiled.vmfb")
    try:
        compile_module(text, target.with_data_tiling(), tiled, weights)
    except CompileError as error:
        return DataTiling(False, None, f"no data tiling: it does not compile ({first_error(error)})")
    if stopwatch is None:
        move_module(tiled, plain)
        return otherwise
    calls = [Call(module, CANDIDATE_TOWER, _DECISION_ROWS) for module in (plain, tiled)]
    without, with_tiling = stopwatch().medians(calls, plain)
    chosen = with_tiling < without * _GAIN
    if chosen:
        move_module(tiled, plain)
    else:
        remove_module(tiled)
    note = (
        f"{'data tiling' if chosen else 'no data tiling'}: {without:.2f} ms without and {with_tiling:.2f} ms "
        f"with, at {_DECISION_ROWS} candidates on one stream"
    )
    return DataTiling(chosen, (round(without, 4), round(with_tiling, 4)), note)


def tune_tiles(
    text: str,
    rows: Sequence[int],
    target: IreeTarget,
    towers: Path,
    weights: Path,
    stopwatch: Stopwatch,
    steps: Callable[[int], None],
) -> tuple[list[Program], list[Cost], list[str]]:
    """Compiles tiles with and without data tiling, times them and the module for any number of rows, and
    keeps the tiles that beat it at their own number of rows.

    Args:
        text: a module with the candidate tower for each of `rows`.
        towers: the compiled module for any number of rows.
        weights: the archive of all modules.
        steps: called with 1 for each of `tuning_steps`.

    Returns:
        The tiles that were kept (module files are names beside `towers`), the cost table, and notes.
    """
    compiled: dict[bool, Path] = {}
    notes: list[str] = []
    for tiling in (False, True) if rows else ():
        variant = target.with_data_tiling() if tiling else target
        output = towers.with_name(f"tiles{'.tiled' if tiling else ''}.vmfb")
        try:
            compile_module(text, variant, output, weights)
            compiled[tiling] = output
        except CompileError as error:
            how = "with" if tiling else "without"
            notes.append(f"no tiles {how} data tiling: they do not compile ({first_error(error)})")
        steps(1)
    calls = [Call(towers, CANDIDATE_TOWER, r) for r in DYNAMIC_ROWS]
    calls += [Call(module, tile_function(r), r) for module in compiled.values() for r in rows]
    ms = dict(zip(calls, stopwatch.medians(calls, towers, steps), strict=True))
    costs = [Cost(function=c.function, rows=c.rows, ms=round(ms[c], 4)) for c in calls[: len(DYNAMIC_ROWS)]]
    programs: list[Program] = []
    for r in rows:
        contenders = [(ms[Call(m, tile_function(r), r)], tiling, m) for tiling, m in compiled.items()]
        best, tiling, module = min(contenders, default=(float("inf"), False, towers))
        if best < ms[Call(towers, CANDIDATE_TOWER, r)] * _GAIN:
            flags = (target.with_data_tiling() if tiling else target).flags
            programs.append(
                Program(
                    function=tile_function(r), rows=r, module=module.name, data_tiling=tiling, flags=flags
                )
            )
            costs.append(Cost(function=tile_function(r), rows=r, ms=round(best, 4)))
    for module in compiled.values():
        if module.name not in {p.module for p in programs}:
            remove_module(module)
    kept = ", ".join(str(p.rows) for p in programs) or "none"
    tried = ", ".join(map(str, rows)) or "none"
    notes.append(f"tiles of {tried} rows were tried; kept: {kept}")
    return programs, costs, notes


def tuning_steps(rows: Sequence[int]) -> int:
    """How many steps `tune_tiles` tells about."""
    return (2 if rows else 0) + len({*DYNAMIC_ROWS, *rows})


def _interleaved(calls: Mapping[Call, Callable[[], object]]) -> dict[Call, float]:
    seconds = interleaved(
        calls,
        warm=1,
        fewest=_FEWEST_ROUNDS,
        most=_ROUNDS,
        seconds=_SECONDS,
        again=True,
        clock=time.thread_time,
    )
    return {c: statistics.median(s) * 1e3 for c, s in seconds.items()}


def first_error(error: CompileError) -> str:
    """The first diagnostic of a refused compilation, in one line."""
    lines = [line for line in str(error).splitlines() if "error:" in line]
    return lines[0].split("error:", 1)[1].strip()[:200] if lines else str(error)[:200]
