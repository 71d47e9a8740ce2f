# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""The passes in order, and the one loop that runs them."""

from collections.abc import Sequence

from iree.compiler import ir

from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.passes import (
    drop_shape_assertions,
    externalize_weights,
    refuse_custom_calls,
    refuse_wide_types,
    remove_dead_code,
    verify_supported,
)
from mlir_pipeline.passes.legalize import legalize_dynamism
from mlir_pipeline.passes.program import Pass, Program

PORTABLE: tuple[Pass, ...] = (
    drop_shape_assertions.PASS,
    remove_dead_code.PASS,
    externalize_weights.PASS,
)
"""After these a program is what the bundle stores: StableHLO for any compiler."""

FOR_IREE: tuple[Pass, ...] = (
    refuse_custom_calls.PASS,
    refuse_wide_types.PASS,
    legalize_dynamism.PASS,
    verify_supported.PASS,
)
"""After these IREE takes it."""

PASSES = PORTABLE + FOR_IREE


def run_passes(program: Program, passes: Sequence[Pass], dump: IrDump) -> None:
    """Runs passes in order, verifies the module after each, and dumps it where it changed.

    Raises `CompileError`: what a pass refuses, or a module that is not valid after it.
    """
    for step in passes:
        changed = step.run(program)
        if changed:
            dump.write(f"{step.name.replace('-', '_')}.mlir", program.text(weights=False))
        try:
            valid = program.module.operation.verify()
        except ir.MLIRError as error:
            raise CompileError(
                f"the module is not valid after {step.name}; please report this model: {error}"
            ) from error
        if not valid:
            raise CompileError(f"the module is not valid after {step.name}; please report this model")
