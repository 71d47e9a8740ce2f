# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Towers to one StableHLO module with a public function for each."""

import jax
from iree.compiler import ir, passmanager
from jax import export
from jax.extend import core

from mlir_pipeline.split import Towers

REQUEST_TOWER = "request_tower"
CANDIDATE_TOWER = "candidate_tower"


def lower(towers: Towers, context: ir.Context) -> ir.Module:
    """StableHLO with `@request_tower` and `@candidate_tower`, calls inlined, weights as constants.

    The only unknown in a dynamic dimension is the number of candidates, `n`; a model that mixes candidates
    has dimensions such as `2*n` or `[n, n]` too.
    """
    functions = [_export(REQUEST_TOWER, towers.request, context)] if towers.state else []
    functions.append(_export(CANDIDATE_TOWER, towers.candidate, context))
    return ir.Module.parse("\n".join(functions), context)


def _export(name: str, tower: core.ClosedJaxpr, context: ir.Context) -> str:
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in tower.jaxpr.invars]
    # Unused inputs are kept: the server passes every block and every state tensor.
    function = jax.jit(core.jaxpr_as_fun(tower), keep_unused=True)
    module = ir.Module.parse(export.export(function, platforms=["cpu"])(*avals).mlir_module(), context)
    drop_shape_assertions(module)
    with context:
        passmanager.PassManager.parse("builtin.module(inline,symbol-dce,cse)").run(module.operation)
    (main,) = (op.operation for op in module.body.operations if op.operation.name == "func.func")
    main.attributes["sym_name"] = ir.StringAttr.get(name, context)
    return str(main)


def drop_shape_assertions(module: ir.Module) -> bool:
    """Removes JAX's run-time checks of dimension variables. Returns whether it found any.

    The server checks the number of candidates before a request reaches a module; IREE ignores the checks, but
    the arithmetic that feeds them would stay as work for the device.
    """
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "stablehlo.custom_call" and "shape_assertion" in str(op.attributes["call_target_name"]):
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for op in found:
        op.erase()
    return bool(found)
