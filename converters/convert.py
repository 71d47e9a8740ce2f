"""SavedModel to bundle: the whole conversion, all or nothing."""

import datetime
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from msgspec.structs import replace

from converters import scopes
from converters.dense import to_onnx
from converters.errors import ConversionError
from converters.examples import draw, read_examples
from converters.flax_writer import write_flax
from converters.frontier import Frontier, cut
from converters.host_ops import HostProgramWriter
from converters.savedmodel import SourceModel, SourceTensor, load
from jaxrank import bundle as files
from jaxrank.certificate import TOLERANCE, Certificate, Example, certify, save_examples
from jaxrank.manifest import (
    DEFAULT_MAX_CANDIDATES,
    SCHEMA_VERSION,
    Flops,
    Manifest,
    OpPlacement,
    Scope,
    Signature,
    Source,
    TensorSpec,
)

Progress = Callable[[str], None]

_OUTPUT_DTYPES = ("float32", "int32", "bool")
"""What compiled programs give back as they are; JAX would narrow 64-bit values."""


def convert(
    saved_model: Path,
    bundle: Path,
    *,
    signature: str = "serving_default",
    request_inputs: Sequence[str] = (),
    examples: Path | None = None,
    max_candidates: int = DEFAULT_MAX_CANDIDATES,
    tolerance: float = TOLERANCE,
    progress: Progress = lambda text: None,
) -> Manifest:
    """Converts one signature. The bundle appears complete and certified, or not at all.

    Args:
        request_inputs: shell patterns of inputs that are the same for every candidate; inputs that the
            signature declares with one row are found without them.
        examples: an `.npz` of recorded requests (see `converters.examples`); random ones are drawn without
            it.

    Raises:
        ConversionError: what was found, where, and what to do; `UnsupportedOpsError` lists every op without
            a place.
        CertificateError: the converted model's scores differ from TensorFlow's.
    """
    progress(f"loading {saved_model}")
    model = load(saved_model, signature)
    decided = scopes.decide(model.inputs, request_inputs)
    input_scopes: dict[str, Scope] = {name: scope for name, (scope, _) in decided.items()}
    for output in model.outputs:
        if output.dtype not in _OUTPUT_DTYPES:
            raise ConversionError(
                f"output {output.name!r} is {output.dtype}; outputs may be {', '.join(_OUTPUT_DTYPES)}: "
                "cast it in the model"
            )
    with files.staging(bundle) as work:
        progress("cutting the graph at the lookups")
        frontier = cut(model, input_scopes)
        writer = HostProgramWriter(model, frontier, work)
        program = writer.write()
        files.write_json(work / files.HOST_PROGRAM, program)
        progress("dense half: TensorFlow -> ONNX -> Flax")
        outputs = tuple(_spec(t, "candidate") for t in model.outputs)
        proto = to_onnx(model, frontier, program.columns)
        source_flops = write_flax(proto, program.columns, outputs, work, saved_model.name)
        inputs = tuple(_spec(t, input_scopes[t.name]) for t in model.inputs)
        signature_spec = Signature(
            name=signature, method_name="tensorflow/serving/predict", inputs=inputs, outputs=outputs
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            source=Source(
                format="saved_model",
                path=saved_model.name,
                tensorflow=tf.__version__,
                jaxrank=metadata.version("jaxrank"),
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
            signature=signature_spec,
            max_candidates=max_candidates,
            tables=tuple(writer.tables.values()),
            vocabularies=tuple(writer.vocabularies.values()),
            ops=_placements(model, frontier),
            certificate=Certificate(stage="flax", tolerance=tolerance, requests=0, outputs=()),
            flops=Flops(source_per_candidate=source_flops, request=0, candidate=source_flops),
        )
        files.write_manifest(work, manifest)
        progress("certifying against TensorFlow at 1, 7 and 200 candidates")
        requests = (
            read_examples(examples, signature_spec)
            if examples
            else draw(signature_spec, program, work, manifest)
        )
        recorded = [
            Example(features, model.predict(_for_tensorflow(features, inputs))) for features in requests
        ]
        save_examples(work, recorded)
        certificate = certify("flax", recorded, _run_flax(work, manifest, recorded), tolerance)
        return files.write_manifest(work, replace(manifest, certificate=certificate))


def _spec(tensor: SourceTensor, scope: Scope) -> TensorSpec:
    return TensorSpec(
        name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, scope=scope, tensor_name=tensor.tensor_name
    )


def _for_tensorflow(features: dict[str, np.ndarray], inputs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Request features repeated on every row where the signature asks for rows, as TensorFlow needs them."""
    rows = max(len(features[t.name]) for t in inputs if t.scope == "candidate")
    return {
        t.name: np.repeat(features[t.name], rows, axis=0)
        if t.scope == "request" and t.shape[0] is None
        else features[t.name]
        for t in inputs
    }


def _run_flax(bundle: Path, manifest: Manifest, examples: Sequence[Example]) -> list[dict[str, np.ndarray]]:
    """The bundle's own host program, then its Flax module."""
    import jax

    from jaxrank.flax_module import rows_function
    from serving.host import HostProgramRunner

    host = HostProgramRunner(bundle, manifest)
    rows = jax.jit(rows_function(bundle))
    found = []
    for example in examples:
        blocks = host.run(example.features)
        outputs = rows(blocks.request, blocks.candidate)
        found.append(
            {t.name: np.asarray(v) for t, v in zip(manifest.signature.outputs, outputs, strict=True)}
        )
    return found


def _placements(model: SourceModel, frontier: Frontier) -> tuple[OpPlacement, ...]:
    def placed(ops: Sequence[Any], place: Literal["host", "dense"]) -> list[OpPlacement]:
        return [
            OpPlacement(name=model.source_name(op), op=op.type, place=place, reason=frontier.reasons[op.name])
            for op in ops
        ]

    kept = [*placed(frontier.host, "host"), *placed(frontier.dense, "dense")]
    known = {p.name for p in kept}
    folded = [
        OpPlacement(name=name, op=op, place="folded", reason="constant at one candidate")
        for name, op in model.removed
        if name not in known
    ]
    return (*kept, *folded)
