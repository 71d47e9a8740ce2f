# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Merges equal operations and removes those that nothing reads: MLIR's own passes."""

from iree.compiler import passmanager

from mlir_pipeline.passes.program import Pass, Program


def _run(program: Program) -> bool:
    before = program.text()
    with program.module.context:
        passmanager.PassManager.parse("builtin.module(symbol-dce,cse)").run(program.module.operation)
    return program.text() != before


PASS = Pass(
    name="remove-dead-code",
    requires="calls inlined",
    ensures="no two equal pure operations in one block, none without a reader, no unused private function",
    run=_run,
)
