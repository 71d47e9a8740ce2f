# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Compiles a bundle's Flax module for its targets and engines and puts the programs into the bundle.

The road: `rewriting.trace` (jaxpr, rewrites, precision, split) -> `lower` (StableHLO) -> `passes` -> the
weight archive -> `iree_programs` or `engines` for each target -> `check` against TensorFlow's outputs.
"""

import dataclasses
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from iree.compiler import ir
from iree.runtime import save_archive_file
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.certificate import CertificateError
from jaxrank.errors import BundleError
from jaxrank.flax_module import dense_outputs
from jaxrank.manifest import EngineTime, Flops, Manifest, StateTensor, Target
from jaxrank.progress import Progress, Silent
from jaxrank.targets import HOST_CPU, missing_instruction_sets, on_cpu, runs_here
from mlir_pipeline.batching import Batch, lower_batch
from mlir_pipeline.check import check
from mlir_pipeline.dump import IrDump
from mlir_pipeline.engines import IREE, build, names_of
from mlir_pipeline.engines.measure import choose_engines
from mlir_pipeline.errors import CompileError
from mlir_pipeline.explain.rewriting import source_cost
from mlir_pipeline.flops import dot_flops, unknown_loops
from mlir_pipeline.iree import IreeTarget, parse_target
from mlir_pipeline.iree_programs import IreeOptions, Tiles, compile_target, lower_all_tiles, with_batch
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import FOR_IREE, PORTABLE, run_passes
from mlir_pipeline.precision.choice import Precision, choose
from mlir_pipeline.precision.search import Search
from mlir_pipeline.precision.timing import time_programs, without_noise
from mlir_pipeline.rewriting import MERGES, flat_module, rewritten, trace
from mlir_pipeline.slices import slice_rows
from mlir_pipeline.split import Towers, split

# Rows that fill the widest vector registers of x86-64-v2 to v4.
_TILE_UNIT = 8


@dataclass(frozen=True)
class _Job:
    """What one call of `compile_bundle` was asked for."""

    targets: Sequence[IreeTarget]
    engines: Sequence[str]
    compare: bool
    iree: IreeOptions
    progress: Progress
    dump: IrDump
    digests: files.Digests = field(default_factory=files.Digests)
    refused: list[EngineTime] = field(default_factory=list)
    """With `compare`, the engines that do not take the model, and why."""

    @property
    def names(self) -> set[str]:
        return {t.name for t in self.targets}


def compile_bundle(
    bundle: Path,
    targets: Sequence[str],
    *,
    engines: Sequence[str] = (IREE,),
    compare: bool = False,
    max_candidates: int | None = None,
    precision: Precision | None = None,
    data_tiling: bool | None = None,
    tune: bool = False,
    batch_tile: int = 0,
    progress: Progress | None = None,
    dump_ir: Path | None = None,
) -> Manifest:
    """Compiles for every target, checks what can run here against TensorFlow's recorded outputs, and rewrites
    the bundle.

    The bundle is replaced as a whole at the end; on any error it stays as it was. A bundle has one precision
    and one weight archive for all targets: where these change, targets that IREE was compiled for before are
    compiled again, and those of other engines are dropped.

    Args:
        engines: what each target is compiled for; the first one runs it unless `compare` finds a faster.
        compare: an engine that does not take the model is left out, with its reason in the manifest; those
            that run here are timed, and the fastest is chosen. Targets that do not run here get IREE alone.
        precision: the formats of the matrix products; None leaves them as the bundle has them.
        data_tiling: whether CPU modules pack matrices into tiles; None measures both and keeps the faster.
        tune: compile tiles of fixed numbers of rows too, and measure all programs that can run here.
        batch_tile: rows of a tile of IREE's program for many requests, a multiple of 8 (8 to 64 are
            useful); 0 makes none.
            Without one, or with a note why there is none, requests of a batch run one by one.
        dump_ir: a new directory for every stage of the dense program up to what IREE is given; after an
            error, up to the stage that failed.

    Raises:
        CompileError: an unknown target, an option that no engine asked for reads, a module that cannot be
            lowered, a precision that does not fit, or an engine that does not take the model.
        CertificateError: a compiled module's scores differ from TensorFlow's by more than is allowed.
    """
    # This machine's CPU comes first: the levels take its decisions where they cannot be measured here.
    wanted = sorted((parse_target(name) for name in dict.fromkeys(targets)), key=lambda t: t.name != HOST_CPU)
    if not wanted:
        raise CompileError("no target given; name at least one, such as cpu")
    _check_options(engines, data_tiling=data_tiling, tune=tune, batch_tile=batch_tile)
    options = IreeOptions(data_tiling=data_tiling, tune=tune, batch_tile=batch_tile)
    job = _Job(wanted, engines, compare, options, progress or Silent(), IrDump(dump_ir, bundle))
    manifest = files.verify(bundle, job.digests)
    unchanged = files.constant_files(manifest)
    with files.staging(bundle, start_from=bundle, unchanged=unchanged) as work:
        manifest = replace(manifest, max_candidates=max_candidates or manifest.max_candidates)
        if not dense_outputs(manifest, files.read_host_program(work)):
            job.progress("the host program makes every output: there is nothing to compile")
            manifest = replace(manifest, targets=tuple(_without_module(t) for t in wanted))
            return files.write_manifest(work, _checked(work, manifest, job), job.digests)
        manifest = _with_precision(work, manifest, precision, job)
        manifest = _compile_dense(work, manifest, job)
        if (work / files.PRECISION_JSON).exists() and precision is not None:
            manifest = _confirmed(work, manifest, job)
        manifest = _chosen(work, _checked(work, manifest, job), job)
        return files.write_manifest(work, manifest, job.digests)


def _check_options(engines: Sequence[str], *, data_tiling: bool | None, tune: bool, batch_tile: int) -> None:
    """Raises `CompileError` for options of IREE's programs where none is made."""
    given = {"--tune": tune, "--batch-tile": batch_tile > 0, "--data-tiling": data_tiling is not None}
    unread = [option for option, is_given in given.items() if is_given]
    if unread and IREE not in engines:
        raise CompileError(
            f"{unread[0]} is about the programs of the engine {IREE}, and the engines asked for are: "
            f"{', '.join(engines)}; leave it out, or add {IREE} to them"
        )
    if batch_tile % _TILE_UNIT:
        raise CompileError(
            f"--batch-tile {batch_tile} is not a multiple of {_TILE_UNIT}, the rows that vector registers "
            "take; 16 is a good choice"
        )


def _with_precision(work: Path, manifest: Manifest, precision: Precision | None, job: _Job) -> Manifest:
    """The bundle's manifest with its precision."""
    if precision is None and not manifest.precision:
        return manifest
    others = _others(manifest, job) if precision is not None else []
    choice = choose(
        work,
        manifest,
        rewritten(flat_module(work)),
        precision,
        [*job.targets, *others],
        job.progress,
    )
    if choice.search is not None:
        files.write_json(work / files.PRECISION_JSON, choice.search)
    return files.write_manifest(
        work, replace(manifest, precision=choice.rules, kept=choice.kept), job.digests
    )


def _confirmed(work: Path, manifest: Manifest, job: _Job) -> Manifest:
    """After a search: the compiled program against the one in float32, if the first target runs here. A
    choice for time that is not faster as a whole is taken back."""
    # The plot needs matplotlib, which nothing else here does.
    from mlir_pipeline.precision.report import plot, verdict

    search = msgspec.json.decode((work / files.PRECISION_JSON).read_bytes(), type=Search)
    target = job.targets[0]
    first = next((t for t in manifest.targets if (t.name, t.engine) == (target.name, IREE)), None)
    if manifest.precision and first is not None and runs_here(first):
        job.progress("timing the whole program in float32 and in the precision that was chosen")
        with tempfile.TemporaryDirectory() as directory:
            base = Path(directory)
            plain = dataclasses.replace(
                job,
                targets=[target],
                engines=(IREE,),
                iree=IreeOptions(data_tiling=first.data_tiling),
                dump=IrDump(None),
            )
            towers = split(rewritten(rewritten(flat_module(work)), rewrites=MERGES))
            single = _compile_towers(base, replace(manifest, targets=()), towers, plain)
            programs = {"f32": (base, single), "chosen": (work, manifest)}
            times = time_programs(work, programs, target.name)
        medians = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
        faster = without_noise(times["f32"], times["chosen"]) < statistics.median(times["f32"])
        search = replace(search, program_milliseconds=medians, note=verdict(search, medians, faster))
        if search.prefer == "time" and not faster:
            search = replace(search, formats={})
            manifest = files.write_manifest(work, replace(manifest, precision=(), kept=()), job.digests)
            manifest = _compile_dense(work, manifest, dataclasses.replace(job, dump=IrDump(None)))
    if not manifest.precision:
        (work / files.PRECISION_EXAMPLES).unlink(missing_ok=True)
    files.write_json(work / files.PRECISION_JSON, search)
    (work / files.PRECISION_PLOT).write_text(plot(search))
    return manifest


def _compile_dense(work: Path, manifest: Manifest, job: _Job) -> Manifest:
    """Writes the dense program, its weights and its programs for each target and engine. Returns the manifest
    with them."""
    job.progress("tracing the Flax module and splitting it by dataflow")
    if manifest.row_wise and manifest.flops is not None and not manifest.targets:
        # The converter counts the products outside of loops: here a loop's trips are known.
        source = source_cost(work)(1).products
        manifest = replace(manifest, flops=replace(manifest.flops, source_per_candidate=source))
    return _compile_towers(work, manifest, trace(work, dump=job.dump), job)


def _compile_towers(directory: Path, manifest: Manifest, towers: Towers, job: _Job) -> Manifest:
    program = Program(lower(towers, ir.Context()))
    job.dump.write("stablehlo.mlir", program.text(weights=False))
    run_passes(program, PORTABLE, job.dump)
    weights = program.weights
    manifest = replace(
        manifest,
        flops=Flops(
            source_per_candidate=manifest.flops.source_per_candidate if manifest.flops else 0,
            request=dot_flops(towers.request),
            candidate=dot_flops(towers.candidate),
            uncounted_loops=unknown_loops(towers.request) + unknown_loops(towers.candidate),
        ),
        slice_rows=slice_rows(towers.candidate),
        state=tuple(
            StateTensor(shape=tuple(a.shape), dtype=str(a.dtype), name=name)
            for a, name in zip(towers.state, towers.names, strict=True)
        ),
    )
    tiles = Tiles("", (), ())
    if job.iree.tune:
        tiles = lower_all_tiles(directory, manifest, towers, weights)
    batch = Batch("", 0, {}, "")
    if job.iree.batch_tile and IREE in job.engines:
        batch = lower_batch(directory, manifest, job.iree.batch_tile)
        weights = {**weights, **batch.weights}
    (directory / files.WEIGHTS).unlink(missing_ok=True)
    if weights:
        save_archive_file(weights, directory / files.WEIGHTS)
    (directory / files.DENSE).write_text(program.text())
    text = ""
    if IREE in job.engines:
        run_passes(program, FOR_IREE, job.dump)
        text = program.text_with_modules()
        job.dump.write("iree_input.mlir", program.text(weights=False))
    compiled, targets = _kept(directory, manifest, job)
    for target, engine in itertools.product(targets, job.engines):
        if job.compare and engine != IREE and not on_cpu(target.name):
            continue
        job.progress(f"compiling for {target.name} ({engine})")
        place = directory / target.directory / engine
        # Files of an earlier compilation, and no others.
        shutil.rmtree(place, ignore_errors=True)
        compiled.pop((target.name, engine), None)
        if engine == IREE:
            host = compiled.get((HOST_CPU, IREE)) if target.name != HOST_CPU else None
            single = compile_target(text, tiles, target, directory, manifest, host, job.iree, job.progress)
            compiled[target.name, engine] = with_batch(single, batch, target, directory)
            continue
        try:
            names = names_of(weights)
            compiled[target.name, engine] = build(engine, towers, manifest, target.name, directory, names)
        except CompileError as error:
            if not job.compare:
                raise
            shutil.rmtree(place, ignore_errors=True)
            job.refused.append(EngineTime(target=target.name, engine=engine, refused=str(error)))
    return replace(manifest, targets=tuple(compiled.values()))


def _kept(
    directory: Path, manifest: Manifest, job: _Job
) -> tuple[dict[tuple[str, str], Target], list[IreeTarget]]:
    """The programs of earlier compilations that stay, and the targets to compile for.

    All are made from one dense program and read one weight archive. Where either is another one, none can
    stay: what IREE was compiled for is compiled again.
    """
    names = (files.WEIGHTS, files.DENSE)
    now = {n: job.digests.of(directory / n) for n in names if (directory / n).exists()}
    if now == {n: manifest.files[n] for n in names if n in manifest.files}:
        return {(t.name, t.engine): t for t in manifest.targets}, list(job.targets)
    others = _others(manifest, job) if IREE in job.engines else []
    again = job.names | {t.name for t in others}
    for target in manifest.targets:
        shutil.rmtree(directory / parse_target(target.name).directory, ignore_errors=True)
        if target.name not in again or target.engine not in job.engines:
            job.progress(f"the program changed: {target.name} ({target.engine}) is dropped, compile it again")
    return {}, [*job.targets, *others]


def _others(manifest: Manifest, job: _Job) -> list[IreeTarget]:
    """What IREE was compiled for before and is not asked for now."""
    names = dict.fromkeys(t.name for t in manifest.targets if t.engine == IREE)
    return [parse_target(name) for name in names if name not in job.names]


def _checked(work: Path, manifest: Manifest, job: _Job) -> Manifest:
    """The manifest with a certificate for each program that has none and runs here. A program that fails is
    an error or, with `compare`, left out."""
    manifest = files.write_manifest(work, manifest, job.digests)
    checked, kept = [], manifest.kept
    for target in manifest.targets:
        if on_cpu(target.name) and target.certificate is None:
            missing = ", ".join(sorted(missing_instruction_sets(target)))
            if missing:
                note = f"not run here: this CPU has no {missing}"
                checked.append(replace(target, notes=(*target.notes, note)))
                continue
            job.progress(f"checking {target.name} ({target.engine}) against TensorFlow's outputs")
            try:
                certificate, found = check(work, target)
            except (CertificateError, BundleError) as error:
                if not job.compare or target.engine == IREE:
                    raise
                job.refused.append(EngineTime(target=target.name, engine=target.engine, refused=str(error)))
                shutil.rmtree((work / target.module).parent)
                continue
            target, kept = replace(target, certificate=certificate), found or kept
        checked.append(target)
    return replace(manifest, targets=tuple(checked), kept=kept)


def _chosen(work: Path, manifest: Manifest, job: _Job) -> Manifest:
    """The manifest with the engine that runs each target: the first asked for, or the fastest."""
    there = {(t.name, t.engine) for t in manifest.targets}
    chosen = {t.name: t.engine for t in reversed(manifest.targets)}
    chosen |= {n: e for n, e in manifest.chosen_engines.items() if (n, e) in there}
    for name in job.names:
        chosen[name] = next(e for e in job.engines if (name, e) in there)
    times = tuple(
        t for t in manifest.engine_times if t.target not in job.names and (t.target, t.engine) in there
    )
    manifest = replace(manifest, chosen_engines=chosen, engine_times=times)
    if job.compare:
        manifest = files.write_manifest(work, manifest, job.digests)
        manifest = choose_engines(work, manifest, job.names, job.refused, job.progress)
    return manifest


def _without_module(target: IreeTarget) -> Target:
    """A target of a bundle that has no dense half."""
    return Target(
        name=target.name,
        engine="host",
        driver=target.driver,
        module="",
        flags=(),
        compiler="none",
        certificate=None,
    )
