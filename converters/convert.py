"""A TensorFlow model to a bundle: the whole conversion, all or nothing."""

import datetime
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as replaced
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf
from msgspec.structs import replace

from converters import whole_batch
from converters.dense import to_onnx
from converters.errors import ConversionError, UnsupportedOpsError
from converters.examples.composites import repeat_request_rows
from converters.flax_writer import FlaxSource, ranker_source, write_module
from converters.frontier import is_table_lookup
from converters.loaders import load
from converters.plan import Layout, Plan, make_plan
from converters.plugins import load_plugins
from converters.report import (
    ConversionReport,
    Removed,
    TableUse,
    UnsupportedOp,
    sample_scores,
    write_report,
)
from converters.source import SourceModel
from converters.tables import write_table, write_vocabulary
from jaxrank import bundle as files
from jaxrank.certificate import TOLERANCE, Certificate, CertificateError, Example, certify, save_examples
from jaxrank.errors import JaxrankError
from jaxrank.host_program import HostProgram
from jaxrank.manifest import DEFAULT_MAX_CANDIDATES, SCHEMA_VERSION, Flops, Manifest, Source
from jaxrank.progress import Progress, Silent
from serving.errors import ServingError

Outputs = list[dict[str, np.ndarray]]
P = ParamSpec("P")
R = TypeVar("R")


def _explained(run: Callable[P, R]) -> Callable[P, R]:
    """Errors that no part of the converter foresaw, as a message: the model is one that it does not
    handle."""

    @wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except JaxrankError:
            raise
        except (ArithmeticError, LookupError, SyntaxError, TypeError, ValueError, ServingError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error).splitlines()[0] if str(error) else ""
            raise ConversionError(
                f"the converter does not handle this model: {type(error).__name__}: {text[:300]} "
                f"({Path(where.filename).name}:{where.lineno}); nothing was written. Leave the part out with "
                "--outputs, or report the model"
            ) from error

    return wrapped


@_explained
def convert(
    source: Path,
    bundle: Path,
    *,
    signature: str = "serving_default",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    request_inputs: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    examples: Path | None = None,
    max_candidates: int = DEFAULT_MAX_CANDIDATES,
    tolerance: float = TOLERANCE,
    device_table_limit: int = 0,
    op_plugins: Sequence[str] = (),
    debug_numerics: bool = False,
    progress: Progress = Silent(),  # noqa: B008
) -> Manifest:
    """Converts one signature. The bundle appears complete and certified, or not at all.

    Args:
        source: a SavedModel, frozen graph, checkpoint with a meta graph, or Keras file.
        inputs, outputs: see `converters.loaders.load`.
        request_inputs: shell patterns of inputs that are the same for every candidate; inputs that the
            signature declares with one row, or that the graph repeats for every row, are found without them.
        rename: new names of inputs and outputs, by their old ones.
        examples: recorded requests (see `converters.examples`); random ones are drawn without it.
        device_table_limit: embedding tables of at most this many bytes stay in the dense half.
        op_plugins: modules with lowerings (see `converters.plugins`).
        debug_numerics: on a failed certificate, search for the first tensor that differs.

    Raises:
        ConversionError: what was found, where, and what to do; `UnsupportedOpsError` lists every op without
            a place.
        CertificateError: the converted model's scores differ from TensorFlow's.
    """
    if not 0 < tolerance < np.inf:
        raise ConversionError(f"--tolerance {tolerance}: give a positive number")
    progress(f"loading {source}")
    loaded = renamed(load(source, signature, inputs, outputs), rename or {})
    plan = make_plan(
        loaded,
        request_inputs=request_inputs,
        examples=examples,
        rename=rename,
        max_candidates=max_candidates,
        tolerance=tolerance,
        device_table_limit=device_table_limit,
        lowerings=load_plugins(op_plugins),
        progress=progress,
    )
    progress("dense half: TensorFlow -> ONNX -> Flax")
    flax = dense_source(plan)
    with files.staging(bundle) as work:
        files.write_json(work / files.HOST_PROGRAM, plan.program)
        write_module(flax, work)
        manifest = _manifest(plan, work, flax, max_candidates, tolerance, progress)
        files.write_manifest(work, manifest)
        progress(f"certifying {len(plan.requests)} requests against TensorFlow")
        recorded = [
            Example(f, plan.model.predict(repeat_request_rows(plan.signature, f))) for f in plan.requests
        ]
        save_examples(work, recorded)
        found = run_flax(work, manifest, [e.features for e in recorded])
        try:
            certificate = certify("flax", recorded, found, tolerance, constants(plan.program))
        except CertificateError as error:
            if not debug_numerics:
                raise CertificateError(f"{error} (--debug-numerics searches for the first tensor)") from error
            from converters.numerics import first_difference

            progress("searching for the first tensor that differs")
            raise CertificateError(f"{error}\n{first_difference(plan, work, manifest)}") from error
        manifest = replace(manifest, certificate=certificate)
        report = _report(plan, manifest.source)
        write_report(work, replace(report, certificate=certificate, scores=sample_scores(recorded, found)))
        return files.write_manifest(work, manifest)


@_explained
def dry_run(
    source: Path,
    *,
    signature: str = "serving_default",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    request_inputs: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    examples: Path | None = None,
    device_table_limit: int = 0,
    op_plugins: Sequence[str] = (),
    progress: Progress = Silent(),  # noqa: B008
) -> ConversionReport:
    """What would become of every op; nothing is written. Arguments as for `convert`."""
    progress(f"loading {source}")
    loaded = renamed(load(source, signature, inputs, outputs), rename or {})
    plan = make_plan(
        loaded,
        request_inputs=request_inputs,
        examples=examples,
        rename=rename,
        device_table_limit=device_table_limit,
        lowerings=load_plugins(op_plugins),
        progress=progress,
    )
    progress("dense half: TensorFlow -> ONNX -> Flax")
    try:
        dense_source(plan)
        missing = plan.unsupported
    except UnsupportedOpsError as error:
        missing = error.found
    unsupported = tuple(UnsupportedOp(name=u.name, op=u.op, advice=u.advice) for u in missing)
    return replace(_report(plan, _source(plan.source)), unsupported=unsupported)


def renamed(model: SourceModel, names: Mapping[str, str]) -> SourceModel:
    """The model with other names for inputs and outputs. Raises `ConversionError` for a name that it has
    not."""
    known = {t.name for t in (*model.inputs, *model.outputs)}
    for name in names:
        if name not in known:
            raise ConversionError(
                f"--rename {name}: there is no such input or output; there are: {', '.join(sorted(known))}"
            )
    inputs = tuple(replaced(t, name=names.get(t.name, t.name)) for t in model.inputs)
    outputs = tuple(replaced(t, name=names.get(t.name, t.name)) for t in model.outputs)
    for tensors in (inputs, outputs):
        if len({t.name for t in tensors}) < len(tensors):
            raise ConversionError("--rename gives two tensors the same name")
    back = {new.name: old.name for new, old in zip(inputs, model.inputs, strict=True)}
    return replaced(
        model,
        inputs=inputs,
        outputs=outputs,
        run=lambda tensors, feeds: model.run(tensors, {back[n]: v for n, v in feeds.items()}),
    )


def dense_source(plan: Plan) -> FlaxSource:
    """The dense half as a Flax module. Raises `UnsupportedOpsError` with every op of the model that has no
    place, host ops included."""
    try:
        sources = [_source_at(plan, layout) for layout in plan.layouts]
    except UnsupportedOpsError as error:
        raise UnsupportedOpsError((*plan.unsupported, *error.found)) from error
    if plan.unsupported:
        raise UnsupportedOpsError(plan.unsupported)
    if plan.mixing is None:
        return sources[0]
    first = next((c.feature for c in plan.program.columns if c.scope == "candidate"), None)
    for other, layout in zip(sources[1:], plan.layouts[1:], strict=True):
        same = (
            layout.program.columns == plan.program.columns and other.params.keys() == sources[0].params.keys()
        )
        if not same or not all(np.array_equal(other.params[k], v) for k, v in sources[0].params.items()):
            raise ConversionError(
                f"the model mixes candidates (output {plan.mixing!r}), and its constants depend on how "
                "many there "
                "are; it cannot be one module for any number of them"
            )
    text = whole_batch.merge([s.text for s in sources], first)
    return FlaxSource(text, sources[0].params, sources[0].flops // plan.layouts[0].rows)


def _source_at(plan: Plan, layout: Layout) -> FlaxSource:
    outputs = plan.dense_outputs(layout)
    specs = tuple(t for t in plan.signature.outputs if t.name in outputs)
    if not outputs:
        return ranker_source(_empty_model(), (), (), plan.source.path.name)
    proto = to_onnx(layout.flat, layout.frontier, layout.program.columns, outputs, layout.rows)
    return ranker_source(proto, layout.program.columns, specs, plan.source.path.name, layout.rows)


def _empty_model() -> Any:
    import onnx

    return onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))


def _manifest(
    plan: Plan, work: Path, flax: FlaxSource, max_candidates: int, tolerance: float, progress: Progress
) -> Manifest:
    writer = plan.layouts[0].writer
    total = sum(w.nbytes for w in writer.tables.values())
    progress(f"writing {len(writer.tables)} tables and {len(writer.vocabularies)} vocabularies")
    with progress.bar("tables", total) as advance:
        tables = tuple(write_table(work, name, weight, advance) for name, weight in writer.tables.items())
    vocabularies = tuple(
        write_vocabulary(work, name, plan.source.tables(node), keys, values, default)
        for name, (node, keys, values, default) in writer.vocabularies.items()
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        source=_source(plan.source),
        signature=plan.signature,
        max_candidates=max_candidates,
        row_wise=plan.mixing is None,
        tables=tables,
        vocabularies=vocabularies,
        ops=plan.placements(),
        certificate=Certificate(stage="flax", tolerance=tolerance, requests=0, outputs=()),
        flops=Flops(source_per_candidate=flax.flops, request=0, candidate=flax.flops),
    )


def _source(model: SourceModel) -> Source:
    return Source(
        format=model.format,
        path=model.path.name,
        tensorflow=tf.__version__,
        jaxrank=metadata.version("jaxrank"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _report(plan: Plan, source: Source) -> ConversionReport:
    folded = [r for r in plan.layouts[0].flat.removed if r[2] != _SERVED]
    notes = ["The model scores every candidate on its own: one row is traced, and all others are the same."]
    if plan.mixing is not None:
        notes = [
            f"The model mixes candidates: its output {plan.mixing!r} for a candidate depends on the "
            "others. All "
            "candidates of a request go through the dense half at once, and are never cut into slices."
        ]
    return ConversionReport(
        source=source,
        signature=plan.signature,
        scope_reasons=dict(plan.reasons),
        ops=plan.placements(),
        tables=_table_uses(plan),
        removed=Removed(
            folded=len(folded),
            frozen=sum(why == _FROZEN for _, _, why in folded),
            training=sum(why == _SERVED for _, _, why in plan.layouts[0].flat.removed),
        ),
        notes=tuple(notes),
    )


_SERVED = "it does nothing when a model is served"
_FROZEN = "computed from variables ahead of time"


def _table_uses(plan: Plan) -> tuple[TableUse, ...]:
    writer, operators = plan.layouts[0].writer, plan.program.operators
    uses = []
    for name, weight in writer.tables.items():
        readers = _distinct(
            o.name for o in operators if o.attrs.get("table") == name or f"table:{name}" in o.inputs
        )
        dim = int(np.prod(weight.shape[1:], dtype=np.int64))
        uses.append(
            TableUse(
                name=name,
                kind="embedding",
                place="host",
                rows=weight.shape[0],
                dim=dim,
                dtype=weight.dtype.name,
                bytes=weight.nbytes,
                readers=readers,
            )
        )
    layout = plan.layouts[0]
    readers_of: dict[str, list[Any]] = {}
    for op in layout.frontier.dense:
        if is_table_lookup(op, layout.flat):
            readers_of.setdefault(op.inputs[0].op.name, []).append(op)
    for node, ops in readers_of.items():
        params = ops[0].inputs[0]
        rows, *row = params.shape.as_list()
        uses.append(
            TableUse(
                name=node,
                kind="embedding",
                place="dense",
                rows=rows,
                dim=int(np.prod(row, dtype=np.int64)),
                dtype=params.dtype.name,
                bytes=params.shape.num_elements() * params.dtype.size,
                readers=_distinct(layout.flat.source_name(op) for op in ops),
            )
        )
    for name, (node, keys, _, _) in writer.vocabularies.items():
        contents = plan.source.tables(node)
        uses.append(
            TableUse(
                name=name,
                kind="vocabulary",
                place="host",
                rows=len(contents.keys),
                dim=1,
                dtype=keys.name,
                bytes=contents.values.nbytes,
                readers=_distinct(o.name for o in operators if o.attrs.get("vocabulary") == name),
            )
        )
    return tuple(uses)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """One lookup may be two operators, of the request's ids and of the candidates'."""
    return tuple(dict.fromkeys(names))


def constants(program: HostProgram) -> set[str]:
    """Outputs that are the same for every request, labels for example."""
    return {o.output for o in program.outputs if o.constant}


def run_flax(bundle: Path, manifest: Manifest, requests: Sequence[Mapping[str, np.ndarray]]) -> Outputs:
    """A bundle's outputs for requests, by its own host program and its Flax module."""
    import jax

    from jaxrank.flax_module import dense_outputs, rows_function
    from serving.host import HostProgramRunner

    host = HostProgramRunner(bundle, manifest)
    rows = jax.jit(rows_function(bundle))
    names = dense_outputs(manifest, host.program)
    dtypes = {t.name: t.dtype for t in manifest.signature.outputs}
    found = []
    for features in requests:
        blocks = host.run(features)
        for table in host.tables.values():
            table.forget_pages()
        outputs = rows(blocks.request, blocks.candidate) if names else ()
        dense = {n: np.asarray(v).astype(dtypes[n]) for n, v in zip(names, outputs, strict=True)}
        found.append({**dense, **blocks.outputs})
    return found
