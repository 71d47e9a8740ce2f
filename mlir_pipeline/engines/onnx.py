# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Towers to ONNX: the program that IREE compiles, after every rewrite, for ONNX Runtime.

A tower becomes one model with `n` as its only unknown size. Weights are references to the bundle's archive,
by name. `onnx_ops.py` has a function for each primitive; what is not there is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from jax.extend import core

from mlir_pipeline.engines.onnx_control_flow import BODIES
from mlir_pipeline.engines.onnx_graph import Graph, Tensor
from mlir_pipeline.engines.onnx_ops import RULES
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import module_path

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


def tower_to_onnx(
    tower: core.ClosedJaxpr, weight_name: Callable[[np.ndarray], str | None]
) -> onnx.ModelProto:
    """A tower as an ONNX model with inputs `input_0`, ... and outputs `output_0`, ..., in the tower's order.

    Args:
        weight_name: gives the name that the weight archive has for an array; one without stays in the
            model.

    Raises:
        CompileError: a primitive or dtype that ONNX does not have; all unknown ones are listed with their
            module.
    """
    _refuse_unknown(tower.jaxpr)
    inputs = {f"input_{i}": v.aval for i, v in enumerate(tower.jaxpr.invars)}
    last = next(reversed(inputs), None)
    dynamic = last is not None and any(not isinstance(d, int) for d in inputs[last].shape)
    graph = Graph(last if dynamic else None, weight_name)
    arguments = [Tensor(name, tuple(a.shape), np.dtype(a.dtype)) for name, a in inputs.items()]
    found = write(graph, tower.jaxpr, tower.consts, arguments)
    outputs = {}
    for i, value in enumerate(found):
        graph.rename(value.name, f"output_{i}")
        outputs[f"output_{i}"] = (value.shape, value.dtype)
    return graph.finish({name: (a.shape, a.dtype) for name, a in inputs.items()}, outputs)


def write(
    graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Tensor]
) -> list[Tensor]:
    """Adds a jaxpr's equations to the graph. Returns the values of its outputs."""
    values: dict[core.Var, Tensor] = {
        v: _constant(graph, c) for v, c in zip(jaxpr.constvars, consts, strict=True)
    }
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Tensor:
        if isinstance(atom, core.Literal):
            return _constant(graph, np.asarray(atom.val, atom.aval.dtype))  # it may be a Python number
        return values[atom]

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(v) for v in eqn.invars]
        avals = [v.aval for v in eqn.outvars]
        try:
            if name in _CALLS:
                inner = eqn.params[_CALLS[name]]
                found = write(graph, inner.jaxpr, inner.consts, operands)
            elif name in BODIES:
                found = BODIES[name](write, graph, eqn.params, operands, avals)
            else:
                found = RULES[name](graph, eqn.params, operands, avals)
        except CompileError as error:
            where = module_path(eqn) or "the model's own body"
            raise CompileError(
                f"{error} (primitive {name!r} in {where}) has no ONNX spelling; compile with --engine iree"
            ) from error
        values.update(zip(eqn.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(graph: Graph, value: Any) -> Tensor:
    array = np.asarray(value)
    return Tensor(graph.constant(array), array.shape, array.dtype)


def _refuse_unknown(jaxpr: core.Jaxpr) -> None:
    unknown: dict[str, str] = {}
    pending = [jaxpr]
    while pending:
        for eqn in pending.pop().eqns:
            name = eqn.primitive.name
            if name not in RULES and name not in BODIES and name not in _CALLS:
                unknown.setdefault(name, module_path(eqn) or "the model's own body")
            for value in eqn.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(inner, core.ClosedJaxpr):
                        pending.append(inner.jaxpr)
    if unknown:
        listed = ", ".join(f"{name!r} in {where}" for name, where in sorted(unknown.items()))
        raise CompileError(f"no ONNX spelling of: {listed}; compile with --engine iree or xla")
