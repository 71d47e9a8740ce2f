"""One record of a bundle's work and time: what `jaxrank explain` prints, draws and writes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.flax_module import dense_outputs
from jaxrank.manifest import Manifest, Target
from jaxrank.progress import Progress, Silent
from mlir_pipeline.errors import CompileError
from mlir_pipeline.explain.cost import Cost, cost_of_modules, evaluated, least_bytes, weight_bytes
from mlir_pipeline.explain.dispatches import Dispatches, DispatchSource, dispatches
from mlir_pipeline.explain.profile import FunctionProfile, profile
from mlir_pipeline.explain.rewriting import Step, measured, source_cost
from mlir_pipeline.flops import dot_flops
from mlir_pipeline.iree import parse_target
from mlir_pipeline.rewriting import flat_module, steps

DEFAULT_CANDIDATES = (1, 50, 200, 1000, 5000)
DEFAULT_PROFILED = (200, 1000)


class ExplainError(CompileError):
    """A request that cannot be answered: a target that the bundle lacks, a number of candidates beyond its
    bound."""


@dataclass(frozen=True)
class Figures:
    """The work of one request. A multiply-add counts as two FLOPs."""

    flops: int
    product_flops: int
    """Those of matrix products and convolutions."""
    transcendentals: int
    """Elements of exp, tanh and the like, not among `flops`."""
    bytes_moved: int
    """If every equation read and wrote memory: an upper bound."""
    least_bytes: int
    """Inputs, weights, state and outputs, each once."""


@dataclass(frozen=True)
class Work:
    """The work of one request with `candidates` candidates."""

    candidates: int
    source: Figures
    """The graph as TensorFlow runs it: everything for every candidate."""
    compiled: Figures
    """Both towers."""
    request: Figures
    """The request tower's part of `compiled`."""


@dataclass(frozen=True)
class RewriteShare:
    """The work after one step of the compiler, at the reference number of candidates."""

    name: str
    request_flops: int
    candidate_flops: int
    """Of the candidate tower, for all candidates."""
    bytes_moved: int
    state_bytes: int
    flops_change: float
    """Of both towers' FLOPs against the step before: -0.58 is 58% less."""
    bytes_change: float


@dataclass(frozen=True)
class ModuleShare:
    """One Flax module's work in the compiled program, at the reference number of candidates."""

    path: str
    """"experts.0.hidden"; "" is the model's own body."""
    request_flops: int
    candidate_flops: int
    bytes_moved: int
    share: float
    """Of all FLOPs."""


@dataclass(frozen=True)
class State:
    """A tensor that crosses from the request to the candidate tower."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class DispatchRow:
    """One dispatch's time, and what is in it."""

    name: str
    calls: int
    microseconds: float
    """Of all calls in one run."""
    share: float
    """Of all dispatches' time."""
    modules: tuple[str, ...]
    primitives: tuple[str, ...]


@dataclass(frozen=True)
class TowerProfile:
    """The dispatches of one tower, the longest first."""

    function: str
    candidates: int
    runs: int
    wall_microseconds: float
    """Median of one whole run with the profiler on."""
    dispatch_microseconds: float
    """Sum of the dispatches' medians."""
    dispatches: tuple[DispatchRow, ...]


@dataclass(frozen=True)
class NotMeasured:
    """What could not be told, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """Everything that `explain` found."""

    bundle: str
    target: str
    """The compiled target that `dispatches` and `profiles` are about; empty for a bundle that has none."""
    row_wise: bool
    reference_candidates: int
    flops_of_n: dict[str, str]
    """FLOPs as expressions of the number of candidates `n`: of the `source`, the `request` and the
    `candidate` tower."""
    work: tuple[Work, ...]
    rewrites: tuple[RewriteShare, ...]
    modules: tuple[ModuleShare, ...]
    state: tuple[State, ...]
    weight_bytes: int
    dispatches: dict[str, int]
    """Dispatches of one run of each function; those in a loop count once."""
    profiles: tuple[TowerProfile, ...]
    not_measured: tuple[NotMeasured, ...]
    notes: tuple[str, ...]

    def to_json(self) -> bytes:
        """Indented JSON with the fields of this class."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def explain(
    bundle: Path,
    *,
    target: str | None = None,
    candidates: Sequence[int] | None = None,
    profiled: Sequence[int] | None = None,
    runs: int = 30,
    progress: Progress | None = None,
) -> Explanation:
    """Counts a bundle's work, and profiles one of its targets where that runs here. The bundle stays as
    it is.

    Args:
        target: the compiled target to count dispatches of and to profile; the CPU's by default.
        candidates: numbers of candidates to show the work for; `DEFAULT_CANDIDATES` within the bundle's bound
            by default.
        profiled: those to profile; `DEFAULT_PROFILED` within the bound by default; none if empty.
        runs: of each tower under the profiler.

    Raises:
        BundleError: a bundle that is missing or damaged.
        ExplainError: a target that it does not have, or more candidates than it takes.
        CompileError: a module that has no towers.
    """
    told = progress or Silent()
    told("checking every file of the bundle")
    manifest = files.verify(bundle)
    counts = _within(manifest, candidates, DEFAULT_CANDIDATES)
    profiled = _within(manifest, profiled, DEFAULT_PROFILED)
    chosen = _target(bundle, manifest, target)
    if not dense_outputs(manifest, files.read_host_program(bundle)):
        return _host_only(bundle, manifest)

    told("tracing the Flax module, and counting before and after each rewrite")
    flat = flat_module(bundle)
    source, done = source_cost(bundle), list(measured(flat, steps(bundle)))
    last = done[-1]
    reference = max((n for n in counts if n <= 1000), default=min(counts))
    not_measured: list[NotMeasured] = []

    told("forming dispatches")
    formed = Dispatches({}, {})
    try:
        if chosen is None or chosen.engine == "iree":
            how = parse_target(chosen.name if chosen else "cpu")
            tiled = chosen is not None and chosen.data_tiling
            formed = dispatches(last.towers, how.with_data_tiling() if tiled else how)
        else:
            not_measured.append(
                NotMeasured("dispatches", f"{chosen.name} runs on the engine {chosen.engine}")
            )
    except CompileError as error:
        not_measured.append(NotMeasured("dispatches", str(error)))

    profiles: list[FunctionProfile] = []
    if chosen is None:
        why = f"the bundle is not compiled; run jaxrank compile {bundle}"
        not_measured.append(NotMeasured("time of each dispatch", why))
    elif profiled:
        told(f"profiling {chosen.name} at {', '.join(f'{n:,}' for n in profiled)} candidates")
        try:
            profiles = profile(bundle, manifest, chosen, profiled, runs=runs)
        except (CompileError, BundleError) as error:
            not_measured.append(NotMeasured("time of each dispatch", str(error)))
    return Explanation(
        bundle=str(bundle),
        target=chosen.name if chosen else "",
        row_wise=manifest.row_wise,
        reference_candidates=reference,
        flops_of_n={
            "source": f"{source(1).flops}*n" if manifest.row_wise else str(done[0].candidate.flops),
            "request": str(last.request.flops),
            "candidate": str(last.candidate.flops),
        },
        work=tuple(_work(n, source(n), least_bytes(flat), last) for n in counts),
        rewrites=_shares(done, source(reference), reference),
        modules=_modules(last, reference),
        state=_state(last),
        weight_bytes=weight_bytes(last.towers.request) + weight_bytes(last.towers.candidate),
        dispatches={name: sum(calls.values()) for name, calls in formed.calls.items()},
        profiles=tuple(_profile(p, formed.sources) for p in profiles),
        not_measured=tuple(not_measured),
        notes=tuple(_notes(manifest, chosen, last, profiles, formed)),
    )


def _within(manifest: Manifest, asked: Sequence[int] | None, default: Sequence[int]) -> list[int]:
    bound = manifest.max_candidates
    if asked is None:
        return [n for n in default if n <= bound] or [bound]
    outside = [n for n in asked if not 1 <= n <= bound]
    if outside:
        raise ExplainError(
            f"{outside[0]} candidates are outside of what the bundle takes, 1 to {bound:,}; compile it with "
            "--max-candidates to change that"
        )
    return sorted(set(asked))


def _target(bundle: Path, manifest: Manifest, name: str | None) -> Target | None:
    # Of a target with several engines, IREE's module is explained: other programs have no dispatches to show.
    ours = [t for t in manifest.targets if t.engine in ("iree", "host")]
    targets = {t.name: t for t in (*manifest.targets, *ours)}
    if name is None:
        here = [t for t in ours if t.on_cpu]
        return next(iter([*here, *ours, *targets.values()]), None)
    if name not in targets:
        has = ", ".join(targets) or "none"
        raise ExplainError(
            f"{bundle} is not compiled for {name!r} (it has: {has}); run jaxrank compile {bundle} "
            f"--target {name}"
        )
    return targets[name]


def _host_only(bundle: Path, manifest: Manifest) -> Explanation:
    why = "the host program makes every output: there is no dense half"
    return Explanation(
        bundle=str(bundle), target="", row_wise=manifest.row_wise, reference_candidates=0, flops_of_n={},
        work=(), rewrites=(), modules=(), state=(), weight_bytes=0, dispatches={}, profiles=(),
        not_measured=(NotMeasured("work and time of the dense half", why),), notes=(),
    )  # fmt: skip


def _figures(found: Cost, least: Any, n: int) -> Figures:
    found = found.at(n)
    return Figures(
        flops=found.flops,
        product_flops=found.products,
        transcendentals=found.transcendentals,
        bytes_moved=found.bytes_moved,
        least_bytes=evaluated(least, n),
    )


def _work(n: int, source: Cost, source_least: Any, last: Step) -> Work:
    request_least = least_bytes(last.towers.request) if last.towers.state else 0
    least = request_least + least_bytes(last.towers.candidate)
    return Work(
        candidates=n,
        source=_figures(source, source_least, n),
        compiled=_figures(last.request + last.candidate, least, n),
        request=_figures(last.request, request_least, n),
    )


def _shares(done: Sequence[Step], source: Cost, n: int) -> tuple[RewriteShare, ...]:
    flops, moved = source.at(n).flops, source.at(n).bytes_moved
    found = []
    for step in done:
        request, candidate = step.request.at(n), step.candidate.at(n)
        total = request + candidate
        found.append(
            RewriteShare(
                name=step.name,
                request_flops=request.flops,
                candidate_flops=candidate.flops,
                bytes_moved=total.bytes_moved,
                state_bytes=sum(s.bytes for s in _state(step)),
                flops_change=total.flops / flops - 1 if flops else 0.0,
                bytes_change=total.bytes_moved / moved - 1 if moved else 0.0,
            )
        )
        flops, moved = total.flops, total.bytes_moved
    return tuple(found)


def _modules(last: Step, n: int) -> tuple[ModuleShare, ...]:
    request, candidate = (cost_of_modules(t) for t in (last.towers.request, last.towers.candidate))
    total = max((last.request + last.candidate).at(n).flops, 1)
    found = []
    for path in {**request, **candidate}:
        once, many = request.get(path, Cost()).at(n), candidate.get(path, Cost()).at(n)
        both = once + many
        found.append(
            ModuleShare(path, once.flops, many.flops, bytes_moved=both.bytes_moved, share=both.flops / total)
        )
    return tuple(sorted(found, key=lambda m: (-m.share, m.path)))


def _state(step: Step) -> tuple[State, ...]:
    return tuple(
        State(tuple(a.shape), str(a.dtype), math.prod(a.shape) * np.dtype(a.dtype).itemsize)
        for a in step.towers.state
    )


def _profile(found: FunctionProfile, sources: dict[str, DispatchSource]) -> TowerProfile:
    total = found.microseconds or 1.0
    nothing = DispatchSource((), ())
    rows = []
    for d in found.dispatches:
        source = sources.get(d.name, nothing)
        rows.append(
            DispatchRow(
                d.name, d.calls, d.microseconds, d.microseconds / total, source.modules, source.primitives
            )
        )
    return TowerProfile(
        function=found.function,
        candidates=found.candidates,
        runs=found.runs,
        wall_microseconds=found.wall_microseconds,
        dispatch_microseconds=found.microseconds,
        dispatches=tuple(rows),
    )


def _notes(
    manifest: Manifest,
    chosen: Target | None,
    last: Step,
    profiles: Sequence[FunctionProfile],
    formed: Dispatches,
) -> list[str]:
    notes = []
    uncounted = sorted((last.request + last.candidate).uncounted)
    if uncounted:
        notes.append(f"no FLOPs are known of: {', '.join(uncounted)}")
    compiled = manifest.flops and (manifest.flops.request, manifest.flops.candidate)
    now = (dot_flops(last.towers.request), dot_flops(last.towers.candidate))
    if chosen is not None and compiled != now:
        notes.append(
            "the bundle was compiled with other rewrites or options than this version's defaults: its "
            f"manifest says {compiled} FLOPs of products for the request and each candidate, now they are "
            f"{now}"
        )
    profiled = {d.name for p in profiles for d in p.dispatches}
    if formed.sources and not profiled <= formed.sources.keys():
        notes.append(
            "some dispatches have no modules: another version of the compiler made the bundle; compile it "
            "again"
        )
    if chosen is None:
        notes.append("'compiled' is what jaxrank compile would make of the bundle for the CPU")
    if not manifest.row_wise:
        notes.append("the model mixes candidates: the source graph, too, computes a request in one piece")
    return notes
