# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Refuses custom calls: IREE has no way to call another library's kernel.

They are what JAX emits for linear algebra (LAPACK), FFTs and foreign kernels.
"""

from iree.compiler import ir

from mlir_pipeline.passes.program import Pass, mark_refused, walk


def refuse_custom_calls(module: ir.Operation) -> bool:
    """Marks every custom call with its target. Returns whether it found any."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> None:
        if op.name == "stablehlo.custom_call":
            target = ir.StringAttr(op.attributes["call_target_name"]).value
            mark_refused(op, f"it calls {target!r}, code that is not part of the module")
            found.append(op)

    walk(module, visit)
    return bool(found)


PASS = Pass(
    name="refuse-custom-calls",
    requires="shape assertions dropped",
    ensures="every custom call is marked as refused",
    run=lambda program: refuse_custom_calls(program.module.operation),
)
