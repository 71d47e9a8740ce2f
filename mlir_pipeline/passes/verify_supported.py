# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Lists everything in a program that IREE would refuse, in one error, before `iree-compile` runs.

`iree-compile` stops at the first op, names a line of a module that nobody wrote, and knows no Flax module.
What it refuses was found by compiling small modules; `tests/mlir_pipeline/passes/test_verify_supported.py`
holds them, and notices when IREE learns one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from iree.compiler import ir

from mlir_pipeline.errors import CompileError
from mlir_pipeline.passes.legalize.dimension_numbers import integers, numbers_of
from mlir_pipeline.passes.program import Pass, Program, Refusal, module_path, refused_reason, walk

_ANY_NUMBER = "write it without the number of candidates, or make its result a feature that the host computes"
_ROW = "work on one row at a time, or make its result a feature that the host computes"


def _always(op: ir.Operation) -> bool:
    return True


def _dynamic(op: ir.Operation) -> bool:
    return any(_is_dynamic(v.type) for v in (*op.operands, *op.results))


def _dynamic_operand(op: ir.Operation) -> bool:
    return _is_dynamic(op.operands[0].type)


def _dynamic_indices(op: ir.Operation) -> bool:
    return _is_dynamic(op.operands[1].type) and numbers_of(op).index_vector_dim > 0


def _batched_scatter(op: ir.Operation) -> bool:
    return _dynamic(op) and bool(
        integers(str(op.attributes["scatter_dimension_numbers"]), "input_batching_dims")
    )


def _dynamic_product(op: ir.Operation) -> bool:
    return _dynamic(op) and any(ir.RankedTensorType(v.type).rank != 2 for v in op.operands)


def _sort_of_candidates(op: ir.Operation) -> bool:
    axis = ir.IntegerAttr(op.attributes["dimension"]).value
    return len(op.operands) > 1 and ir.RankedTensorType(op.operands[0].type).is_dynamic_dim(axis)


@dataclass(frozen=True)
class _Form:
    """A form of an op that IREE does not take."""

    holds: Callable[[ir.Operation], bool]
    found: str
    suggestion: str


UNSUPPORTED: dict[str, _Form] = {
    "stablehlo.custom_call": _Form(
        _always,
        "it calls another library's kernel",
        "write the layer with jax.numpy and jax.lax operations that are not linear algebra solvers or "
        "FFTs, or move "
        "it into the host program",
    ),
    "stablehlo.triangular_solve": _Form(
        _always, "IREE has no lowering for it", "multiply by an inverse made at training time"
    ),
    "stablehlo.cholesky": _Form(_always, "IREE has no lowering for it", "store the factor as a weight"),
    "stablehlo.dynamic_conv": _Form(_always, "its padding is computed", "give the padding as numbers"),
    "stablehlo.dynamic_reshape": _Form(_always, "IREE has no lowering for it", _ANY_NUMBER),
    "stablehlo.dynamic_pad": _Form(_always, "its padding is computed", "give the padding as numbers"),
    "stablehlo.dynamic_gather": _Form(_always, "the size of its slices is computed", _ANY_NUMBER),
    "stablehlo.dynamic_broadcast_in_dim": _Form(
        _dynamic_operand, "it repeats a tensor of dynamic shape", _ANY_NUMBER
    ),
    "stablehlo.dynamic_update_slice": _Form(
        _dynamic, "it writes into a tensor of dynamic shape", _ANY_NUMBER
    ),
    "stablehlo.gather": _Form(_dynamic_indices, "its indices have a dynamic shape", _ANY_NUMBER),
    "stablehlo.scatter": _Form(
        _batched_scatter, "it writes into every row at positions of its own", "add up one-hot vectors instead"
    ),
    "stablehlo.dot_general": _Form(_dynamic_product, "it is no product of two matrices", _ANY_NUMBER),
    "stablehlo.optimization_barrier": _Form(_dynamic, "its operand has a dynamic shape", _ANY_NUMBER),
    "stablehlo.reduce_window": _Form(_dynamic, "its operand has a dynamic shape", _ROW),
    "stablehlo.sort": _Form(_sort_of_candidates, "it sorts several tensors along a dynamic dimension", _ROW),
}
"""Forms of ops that IREE does not take; any other form of these ops compiles."""

_TYPES = {
    "f8": "IREE converts no 8-bit floats on CUDA before sm_89; store float16 instead",
}


def verify_supported(module: ir.Operation) -> list[Refusal]:
    """Everything that IREE would refuse, and what earlier passes did, in the order of the module."""
    found: list[Refusal] = []

    def visit(op: ir.Operation) -> None:
        refusal = _refusal(op)
        if refusal is not None and refusal not in found:
            found.append(refusal)

    walk(module, visit)
    return found


def _refusal(op: ir.Operation) -> Refusal | None:
    form = UNSUPPORTED.get(op.name)
    name = op.name
    if name == "stablehlo.custom_call":
        name += f" @{ir.StringAttr(op.attributes['call_target_name']).value}"
    reason = refused_reason(op)
    if reason is not None:
        done = ";" in reason  # the reason says what to do
        return Refusal(
            name, module_path(op), reason, "" if done else form.suggestion if form else _ANY_NUMBER
        )
    if form is not None and form.holds(op):
        return Refusal(name, module_path(op), form.found, form.suggestion)
    for result in op.results:
        element = str(ir.RankedTensorType(result.type).element_type) if _is_tensor(result.type) else ""
        for prefix, suggestion in _TYPES.items():
            if element.startswith(prefix) and not element[len(prefix) :][:1].isdigit():
                return Refusal(name, module_path(op), f"a value of type {element}", suggestion)
    return None


def _is_tensor(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType)


def _is_dynamic(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and not kind.has_static_shape


def _run(program: Program) -> bool:
    refusals = verify_supported(program.module.operation)
    if refusals:
        listed = "\n".join(f"- {refusal}" for refusal in refusals)
        raise CompileError(f"{len(refusals)} operations cannot be compiled:\n{listed}")
    return False


PASS = Pass(
    name="verify-supported",
    requires="legalize-dynamism",
    ensures="nothing that IREE is known to refuse is left, or one CompileError lists all of it",
    run=_run,
)
