# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""From what was asked for to the precision that a bundle is compiled with."""

import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jax.extend import core

from jaxrank import bundle as files
from jaxrank.certificate import CertificateError, Example, certify, load_examples, save_examples
from jaxrank.flax_module import dense_outputs
from jaxrank.manifest import KeptMetric, Manifest, PrecisionFormat, PrecisionRule
from jaxrank.progress import Progress
from mlir_pipeline.errors import CompileError
from mlir_pipeline.iree import IreeTarget
from mlir_pipeline.precision.bounds import Bound, as_bounds, described, measure, parse_bounds, used
from mlir_pipeline.precision.bounds import kept as as_kept
from mlir_pipeline.precision.cast import Product, cast_products, modules_of, products
from mlir_pipeline.precision.emulate import Emulator
from mlir_pipeline.precision.estimate import DEVICES, estimate_products
from mlir_pipeline.precision.rules import BODY, as_rules, check_rules, formats_of
from mlir_pipeline.precision.search import ModuleCost, Prefer, Search, search, small_formats
from mlir_pipeline.precision.timing import Seconds, kinds_of, time_products
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks

AUTO_BOUNDS = "auc:1e-4,gauc:1e-4,top50:0.999,inversions:1e-3,abs:1e-3"
_CANDIDATES = 200
"""Rows of the request that is timed, a page of results."""
_SHOWN_WITHOUT_BOUNDS = parse_bounds("auc:0,gauc:0,top50:1,inversions:0,abs:0")


@dataclass(frozen=True)
class Precision:
    """What `jaxrank compile` was asked for."""

    rules: tuple[PrecisionRule, ...] | None
    """None searches."""
    bounds: tuple[Bound, ...] = ()
    """Empty holds the scores to the certificate's tolerance."""
    examples: Sequence[Example] = field(default=(), hash=False)
    """Requests that bounds are checked on, with labels where they were recorded; outputs are not read. The
    certificate's requests where it is empty."""
    prefer: Prefer = "time"


@dataclass(frozen=True)
class Choice:
    """Precision that a bundle is to be compiled with."""

    rules: tuple[PrecisionRule, ...]
    bounds: tuple[Bound, ...]
    kept: tuple[KeptMetric, ...]
    """The bounds' metrics in the emulation."""
    search: Search | None


def choose(
    work: Path,
    manifest: Manifest,
    flat: core.ClosedJaxpr,
    precision: Precision | None,
    targets: Sequence[IreeTarget],
    progress: Progress,
) -> Choice:
    """The precision of a bundle, checked by emulation before anything is compiled for good.

    Args:
        work: the bundle, which gets or loses the files of a search and of its requests.
        flat: the jaxpr of its dense program after the rewrites, in float32.
        precision: None keeps the bundle's own.
        targets: those to compile for; times are of the first.

    Raises:
        CompileError: a pattern that matches nothing, weights or a target that a format does not fit, bounds
        that
            float32 breaks.
        CertificateError: scores beyond the bounds, or beyond the tolerance without bounds.
    """
    if precision is None:
        rules, bounds = manifest.precision, as_bounds(manifest.kept)
    else:
        rules, bounds = precision.rules, precision.bounds
        for name in (files.PRECISION_JSON, files.PRECISION_PLOT, files.PRECISION_EXAMPLES):
            (work / name).unlink(missing_ok=True)
    modules = modules_of(products(flat))
    if rules is not None:
        check_rules(rules, modules)
        if all(f == "f32" for f in formats_of(rules, modules).values()):
            return Choice((), (), (), None)
        _check_targets(rules, targets)
    progress("emulating lower precision on the example requests")
    emulation = _Emulation(work, manifest, flat, modules)
    if precision is not None and precision.examples:
        save_examples(work, emulation.scored(precision.examples), files.PRECISION_EXAMPLES)
    examples = bounded_examples(work)
    if rules is None:
        found = _searched(emulation, precision, examples, targets[0], progress)  # pyright: ignore
        rules = as_rules(found.formats, modules)
        _check_targets(rules, targets)
        values = emulation.values(found.formats, bounds, examples)
        return Choice(rules, bounds if rules else (), as_kept(bounds, values) if rules else (), found)
    cast_products(flat, formats_of(rules, modules))  # refuses weights that a format cannot hold
    formats = formats_of(rules, modules)
    recorded = load_examples(work)
    check_scores("emulated", manifest, bounds, recorded, emulation.outputs(formats, recorded))
    values = emulation.values(formats, bounds, examples)
    _check_bounds("emulated", bounds, values)
    return Choice(rules, bounds, as_kept(bounds, values), None)


def bounded_examples(bundle: Path) -> list[Example]:
    """The requests that a bundle's bounds are checked on."""
    own = (bundle / files.PRECISION_EXAMPLES).exists()
    return load_examples(bundle, files.PRECISION_EXAMPLES if own else files.EXAMPLES)


def check_scores(
    stage: str,
    manifest: Manifest,
    bounds: Sequence[Bound],
    examples: Sequence[Example],
    found: Sequence[Mapping[str, np.ndarray]],
    constants: Container[str] = (),
):
    """The certificate of a lower precision: with bounds they decide, not the tolerance."""
    try:
        bound = np.inf if bounds else None
        return certify(stage, examples, found, manifest.certificate.tolerance, constants, bound=bound)
    except CertificateError as error:
        if bounds:
            raise
        values = measure(_SHOWN_WITHOUT_BOUNDS, examples, found)
        shown = ", ".join(f"{metric} {value:.3g}" for metric, value in values.items())
        raise CertificateError(
            f"{error}. That is the lower precision; measured on the bundle's requests: {shown}. Say "
            "with --keep "
            f"what you accept, such as --keep abs:{2 * values['abs']:.0e}"
        ) from error


def check_bounds(
    stage: str,
    bounds: Sequence[Bound],
    examples: Sequence[Example],
    found: Sequence[Mapping[str, np.ndarray]],
) -> tuple[KeptMetric, ...]:
    """The values of the bounds' metrics. Raises `CertificateError` where one is broken."""
    values = measure(bounds, examples, found)
    _check_bounds(stage, bounds, values)
    return as_kept(bounds, values)


def _check_bounds(stage: str, bounds: Sequence[Bound], values: Mapping[str, float]) -> None:
    if used(bounds, values) > 1:
        raise CertificateError(
            f"{stage}: the lower precision breaks what --keep asks for: {described(bounds, values)}; "
            "give wider "
            "bounds, lower fewer modules, or let --precision auto choose them"
        )


def _check_targets(rules: Sequence[PrecisionRule], targets: Sequence[IreeTarget]) -> None:
    for target in targets:
        allowed = _formats(target)
        for rule in rules:
            if rule.format != "f32" and rule.format not in allowed:
                raise CompileError(
                    f"{target.name} cannot be compiled with {rule.pattern}={rule.format}: "
                    f"it takes {', '.join(('f32', *allowed))}; choose one of these, or another target"
                )


def _formats(target: IreeTarget) -> tuple[PrecisionFormat, ...]:
    """The formats besides float32 that a target compiles. The Vulkan module fits devices without 16-bit
    numbers; IREE 3.13 multiplies float16 with an instruction that sm_75 does not have, and its compiler
    aborts."""
    if target.driver == "vulkan":
        return ()
    return tuple(f for f in small_formats() if target.name != "cuda:sm_75" or f.endswith("_storage"))


class _Emulation:
    """Scores of a bundle's requests at any precision."""

    def __init__(self, bundle: Path, manifest: Manifest, flat: core.ClosedJaxpr, modules: Sequence[str]):
        self.flat, self.manifest, self.modules = flat, manifest, modules
        self._host = HostProgramRunner(bundle, manifest)
        self.names = dense_outputs(manifest, self._host.program)
        self._dtypes = {t.name: t.dtype for t in manifest.signature.outputs}
        self._run = Emulator(flat, modules, row_wise=manifest.row_wise)
        self._blocks: dict[int, tuple[Example, FeatureBlocks]] = {}

    def blocks(self, example: Example) -> FeatureBlocks:
        """The host program's results, made once for each example."""
        if id(example) not in self._blocks:
            self._blocks[id(example)] = example, self._host.run(example.features)
        return self._blocks[id(example)][1]

    def outputs(
        self, formats: Mapping[str, PrecisionFormat], examples: Sequence[Example]
    ) -> list[dict[str, np.ndarray]]:
        found = []
        for example in examples:
            blocks = self.blocks(example)
            dense = self._run(formats, blocks.request, blocks.candidate)
            named = {n: v.astype(self._dtypes[n]) for n, v in zip(self.names, dense, strict=True)}
            found.append({**blocks.outputs, **named})
        return found

    def values(
        self, formats: Mapping[str, PrecisionFormat], bounds: Sequence[Bound], examples: Sequence[Example]
    ) -> dict[str, float]:
        return measure(bounds, examples, self.outputs(formats, examples))

    def scored(self, examples: Sequence[Example]) -> list[Example]:
        """Requests with float32's scores in place of TensorFlow's."""
        return [
            Example(e.features, outputs, e.labels)
            for e, outputs in zip(examples, self.outputs({}, examples), strict=True)
        ]


def _searched(
    emulation: _Emulation,
    precision: Precision,
    examples: Sequence[Example],
    target: IreeTarget,
    progress: Progress,
) -> Search:
    found = products(emulation.flat)
    candidates = min(_CANDIDATES, emulation.manifest.max_candidates)
    here = target.on_cpu
    if not here and target.name not in DEVICES:
        raise CompileError(
            f"--precision auto cannot time {target.name} here and has no model of it; choose with "
            "rules, or search "
            f"for cpu or one of {', '.join(DEVICES)}"
        )
    if here:
        progress(f"timing the matrix products of {len(emulation.modules)} modules in each format")
        with (
            tempfile.TemporaryDirectory() as directory,
            progress.steps("products", kinds_of(emulation.flat)) as done,
        ):
            seconds = time_products(emulation.flat, target, candidates, Path(directory), done)
    else:
        seconds = estimate_products(found, DEVICES[target.name], candidates)
    costs = _costs(found, emulation.modules, seconds, candidates)
    formats = _formats(target)
    progress("searching the precision of each module")
    with progress.steps("modules and formats", len(costs) * len(formats)) as done:
        float32, alone, steps, chosen = search(
            costs,
            formats,
            precision.bounds,
            lambda f: emulation.values(f, precision.bounds, examples),
            precision.prefer,
            done,
        )
    labelled = any(e.labels for e in examples)
    return Search(
        target=target.name,
        prefer=precision.prefer,
        estimated=not here,
        candidates=candidates,
        requests=len(examples),
        scores="float32's" if precision.examples else "TensorFlow's",
        labels="recorded" if labelled else "the best tenth of each request's rows by those scores",
        bounds={b.metric: b.limit for b in precision.bounds},
        float32=float32,
        modules=costs,
        alone=alone,
        steps=steps,
        formats=chosen,
        note="" if chosen else _nothing(precision.prefer, alone),
    )


def _nothing(prefer: Prefer, alone: Sequence[object]) -> str:
    saving = any(getattr(t, "saved", 0) > 0 for t in alone)
    if saving:
        return "every format that saves something breaks a bound: all modules stay in float32"
    what = "faster than float32" if prefer == "time" else "smaller than float32"
    return f"no format makes a module {what} here: all modules stay in float32"


def _costs(
    found: Sequence[Product], modules: Sequence[str], seconds: Seconds, candidates: int
) -> list[ModuleCost]:
    flops = dict.fromkeys(modules, 0)
    weights: dict[str, dict[int, int]] = {m: {} for m in modules}
    for product in found:
        rows = (
            candidates if any(not isinstance(d, int) for d in product.equation.outvars[0].aval.shape) else 1
        )
        flops[product.module] += rows * product.flops
        for weight in product.weights:
            if weight is not None:
                weights[product.module][id(weight)] = int(np.size(weight))
    total = max(sum(flops.values()), 1)
    every: tuple[PrecisionFormat, ...] = ("f32", *small_formats())
    return [
        ModuleCost(
            module=m,
            flops_share=flops[m] / total,
            milliseconds={f: 1e3 * seconds[m, f] for f in every},
            weight_bytes={f: (4 if f == "f32" else 2) * sum(weights[m].values()) for f in every},
        )
        for m in sorted(modules, key=lambda m: -flops[m])
    ]


__all__ = [
    "AUTO_BOUNDS",
    "BODY",
    "Choice",
    "Precision",
    "bounded_examples",
    "check_bounds",
    "check_scores",
    "choose",
]
