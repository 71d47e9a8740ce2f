# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What is in a dispatch: the Flax modules and primitives that IREE fused into it.

The towers are lowered again with their source locations, and IREE's compiler is stopped once it has formed
its dispatches (well under a second: code generation is what takes long). Dispatches have the same names there
as in the compiled module.
"""

import re
from collections import Counter
from dataclasses import dataclass

import iree.compiler.tools as iree_tools
from iree.compiler import ir

from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.iree import IreeTarget, compiler_input
from mlir_pipeline.jaxpr import module_of
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import PASSES, run_passes
from mlir_pipeline.split import Towers

# A primitive's name stack in a location: "jit(jaxpr_as_fun)/vmap(@f1)/add".
_NAME_STACK = re.compile(r'"(jit\([^"]*)"')
_COPIES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type")


@dataclass(frozen=True)
class DispatchSource:
    """What one dispatch computes. Both are in the order of the program, without repetition."""

    modules: tuple[str, ...]
    """Paths of Flax modules; "" is the model's own body."""
    primitives: tuple[str, ...]


@dataclass(frozen=True)
class Dispatches:
    """The dispatches of a compiled program."""

    sources: dict[str, DispatchSource]
    """By the name that the profiler shows."""
    calls: dict[str, dict[str, int]]
    """For each function, how often it calls each dispatch; one within a loop counts once."""


def dispatches(towers: Towers, target: IreeTarget) -> Dispatches:
    """The dispatches that IREE forms of the towers for a target.

    Raises `CompileError` where they cannot be lowered.
    """
    program = Program(lower(towers, ir.Context()))
    run_passes(program, PASSES, IrDump(None))
    text, flags = compiler_input(
        program.module.operation.get_asm(enable_debug_info=True), target, locations=True
    )
    # Weights stay out of the printed program; its names and locations are all that is read.
    flags = [*flags, "--compile-to=flow", "--mlir-print-debuginfo", "--mlir-elide-elementsattrs-if-larger=4"]
    try:
        formed = iree_tools.compile_str(text, extra_args=flags)
    except iree_tools.CompilerToolError as error:
        raise CompileError(f"IREE cannot form the dispatches for {target.name}:\n{error}") from error
    return _read((formed or b"").decode())


def _read(text: str) -> Dispatches:
    sources: dict[str, DispatchSource] = {}
    calls: dict[str, dict[str, int]] = {}
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        program = ir.Module.parse(text)
        for op in program.body.operations:
            operation = op.operation
            if operation.name == "flow.executable":
                sources.update(_executable(operation))
            elif "sym_name" in operation.attributes and operation.regions:
                found = Counter(_entry(o) for o in _walk(operation) if o.name == "flow.dispatch")
                if found:
                    calls[ir.StringAttr(operation.attributes["sym_name"]).value] = dict(found)
    return Dispatches(sources, calls)


def _executable(executable: ir.Operation) -> dict[str, DispatchSource]:
    functions = [o for o in _walk(executable) if o.name in ("func.func", "util.func")]
    return {ir.StringAttr(f.attributes["sym_name"]).value: _source(f) for f in functions}


def _source(function: ir.Operation) -> DispatchSource:
    modules: dict[str, None] = {}
    primitives: dict[str, None] = {}
    for operation in _walk(function):
        # What loads and stores a dispatch's operands has the location of what made them.
        if operation.name.partition(".")[0] not in ("linalg", "arith", "math", "tensor"):
            continue
        for stack in _NAME_STACK.findall(str(operation.location))[:1]:
            scope, found, primitive = stack.rpartition("/")
            if not found:
                continue
            modules[module_of(scope)] = None
            primitives[primitive] = None
    told = tuple(p for p in primitives if p not in _COPIES)
    return DispatchSource(tuple(modules), told or tuple(primitives))


def _entry(dispatch: ir.Operation) -> str:
    (symbol,) = ir.ArrayAttr(dispatch.attributes["entry_points"])
    return str(symbol).rpartition("@")[2].strip('"')


def _walk(operation: ir.Operation) -> list[ir.Operation]:
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        found.append(op)
        return ir.WalkResult.ADVANCE

    operation.walk(visit)
    return found
