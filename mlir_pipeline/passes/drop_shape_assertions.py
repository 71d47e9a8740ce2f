# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Removes JAX's run-time checks of dimension variables.

The server checks the number of candidates before a request reaches a module; IREE ignores the checks, but the
arithmetic that feeds them would stay as work for the device.
"""

from iree.compiler import ir

from mlir_pipeline.passes.program import Pass, Program, walk


def drop_shape_assertions(module: ir.Operation) -> bool:
    """Erases every `shape_assertion` custom call. Returns whether it found any."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> None:
        if op.name != "stablehlo.custom_call":
            return
        if ir.StringAttr(op.attributes["call_target_name"]).value == "shape_assertion":
            found.append(op)

    walk(module, visit)
    for op in found:
        op.erase()
    return bool(found)


def _run(program: Program) -> bool:
    return drop_shape_assertions(program.module.operation)


PASS = Pass(
    name="drop-shape-assertions",
    requires="a module of functions",
    ensures="no shape_assertion custom call is left",
    run=_run,
)
