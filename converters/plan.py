"""What becomes of a model, before anything is written: the scopes of its inputs, whether it mixes
candidates, the place of every op, and its host program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from converters import domains, scopes, whole_batch
from converters.errors import ConversionError, Unsupported
from converters.examples import draw, read_examples
from converters.examples.composites import repeat_request_rows
from converters.flat_graph import FlatGraph
from converters.flat_model import FlatModel
from converters.frontier import Frontier, cut
from converters.host_ops import HostProgramWriter
from converters.plugins import Lowerings
from converters.request_parts import keep_request_parts
from converters.row_wise import candidates, mixes_candidates, resized
from converters.source import SourceModel, SourceTensor
from jaxrank.certificate import TOLERANCE
from jaxrank.host_program import HostProgram
from jaxrank.manifest import DEFAULT_MAX_CANDIDATES, OpPlacement, Scope, Signature, TensorSpec
from jaxrank.progress import Progress, Silent
from serving.host.program import count_candidates

_OUTPUT_DTYPES = ("float32", "int32", "int64", "bool")
"""What the dense half may give; the host half may give strings too."""
_SMALL_INTEGERS = {"ArgMax", "ArgMin", "TopKV2", "Shape", "Size"}
"""Ops whose int64 results are positions, which fit into 32 bits."""
_ALONE = 7
"""Candidates that are scored alone and together."""
_TILED_ROWS = 3
_SAMPLES = 24
"""Small requests on which shapes are observed."""

Requests = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Layout:
    """The model at a number of rows: its flat graph, where it is cut, and what the host does."""

    rows: int
    flat: FlatGraph
    frontier: Frontier
    writer: HostProgramWriter
    program: HostProgram


@dataclass(frozen=True)
class Plan:
    """Everything that was decided about a model.

    `layouts` are at one row for a model that scores candidates on their own, and at the rows of
    `whole_batch.ROWS` for one that mixes them; `mixing` names the output that shows it. `unsupported` are
    host ops without an operator.
    """

    model: FlatModel
    signature: Signature
    reasons: Mapping[str, str]
    requests: Requests
    mixing: str | None
    layouts: tuple[Layout, ...]
    unsupported: tuple[Unsupported, ...]

    @property
    def source(self) -> SourceModel:
        return self.model.source

    @property
    def program(self) -> HostProgram:
        return self.layouts[0].program

    def dense_outputs(self, layout: Layout) -> dict[str, Any]:
        """Tensors of the outputs that the dense half makes, by name."""
        by_host = {o.output for o in self.program.outputs}
        pairs = zip(self.source.outputs, layout.flat.results, strict=True)
        return {t.name: tensor for t, tensor in pairs if t.name not in by_host}

    def placements(self) -> tuple[OpPlacement, ...]:
        """Every op of the source graph with its place and why."""
        flat, frontier = self.layouts[0].flat, self.layouts[0].frontier
        missing = {u.name for u in self.unsupported}
        places: list[tuple[Literal["host", "dense"], tuple[Any, ...]]] = [
            ("host", frontier.host),
            ("dense", frontier.dense),
        ]
        kept = [
            OpPlacement(name=flat.source_name(op), op=op.type, place=place, reason=frontier.reasons[op.name])
            for place, ops in places
            for op in ops
            if flat.source_name(op) not in missing
        ]
        known = {p.name for p in kept} | missing
        folded = [
            OpPlacement(name=name, op=op, place="folded", reason=why)
            for name, op, why in flat.removed
            if name not in known
        ]
        return (*dict.fromkeys(kept), *folded)  # the parts of a concatenation are one op of the source


def make_plan(
    source: SourceModel,
    *,
    request_inputs: Sequence[str] = (),
    examples: Path | None = None,
    rename: Mapping[str, str] | None = None,
    max_candidates: int = DEFAULT_MAX_CANDIDATES,
    tolerance: float = TOLERANCE,
    device_table_limit: int = 0,
    lowerings: Lowerings | None = None,
    progress: Progress = Silent(),  # noqa: B008
) -> Plan:
    """Decides everything about a model. Raises `ConversionError` where it cannot be decided."""
    progress(
        "folding the graph, and drawing requests that fit it" if examples is None else "folding the graph"
    )
    tiled = _really_tiled(FlatModel(source, lowerings or {}))
    declared = [replace(t, shape=(1, *t.shape[1:])) if t.name in tiled else t for t in source.inputs]
    source = replace(source, inputs=tuple(declared))
    model = FlatModel(source, lowerings or {})
    decided = scopes.decide(source.inputs, request_inputs, tiled)
    input_scopes: dict[str, Scope] = {name: scope for name, (scope, _) in decided.items()}
    signature = Signature(
        name=source.signature_name,
        method_name=source.method_name,
        inputs=tuple(_spec(t, input_scopes[t.name]) for t in source.inputs),
        outputs=tuple(_spec(t, "candidate") for t in source.outputs),
    )
    flat = model.at_rows(1)
    if examples is None:
        requests = draw(signature, domains.find(flat, source.inputs, source.tables), max_candidates)
    else:
        requests = read_examples(examples, signature, rename=dict(rename or {}))
        requests += resized(signature, requests, max_candidates)

    def predict(features: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return model.predict(repeat_request_rows(signature, features))

    progress("asking TensorFlow whether candidates are scored on their own")
    some = max(requests, key=lambda r: min(count_candidates(r, signature), _ALONE))
    some = candidates(signature, some, 0, min(_ALONE, count_candidates(some, signature)))
    mixing = mixes_candidates(predict, signature, some, max(tolerance, TOLERANCE))
    progress("cutting the graph at the lookups")
    layouts = tuple(
        _layout(model, signature, requests, rows, device_table_limit)
        for rows in ((1,) if mixing is None else whole_batch.ROWS)
    )
    _check_outputs(source, layouts[0])
    shaped = [
        replace(t, shape=(None, *tensor.shape.as_list()[1:])) if t.shape != () and tensor.shape.rank else t
        for t, tensor in zip(source.outputs, layouts[0].flat.results, strict=True)
    ]
    signature = Signature(
        name=signature.name,
        method_name=signature.method_name,
        inputs=signature.inputs,
        outputs=tuple(_spec(t, "candidate") for t in shaped),
    )
    return Plan(
        model=model,
        signature=signature,
        reasons={t.feature or t.name: decided[t.name][1] for t in source.inputs},
        requests=requests,
        mixing=mixing,
        layouts=layouts,
        unsupported=tuple(layouts[0].writer.missing),
    )


def _really_tiled(model: FlatModel) -> dict[str, str]:
    """Inputs with open rows that the graph tiles to the rows of others, if TensorFlow itself fails, or
    multiplies the rows, when they have as many rows as the others."""
    tiled = scopes.tiled_inputs(model)
    if not tiled:
        return {}
    source = model.source
    everything = Signature(
        name=source.signature_name,
        method_name=source.method_name,
        inputs=tuple(_spec(t, "candidate" if t.shape[:1] != (1,) else "request") for t in source.inputs),
        outputs=(),
    )
    known = domains.find(model.with_open_rows(), source.inputs, source.tables)
    features = draw(everything, known, _TILED_ROWS)[-1]
    try:
        found = model.live.run([t.tensor_name for t in source.outputs], features)
    except ConversionError:
        return tiled
    return {} if all(len(np.atleast_1d(v)) in (1, _TILED_ROWS) for v in found) else tiled


def _layout(
    model: FlatModel, signature: Signature, requests: Requests, rows: int, device_table_limit: int
) -> Layout:
    source = model.source
    repeated = ()
    if rows > 1:
        repeated = tuple(t.name for t in signature.inputs if t.scope == "request" and t.shape[:1] == (None,))
    flat = model.at_rows(rows, lambda flat, count: _observed(model, flat, signature, requests, count))
    scopes_of: dict[str, Scope] = {
        tensor.placeholder: "candidate" if spec.name in repeated else spec.scope
        for tensor, spec in zip(source.inputs, signature.inputs, strict=True)
    }
    frontier = cut(flat, scopes_of, device_table_limit, per_row_is_candidate=rows > 1)
    if rows == 1 and keep_request_parts(flat, frontier):
        frontier = cut(flat, scopes_of, device_table_limit)
    writer = HostProgramWriter(flat, frontier, source.inputs, rows, repeated)
    program = writer.write(tuple(t.name for t in source.outputs))
    return Layout(rows, flat, frontier, writer, program)


def _check_outputs(source: SourceModel, layout: Layout) -> None:
    for output in source.outputs:
        made_by_host = any(o.output == output.name for o in layout.program.outputs)
        tensor = layout.flat.results[source.outputs.index(output)]
        if output.dtype == "int64" and not made_by_host and tensor.op.type not in _SMALL_INTEGERS:
            raise ConversionError(
                f"output {output.name!r} is int64, computed by {tensor.op.type} in the dense half, which has "
                "32 bits: cast it to int32 or float32 in the model, or leave it out with --outputs"
            )
        if output.dtype not in _OUTPUT_DTYPES and not made_by_host and not layout.writer.missing:
            raise ConversionError(
                f"output {output.name!r} is {output.dtype}; outputs may be {', '.join(_OUTPUT_DTYPES)}: "
                "cast it in the model, or leave it out with --outputs"
            )


def _observed(
    model: FlatModel, flat: FlatGraph, signature: Signature, requests: Requests, rows: int
) -> dict[str, tuple[int, ...]]:
    """Shapes that TensorFlow cannot infer, of the tensors of a flat graph by source name, where all small
    requests of `rows` candidates agree on them."""
    unknown = [
        t
        for op in flat.graph.get_operations()
        for t in op.outputs
        if not t.shape.is_fully_defined() and t.dtype not in (tf.resource, tf.variant)
    ]
    names = {f"{flat.source_name(t.op)}:{t.value_index}" for t in unknown}
    if not names:
        return {}
    live = model.live
    names = sorted(n for n in names if isinstance(live.flat.tensors.get(n), tf.Tensor))
    found: dict[str, set[tuple[int, ...]]] = {n: set() for n in names}
    for features in _samples(signature, requests, rows):
        values = live.run(names, repeat_request_rows(signature, features))
        for name, value in zip(names, values, strict=True):
            found[name].add(value.shape)
    return {name: next(iter(seen)) for name, seen in found.items() if len(seen) == 1}


def _samples(signature: Signature, requests: Requests, rows: int) -> Requests:
    """Requests of a number of candidates, cut from larger ones."""
    found: Requests = []
    for features in requests:
        available = count_candidates(features, signature)
        for start in range(0, min(available - rows + 1, 8 * rows), rows):
            found.append(candidates(signature, features, start, start + rows))
            if len(found) >= _SAMPLES:
                return found
    return found


def _spec(tensor: SourceTensor, scope: Scope) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        scope=scope,
        tensor_name=tensor.tensor_name,
        part=tensor.part,
        feature=tensor.feature,
    )
