"""Where a converted model first differs from TensorFlow: every tensor that crosses from the host, then
every tensor of the dense half, in data-flow order."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from converters.dense import to_onnx
from converters.examples.composites import repeat_request_rows
from converters.flax_writer import ranker_source, write_module
from converters.plan import Layout, Plan
from jaxrank.flax_module import load_flax, load_source
from jaxrank.manifest import Manifest, TensorSpec
from serving.host import HostProgramRunner
from serving.host.program import count_candidates

_TOLERANCE = 1e-5
"""Difference of an intermediate tensor that is more than rounding: absolute up to 1, relative beyond."""


def first_difference(plan: Plan, bundle: Path, manifest: Manifest) -> str:
    """One line about the first tensor that differs, by its name in the source graph, on the request with the
    fewest candidates on which any does."""
    for features in sorted(plan.requests, key=lambda r: count_candidates(r, plan.signature)):
        found = _on_request(plan, bundle, manifest, features)
        if found is not None:
            return found
    if plan.mixing is not None:
        return "the host's tensors are TensorFlow's; the dense half mixes candidates and is not searched"
    return "no intermediate tensor differs by more than rounding; the difference builds up over many of them"


def _on_request(
    plan: Plan, bundle: Path, manifest: Manifest, features: Mapping[str, np.ndarray]
) -> str | None:
    layout = plan.layouts[0]
    rows = count_candidates(features, plan.signature)
    whole = repeat_request_rows(plan.signature, features)
    blocks = HostProgramRunner(bundle, manifest).run(features)
    made = [
        (tensor, column)
        for tensor, column in zip(layout.frontier.crossing, plan.program.columns, strict=True)
        if tensor.op.type != "Placeholder"
    ]
    names = [_source(layout, tensor) for tensor, _ in made]
    expected = dict(zip(names, plan.model.live.run(names, whole), strict=True))
    for tensor, column in made:
        block = blocks.request if column.scope == "request" else blocks.candidate
        width = int(np.prod(column.shape, dtype=np.int64))
        ours = block[:, column.offset : column.offset + width]
        if column.dtype == "int32":
            ours = np.ascontiguousarray(ours).view(np.int32)
        theirs = np.asarray(expected[_source(layout, tensor)], np.float64)
        if tensor.name in layout.flat.parts:
            theirs = layout.flat.parts[tensor.name].of(theirs)
        theirs = theirs.reshape(-1, max(width, 1))[: len(ours)]
        error = _error(theirs, ours)
        if error > _TOLERANCE:
            return (
                f"first difference: {_source(layout, tensor)} ({tensor.op.type}, made by the host, feature "
                f"{column.feature!r}) differs by {error:.2e} on {rows} candidates"
            )
    return _dense_difference(plan, layout, blocks, whole, rows)


def _dense_difference(
    plan: Plan, layout: Layout, blocks: Any, whole: Mapping[str, np.ndarray], rows: int
) -> str | None:
    if plan.mixing is not None:
        return None  # the module of a fixed number of candidates would not fit the request
    tensors = {
        f"t{i}": op.outputs[0]
        for i, op in enumerate(layout.frontier.dense)
        if op.name not in layout.flat.joins  # no tensor of the source graph
        and op.outputs
        and op.outputs[0].dtype == tf.float32
        and op.outputs[0].shape.is_fully_defined()
    }
    tensors = {n: t for n, t in tensors.items() if t.shape.rank and t.shape[0] == 1}
    proto = to_onnx(layout.flat, layout.frontier, plan.program.columns, tensors)
    specs = tuple(
        TensorSpec(name=n, dtype="float32", shape=(None,), scope="candidate", tensor_name=t.name)
        for n, t in tensors.items()
    )
    with tempfile.TemporaryDirectory() as directory:
        write_module(ranker_source(proto, plan.program.columns, specs, "every tensor"), Path(directory))
        found = _run(Path(directory), plan, blocks)
    names = {n: _source(layout, t) for n, t in tensors.items()}
    expected = plan.model.live.run(list(names.values()), whole)
    for (name, source), theirs in zip(names.items(), expected, strict=True):
        ours = np.asarray(found[name])
        if theirs.shape != ours.shape:
            continue  # a request's value, which TensorFlow repeats for every row elsewhere
        error = _error(theirs, ours)
        if error > _TOLERANCE:
            return (
                f"first difference: {source} ({tensors[name].op.type}, dense) differs by {error:.2e} on "
                f"{rows} "
                "candidates"
            )
    return None


def _run(directory: Path, plan: Plan, blocks: Any) -> dict[str, Any]:
    import jax

    from jaxrank.flax_module import unpack

    source, ranker = load_source(directory), load_flax(directory)
    request = source.Request(**unpack(blocks.request, plan.program.columns, "request"))

    def one(row: Any) -> dict[str, Any]:
        candidate = source.Candidate(**unpack(row[None], plan.program.columns, "candidate"))
        return {name: value[0] for name, value in ranker(request, candidate).items()}

    return jax.vmap(one)(blocks.candidate)


def _source(layout: Layout, tensor: Any) -> str:
    return f"{layout.flat.source_name(tensor.op)}:{tensor.value_index}"


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape or not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    finite = np.isfinite(expected)
    error = np.abs(expected - actual)[finite] / np.maximum(np.abs(expected[finite]), 1.0)
    return float(np.max(error, initial=0.0))
