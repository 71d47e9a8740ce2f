# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Moves weights out of a module into named parameters.

Requires: a module of functions. Ensures: no floating-point constant of at least `minimum_bytes` is left; each
is a parameter of the `model` scope, loaded through one private global, and equal constants share one. So all
entry points and all targets of a bundle read one weight archive, which the server maps into memory.
"""

import numpy as np
from iree.compiler import ir

from jaxrank.bundle import WEIGHTS_SCOPE

MINIMUM_BYTES = 1024


def externalize_weights(module: ir.Module, minimum_bytes: int = MINIMUM_BYTES) -> dict[str, np.ndarray]:
    """Runs the pass. Returns the weights by parameter name, in order of appearance."""
    names: dict[ir.Attribute, str] = {}
    weights: dict[str, np.ndarray] = {}
    constants: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "stablehlo.constant" and _bytes(op.results[0].type) >= minimum_bytes:
            constants.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    with module.context, ir.Location.unknown():
        for op in constants:
            value, kind = op.attributes["value"], op.results[0].type
            if value not in names:
                array = np.array(ir.DenseElementsAttr(value))
                if ir.DenseElementsAttr(value).is_splat:
                    array = np.full(ir.RankedTensorType(kind).shape, array.ravel()[0], np.float32)
                name = f"weight_{len(names)}"
                names[value], weights[name] = name, np.ascontiguousarray(array)
                parameter = f'#flow.parameter.named<"{WEIGHTS_SCOPE}"::"{name}">'
                text = f"util.global private @{name} = {parameter} : {kind}"
                _prepend(module, ir.Operation.parse(text))
            load = ir.Operation.create(
                "util.global.load",
                results=[kind],
                attributes={
                    "global": ir.FlatSymbolRefAttr.get(names[value]),
                    "is_immutable": ir.UnitAttr.get(),
                },
                ip=ir.InsertionPoint(op),
            )
            op.results[0].replace_all_uses_with(load.results[0])
            op.erase()
    return weights


def _prepend(module: ir.Module, op: ir.OpView | ir.Operation) -> None:
    ir.InsertionPoint.at_block_begin(module.body).insert(op)


def _bytes(kind: ir.Type) -> int:
    if not isinstance(kind, ir.RankedTensorType) or not isinstance(kind.element_type, ir.FloatType):
        return 0
    size = kind.element_type.width // 8
    for dim in kind.shape:
        size *= dim
    return size
