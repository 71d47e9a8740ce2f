# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Towers to one StableHLO module with a public function for each."""

from collections.abc import Mapping

import jax
from iree.compiler import ir, passmanager
from jax import export
from jax.extend import core

from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.split import Towers


def lower(
    towers: Towers, context: ir.Context, names: tuple[str, str] = (REQUEST_TOWER, CANDIDATE_TOWER)
) -> ir.Module:
    """StableHLO with a public function for each tower, named `names`; calls are inlined, weights are
    constants. Locations name the Flax module of each operation. Without state there is no request tower.

    The only unknown in a dynamic dimension is the number of candidates, `n`; a model that mixes candidates
    has dimensions such as `2*n` or `[n, n]` too.
    """
    with context, ir.Location.unknown():
        module = ir.Module.create()
        for name, tower in zip(names, (towers.request, towers.candidate), strict=True):
            if tower is not towers.request or towers.state:
                ir.InsertionPoint(module.body).insert(export_function(name, tower, context))
    return module


def lower_tiles(tiles: Mapping[int, core.ClosedJaxpr], context: ir.Context) -> ir.Module:
    """StableHLO with the candidate tower of each number of rows, `@candidate_tower_32` for 32."""
    with context, ir.Location.unknown():
        module = ir.Module.create()
        for rows, tower in tiles.items():
            ir.InsertionPoint(module.body).insert(export_function(tile_function(rows), tower, context))
    return module


def tile_function(rows: int) -> str:
    """Name of the candidate tower for exactly `rows` rows."""
    return f"{CANDIDATE_TOWER}_{rows}"


def export_function(name: str, tower: core.ClosedJaxpr, context: ir.Context) -> ir.Operation:
    """A flat jaxpr as one public StableHLO function; weights are constants."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in tower.jaxpr.invars]
    # Unused inputs are kept: the server passes every block and every state tensor.
    function = jax.jit(core.jaxpr_as_fun(tower), keep_unused=True)
    module = ir.Module.parse(export.export(function, platforms=["cpu"])(*avals).mlir_module(), context)
    passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
    (main,) = (op.operation for op in module.body.operations if op.operation.name == "func.func")
    main.attributes["sym_name"] = ir.StringAttr.get(name, context)
    return main.detach_from_parent()
