# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Lowers the dynamic StableHLO ops that IREE 3.13 refuses or compiles badly to `tensor` and `linalg`.

Why: StableHLO's lowering drops the `known_*_dimensions` of dynamic broadcasts and then refuses their `?`
operands (https://github.com/openxla/stablehlo/issues/2833, https://github.com/iree-org/iree/issues/5685), has
none for dynamic reshapes and dot_generals, and turns i32 shape arithmetic into device dispatches with
read-backs. `tests/mlir_pipeline/passes/test_verify_supported.py` notices when that changes.
"""

from iree.compiler import ir
from iree.compiler.dialects import arith, tensor

from mlir_pipeline.passes.legalize.barriers import barrier
from mlir_pipeline.passes.legalize.broadcasts import broadcast, iota
from mlir_pipeline.passes.legalize.concatenates import concatenate
from mlir_pipeline.passes.legalize.dots import dot_general
from mlir_pipeline.passes.legalize.gathers import gather
from mlir_pipeline.passes.legalize.lowering import Lowering, Rule, is_dynamic
from mlir_pipeline.passes.legalize.reductions import reduce
from mlir_pipeline.passes.legalize.reshapes import reshape
from mlir_pipeline.passes.legalize.sizes import Sizes
from mlir_pipeline.passes.legalize.slices import dynamic_pad, dynamic_update_slice, real_dynamic_slice
from mlir_pipeline.passes.program import Pass, Program, mark_refused, refused_reason

RULES: dict[str, Rule] = {
    "stablehlo.concatenate": concatenate,
    "stablehlo.dynamic_broadcast_in_dim": broadcast,
    "stablehlo.dynamic_gather": gather,
    "stablehlo.dynamic_iota": iota,
    "stablehlo.dynamic_pad": dynamic_pad,
    "stablehlo.dynamic_reshape": reshape,
    "stablehlo.dynamic_update_slice": dynamic_update_slice,
    "stablehlo.dot_general": dot_general,
    "stablehlo.gather": gather,
    "stablehlo.optimization_barrier": barrier,
    "stablehlo.real_dynamic_slice": real_dynamic_slice,
    "stablehlo.reduce": reduce,
}
"""The rule of each op that has a dynamic operand or result."""


def legalize_dynamism(function: ir.Operation) -> bool:
    """Runs the pass on one `func.func`. Returns whether anything changed.

    An op that its rule cannot lower stays, marked with the reason; what is computed from its result stays
    too.
    """
    block = function.regions[0].blocks[0]
    with function.context, ir.Location.unknown():
        if not len(block.arguments):
            return False
        last = block.arguments[len(block.arguments) - 1]
        if not is_dynamic(last.type):
            return False
        with ir.InsertionPoint.at_block_begin(block):
            count = tensor.dim(last, arith.constant(ir.IndexType.get(), 0))
        _lower_block(Lowering(Sizes(count)), block, set())
        _erase_dead(block)
    return True


def _lower_block(lowering: Lowering, block: ir.Block, unknown: set[ir.Value]) -> None:
    """Lowers the ops of a block in order. `unknown` collects the results of refused ops, and of what is
    computed from them: their sizes are not known, which is no second reason to refuse."""
    for op in list(block.operations):
        operation = op.operation
        if refused_reason(operation) is not None or any(v in unknown for v in operation.operands):
            unknown.update(operation.results)
        for region in operation.regions:
            for inner in region.blocks:
                _lower_block(lowering, inner, unknown)
        rule = RULES.get(operation.name)
        touches = any(is_dynamic(v.type) for v in (*operation.results, *operation.operands))
        if rule is None or not touches or any(v in unknown for v in operation.results):
            continue
        with ir.InsertionPoint(op), op.location:
            try:
                _require_signless(operation)
                value = rule(lowering, operation)
            except ValueError as error:
                mark_refused(operation, str(error))
                unknown.update(operation.results)
                continue
        if value is not None:
            operation.results[0].replace_all_uses_with(value)
            operation.erase()


def _require_signless(op: ir.Operation) -> None:
    """IREE gives unsigned tensors a signless type in StableHLO ops, but not in the `linalg` ops of a rule."""
    for value in (*op.operands, *op.results):
        element = ir.RankedTensorType(value.type).element_type
        if isinstance(element, ir.IntegerType) and element.is_unsigned:
            raise ValueError(f"a value of type {element}; use int32")


def _erase_dead(block: ir.Block) -> None:
    """Shape arithmetic that fed the lowered ops."""
    for op in reversed(list(block.operations)):
        results = op.operation.results
        if len(results) and all(not list(r.uses) for r in results) and not refused_reason(op.operation):
            op.operation.erase()
            continue
        for region in op.operation.regions:
            for inner in region.blocks:
                _erase_dead(inner)


def _run(program: Program) -> bool:
    return any([legalize_dynamism(function) for function in program.functions()])


PASS = Pass(
    name="legalize-dynamism",
    requires="calls inlined; every ? is a polynomial of the number of candidates, dimension 0 of the last "
    "argument",
    ensures="no dynamic op of RULES is left but those marked as refused; sizes are index arithmetic on one "
    "tensor.dim",
    run=_run,
)
