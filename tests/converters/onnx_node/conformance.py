"""The onnx package's node tests through the real path: model -> module source -> import -> run -> compare.

A node test is a model of one operator (or of the function body that defines it) with inputs and the outputs
that ONNX expects. Operands that the operator table declares static (axes, shapes, counts) are graph inputs
in many tests; here they are bound as constants when the module is written, since a compiled program needs
them then and a TensorFlow graph has them as constants. So are the integer inputs that such operands are
computed from.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnx
from flax import nnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from converters.errors import UnsupportedOpsError
from converters.flax_writer import module_source
from converters.onnx_graph import operands, prepare
from converters.onnx_ops import OPS
from tests.converters.onnx_node.reasons import out_of_scope, xfail_reason

_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Each program runs once on a few numbers: compiling it is all the time there is."""


@dataclass(frozen=True)
class Counts:
    """`total` node tests, those `in_scope` (plain tensors), of these how many `passed`, and of those how many
    leave no code: all their operands are static, so the converter evaluates them (with ONNX's own
    evaluator)."""

    total: int
    in_scope: int
    passed: int
    folded: int


@functools.cache
def cases() -> dict[str, Any]:
    """All node tests of the installed onnx package by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows in the expected values of some tests
        return {case.name: case for case in load_model_tests(kind="node")}


def cases_in_scope() -> dict[str, Any]:
    return {name: case for name, case in cases().items() if out_of_scope(case) is None}


def check(case: Any) -> None:
    """Raises `AssertionError` where an output differs by more than the test's own tolerance, and
    `UnsupportedOpsError` where the module cannot be written."""
    for inputs, expected in case.data_sets:
        values = [_array(value) for value in inputs]
        named = dict(zip((v.name for v in case.model.graph.input), values, strict=True))
        found = run(case.model, named)
        expected = [_array(value) for value in expected]
        Runner.assert_similar_outputs(expected, found, rtol=case.rtol, atol=case.atol)


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the module that is written for a model."""
    with jax.enable_x64(True):
        static = static_inputs(model, inputs)
        source = module_source(model, static)
        namespace: dict[str, Any] = {"__name__": "model"}
        exec(compile(source.text, "model.py", "exec"), namespace)
        module = namespace["Model"](rngs=nnx.Rngs(0))
        for name, value in source.params.items():
            owner, _, attribute = name.rpartition(".")
            parameter = getattr(getattr(module, owner) if owner else module, attribute)
            parameter.set_value(jax.numpy.asarray(value))
        arguments = [v for n, v in inputs.items() if n not in static]
        call = jax.jit(lambda *values: module(*values), compiler_options=_QUICK)
        return [np.asarray(value) for value in call(*arguments)]


def static_inputs(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs that must be known when the module is written."""
    bound: dict[str, np.ndarray] = {}
    while True:
        graph = prepare(model.graph, list(model.opset_import), bound, {})
        producer = {name: node for node in graph.nodes for name in node.output}
        more: set[str] = set()
        for node in graph.nodes:
            entry = OPS.get(node.op_type)
            positions = entry.static if entry else ()
            if node.op_type == "Loop" and len(node.output) > len(node.input) - 2:
                positions = (0,)  # outputs for each trip need a number of trips
            for at in positions:
                if at < len(node.input) and node.input[at] not in ("", *graph.constants):
                    more |= _sources(node.input[at], producer, inputs)
        if not more - bound.keys():
            return bound
        bound.update({name: inputs[name] for name in more})


def _sources(name: str, producer: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> set[str]:
    if name in inputs:
        return {name}
    if name not in producer:
        return set()
    found = {n for operand in operands(producer[name]) for n in _sources(operand, producer, inputs)}
    return {n for n in found if inputs[n].dtype.kind in "iub"} or found


def counts(names: Iterable[str] | None = None) -> Counts:
    """Runs the tests in scope (or those named) that no reason excludes; a few minutes."""
    chosen = cases_in_scope() if names is None else {n: cases()[n] for n in names}
    passed = [case for name, case in chosen.items() if xfail_reason(name) is None and passes(case)]
    return Counts(len(cases()), len(cases_in_scope()), len(passed), sum(map(_is_folded, passed)))


def _is_folded(case: Any) -> bool:
    values = [_array(value) for value in case.data_sets[0][0]]
    static = static_inputs(
        case.model, dict(zip((v.name for v in case.model.graph.input), values, strict=True))
    )
    return not prepare(case.model.graph, list(case.model.opset_import), static, {}).nodes


def passes(case: Any) -> bool:
    try:
        check(case)
    except (AssertionError, UnsupportedOpsError):
        return False
    return True


def table(found: Counts) -> str:
    """Rows of a Markdown table: the counts, then how many tests each reason excludes."""
    lines = [
        "| ONNX node tests | number |",
        "|---|---|",
        f"| in the package onnx {onnx.__version__} | {found.total:,} |",
        f"| with plain tensors | {found.in_scope:,} |",
        f"| passed | {found.passed:,} ({found.passed / found.in_scope:.1%}) |",
        f"| of these evaluated while converting | {found.folded:,} |",
    ]
    reasons: dict[str, int] = {}
    for name, case in cases().items():
        reason = out_of_scope(case)
        label = f"out of scope: {reason}" if reason else xfail_reason(name)
        if label:
            reasons[label] = reasons.get(label, 0) + 1
    ordered: Sequence[tuple[str, int]] = sorted(reasons.items(), key=lambda item: -item[1])
    return "\n".join([*lines, *(f"| {label} | {number} |" for label, number in ordered)])
