# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Moves weights out of a module into named parameters.

Each is loaded through one private global, and equal constants share one. A parameter's name is made of its
contents, whatever the order in which a module uses them. So all entry points, programs and targets of a
bundle read one weight archive, which the server maps into memory.
"""

import hashlib
import re

import jax.numpy as jnp
import numpy as np
from iree.compiler import ir

from jaxrank.bundle import WEIGHTS_SCOPE
from mlir_pipeline.errors import CompileError
from mlir_pipeline.passes.program import Pass, Program

MINIMUM_BYTES = 1024

_DTYPES = {"f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": jnp.bfloat16}
_HEXADECIMAL = re.compile(r'dense<"0x([0-9A-F]+)">')


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
                array = np.ascontiguousarray(_array(value, ir.RankedTensorType(kind)))
                name = parameter_name(array)
                names[value], weights[name] = name, array
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


def parameter_name(array: np.ndarray) -> str:
    """An array's name in the weight archive, made of its contents."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(array.tobytes())
    return f"weight_{digest.hexdigest()[:16]}"


def _array(value: ir.Attribute, kind: ir.RankedTensorType) -> np.ndarray:
    """A constant's elements, in its own type."""
    elements = ir.DenseElementsAttr(value)
    dtype = np.dtype(_DTYPES[str(kind.element_type)])
    if elements.is_splat:
        return np.full(kind.shape, ir.FloatAttr(elements.get_splat_value()).value, dtype)
    if dtype != jnp.bfloat16:
        return np.array(elements)
    # IREE's bindings give no buffer of bf16; more than a hundred elements are printed as their bytes.
    digits = _HEXADECIMAL.search(str(value))
    if digits is None:
        raise CompileError(f"a weight {kind} is not printed in hexadecimal; use another version of IREE")
    return np.frombuffer(bytes.fromhex(digits[1]), dtype).reshape(kind.shape)


def _prepend(module: ir.Module, op: ir.OpView | ir.Operation) -> None:
    ir.InsertionPoint.at_block_begin(module.body).insert(op)


def _bytes(kind: ir.Type) -> int:
    if not isinstance(kind, ir.RankedTensorType) or not isinstance(kind.element_type, ir.FloatType):
        return 0
    size = kind.element_type.width // 8
    for dim in kind.shape:
        size *= dim
    return size


def _run(program: Program) -> bool:
    found = externalize_weights(program.module)
    program.weights.update(found)
    return bool(found)


PASS = Pass(
    name="externalize-weights",
    requires="a module of functions",
    ensures=f"no floating-point constant of {MINIMUM_BYTES} bytes or more is left; each is a parameter of "
    f"the "
    f"{WEIGHTS_SCOPE!r} scope",
    run=_run,
)
