# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Compiles a bundle's Flax module for one or more targets and puts the modules into the bundle."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from iree.compiler import ir
from iree.runtime import save_archive_file
from jax import export
from jax.errors import InconclusiveDimensionOperation
from jax.extend import core
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.certificate import certify, load_examples
from jaxrank.cpu import instruction_sets
from jaxrank.flax_module import dense_outputs, rows_function
from jaxrank.manifest import Certificate, Flops, Manifest, StateTensor, Target
from mlir_pipeline.errors import CompileError
from mlir_pipeline.flops import dot_flops
from mlir_pipeline.iree import IreeTarget, compile_module, parse_target
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.externalize_weights import externalize_weights
from mlir_pipeline.passes.legalize_dynamism import legalize_dynamism
from mlir_pipeline.rewrites.expand_primitives import expand_primitives
from mlir_pipeline.rewrites.hoist_dots import hoist_dots
from mlir_pipeline.rewrites.known_gathers import known_gathers
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.rewrites.separate_reductions import separate_reductions
from mlir_pipeline.rewrites.stable_sorts import stable_sorts
from mlir_pipeline.split import Towers, split

Progress = Callable[[str], None]


def compile_bundle(
    bundle: Path,
    targets: Sequence[str],
    *,
    max_candidates: int | None = None,
    progress: Progress = lambda text: None,
) -> Manifest:
    """Compiles for every target, checks what can run here against TensorFlow's recorded outputs, and rewrites
    the bundle.

    The bundle is replaced as a whole at the end; on any error it stays as it was.

    Raises:
        CompileError: an unknown target, or a module that cannot be lowered.
        CertificateError: a compiled module's scores differ from TensorFlow's.
    """
    wanted = [parse_target(name) for name in dict.fromkeys(targets)]
    manifest = files.verify(bundle)
    with files.staging(bundle, start_from=bundle) as work:
        manifest = replace(manifest, max_candidates=max_candidates or manifest.max_candidates)
        if dense_outputs(manifest, files.read_host_program(work)):
            manifest = _compile_dense(work, manifest, wanted, progress)
        else:
            progress("the host program makes every output: there is nothing to compile")
            manifest = replace(manifest, targets=tuple(_without_module(t) for t in wanted))
        manifest = files.write_manifest(work, manifest)
        checked = []
        for target in manifest.targets:
            if target.name in {t.name for t in wanted} and target.driver.startswith("local"):
                progress(f"checking {target.name} against TensorFlow's outputs")
                target = replace(target, certificate=check(work, target.name))
            checked.append(target)
        return files.write_manifest(work, replace(manifest, targets=tuple(checked)))


def _compile_dense(
    work: Path, manifest: Manifest, wanted: Sequence[IreeTarget], progress: Progress
) -> Manifest:
    """Writes the dense program, its weights and its module for each target. Returns the manifest with
    them."""
    progress("tracing the Flax module and splitting it by dataflow")
    towers = trace(work)
    context = ir.Context()
    module = lower(towers, context)
    weights = externalize_weights(module)
    (work / files.WEIGHTS).unlink(missing_ok=True)
    if weights:
        save_archive_file(weights, work / files.WEIGHTS)
    (work / files.DENSE).write_text(str(module))
    legalized = _legalized(module)
    compiled = {t.name: t for t in manifest.targets}
    for target in wanted:
        progress(f"compiling for {target.name}")
        compiled[target.name] = _compile(legalized, target, work)
    source = manifest.flops.source_per_candidate if manifest.flops else 0
    return replace(
        manifest,
        flops=Flops(
            source_per_candidate=source,
            request=dot_flops(towers.request),
            candidate=dot_flops(towers.candidate),
        ),
        state=tuple(StateTensor(shape=tuple(a.shape), dtype=str(a.dtype)) for a in towers.state),
        targets=tuple(compiled.values()),
    )


def trace(bundle: Path) -> Towers:
    """The bundle's module as two towers, after the rewrites."""
    program = files.read_host_program(bundle)
    (count,) = export.symbolic_shape("n")
    request = jax.ShapeDtypeStruct((1, program.width("request")), np.float32)
    candidate = jax.ShapeDtypeStruct((count, program.width("candidate")), np.float32)
    try:
        flat = flat_jaxpr(rows_function(bundle), request, candidate)
    except InconclusiveDimensionOperation as error:
        raise CompileError(
            f"the model decides by the number of candidates, which one module for any number cannot: {error}"
        ) from error
    return split(rewritten(flat))


def rewritten(flat: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """A flat jaxpr after every rewrite, in the order in which each finds what it looks for."""
    expanded = expand_primitives(known_gathers(stable_sorts(flat)))
    return separate_reductions(hoist_dots(merge_broadcasts(expanded)))


def check(bundle: Path, target: str) -> Certificate:
    """Runs a compiled target, as the server would, on the bundle's recorded requests."""
    # The certificate is about the code that will serve: the server's own.
    from serving.model import Model

    model = Model.load(bundle, target=target)
    try:
        examples = load_examples(bundle)
        found = [model.predict(e.features) for e in examples]
        constants = {o.output for o in files.read_host_program(bundle).outputs if o.constant}
        return certify(target, examples, found, model.manifest.certificate.tolerance, constants)
    finally:
        model.close()


def _legalized(module: ir.Module) -> str:
    for operation in module.body.operations:
        if operation.operation.name == "func.func":
            legalize_dynamism(operation.operation)
    if not module.operation.verify():
        raise CompileError("the legalized module is not valid MLIR; please report this model")
    return str(module)


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


def _compile(module: str, target: IreeTarget, work: Path) -> Target:
    built = compile_module(module, target, work / target.directory)
    return Target(
        name=target.name,
        engine="iree",
        driver=target.driver,
        module=f"{target.directory}/dense.vmfb",
        flags=target.flags,
        compiler=built,
        instruction_sets=tuple(sorted(instruction_sets())) if target.driver.startswith("local") else (),
        certificate=None,
    )
