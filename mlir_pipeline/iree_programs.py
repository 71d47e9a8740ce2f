# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What a bundle holds for IREE on one target: the module for any number of candidates, with data tiling where
that is faster, and tiles."""

import functools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from iree.compiler import ir
from jax.extend import core
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.manifest import Manifest, Program, Target
from jaxrank.progress import Progress
from jaxrank.towers import CANDIDATE_TILES
from mlir_pipeline.batching import Batch
from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.iree import IreeTarget, compile_module
from mlir_pipeline.lower import lower_tiles
from mlir_pipeline.passes.program import Program as Module
from mlir_pipeline.passes.run import PORTABLE, run_passes
from mlir_pipeline.rewriting import trace
from mlir_pipeline.split import Towers
from mlir_pipeline.tune import (
    TILE_ROWS,
    DataTiling,
    Stopwatch,
    decide_data_tiling,
    first_error,
    tune_tiles,
    tuning_steps,
)

IREE_DIRECTORY = "iree"
"""Its files within a target's directory, as every engine has one."""


@dataclass(frozen=True)
class IreeOptions:
    """How the modules of a CPU are made."""

    data_tiling: bool | None = None
    """Whether matrices are packed into tiles; None measures both and keeps the faster."""
    tune: bool = False
    """Compile tiles of fixed numbers of rows too, and measure all programs that can run here."""
    batch_tile: int = 0
    """Rows of a tile of the program for many requests; 0 makes none."""


@dataclass(frozen=True)
class Tiles:
    """A module with the candidate tower for each of `rows`."""

    text: str
    rows: tuple[int, ...]
    notes: tuple[str, ...]


def lower_all_tiles(work: Path, manifest: Manifest, towers: Towers, weights: Container[str]) -> Tiles:
    """Traces and lowers the candidate tower for fixed numbers of rows. A tile must run after the request
    tower of `towers` and read `weights`, the archive of all targets; one that differs there is left out, and
    a note says so."""
    if not manifest.row_wise:
        return Tiles("", (), ("no tiles: the model sees all candidates of a request at once",))
    found, notes = {}, []
    for rows in TILE_ROWS:
        tile = trace(work, rows)
        if [(a.shape, a.dtype) for a in tile.state] != [(a.shape, a.dtype) for a in towers.state]:
            notes.append(f"no tile of {rows} rows: the rewrites leave it another state")
        elif any(name not in weights for name in _tiles_program({rows: tile.candidate}).weights):
            notes.append(f"no tile of {rows} rows: the rewrites leave it weights of its own")
        else:
            found[rows] = tile.candidate
    if not found:
        return Tiles("", (), tuple(notes))
    return Tiles(_tiles_program(found).text_with_modules(), tuple(found), tuple(notes))


def _tiles_program(tiles: Mapping[int, core.ClosedJaxpr]) -> Module:
    program = Module(lower_tiles(tiles, ir.Context()))
    run_passes(program, PORTABLE, IrDump(None))
    return program


def compile_target(
    text: str,
    tiles: Tiles,
    target: IreeTarget,
    work: Path,
    manifest: Manifest,
    host: Target | None,
    options: IreeOptions,
    progress: Progress,
) -> Target:
    """Compiles one target's modules. `host` is the target of this machine's CPU, whose decisions hold where
    nothing can be measured."""
    place = f"{target.directory}/{IREE_DIRECTORY}"
    output = work / place / "dense.vmfb"
    tiling, tunable = DataTiling(False, None, ""), False
    if target.on_cpu and options.data_tiling:
        tiling = DataTiling(True, None, "data tiling, as asked for")
    weights = work / files.WEIGHTS
    compiler = compile_module(text, target.with_data_tiling() if tiling.chosen else target, output, weights)
    if target.on_cpu:
        tunable = target.runs_here
        # One for a target: opening the host program's tables is cheap, and decisions are few.
        stopwatch = functools.cache(lambda: Stopwatch(work, manifest, target.driver))
        if options.data_tiling is None:
            tiling = decide_data_tiling(
                text,
                target,
                output,
                weights,
                flops=manifest.flops.candidate if manifest.flops else 0,
                stopwatch=stopwatch if tunable else None,
                otherwise=_decision_of(host),
            )
    compiled = Target(
        name=target.name,
        engine="iree",
        driver=target.driver,
        module=f"{place}/dense.vmfb",
        flags=(target.with_data_tiling() if tiling.chosen else target).flags,
        compiler=compiler,
        data_tiling=tiling.chosen,
        data_tiling_ms=tiling.ms,
        notes=(tiling.note,) if tiling.note else (),
        instruction_sets=target.instruction_sets,
        certificate=None,
    )
    if not options.tune:
        return compiled
    if not target.on_cpu:
        return replace(compiled, notes=(*compiled.notes, "not tuned: the device is not measured here"))
    if not tunable:
        return replace(compiled, notes=(*compiled.notes, "not tuned: this machine's CPU cannot run it"))
    progress(f"tuning {target.name}")
    with progress.steps("compiled and measured", tuning_steps(tiles.rows)) as steps:
        programs, costs, notes = tune_tiles(
            tiles.text, tiles.rows, target, output, weights, stopwatch(), steps
        )
    return replace(
        compiled,
        programs=tuple(replace(p, module=f"{place}/{p.module}") for p in programs),
        costs=tuple(costs),
        notes=(*compiled.notes, *tiles.notes, *notes),
    )


def with_batch(compiled: Target, batch: Batch, target: IreeTarget, work: Path) -> Target:
    """A compiled target with the program for many requests, made as its other module. Where IREE does not
    take it, a note says so and requests run one by one."""
    if batch.note:
        return replace(compiled, notes=(*compiled.notes, batch.note))
    if not batch.text:
        return compiled
    variant = target.with_data_tiling() if compiled.data_tiling else target
    module = f"{target.directory}/{IREE_DIRECTORY}/batch.vmfb"
    try:
        compile_module(batch.text, variant, work / module, work / files.WEIGHTS)
    except CompileError as error:
        note = f"no program for many requests: it does not compile ({first_error(error)})"
        return replace(compiled, notes=(*compiled.notes, note))
    program = Program(
        function=CANDIDATE_TILES,
        rows=batch.rows,
        module=module,
        data_tiling=compiled.data_tiling,
        flags=variant.flags,
    )
    return replace(compiled, batch=program)


def _decision_of(host: Target | None) -> DataTiling:
    if host is None or not host.module:
        return DataTiling(False, None, "no data tiling: it was not measured, this CPU cannot run the module")
    how = "data tiling" if host.data_tiling else "no data tiling"
    return DataTiling(host.data_tiling, None, f"{how}, as decided for this machine's CPU")
