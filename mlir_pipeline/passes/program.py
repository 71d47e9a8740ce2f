# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What passes work on, what a pass is, and what one refuses."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from iree.compiler import ir

from mlir_pipeline.jaxpr import module_of

# Names in a location are quoted; so are file names, which a line number follows.
_NAME = re.compile(r'"([^"]*)"(?!:\d)')
_POSITION = re.compile(r":(\d+):\d+\)*$")
# Where IREE's compiler found something in what it read from standard input.
_STDIN = re.compile(r"<stdin>:(\d+):\d+:")
_MODULE_COMMENT = "  // in module "
_REFUSED = "jaxrank.refused"


@dataclass(frozen=True)
class Refusal:
    """An operation that cannot be compiled."""

    operation: str
    """Name of the op, with the target of a custom call."""
    module: str
    """Path of the Flax module whose call made it ("experts.0.hidden"); empty for the model's own body."""
    found: str
    """What about it cannot be compiled."""
    suggestion: str
    """What to do; empty where `found` says it."""

    def __str__(self) -> str:
        place = f"in module {self.module}" if self.module else "in the model's own body"
        return "; ".join(filter(None, (f"{self.operation} {place}: {self.found}", self.suggestion)))


@dataclass
class Program:
    """A module on its way from StableHLO to IREE."""

    module: ir.Module
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """Weights that a pass moved out of the module, by parameter name."""

    def functions(self) -> list[ir.Operation]:
        """Every `func.func` of the module."""
        operations = [op.operation for op in self.module.body.operations]
        return [op for op in operations if op.name == "func.func"]

    def text(self, *, weights: bool = True) -> str:
        """The module as text without locations, which name files of the machine; without `weights`, constants
        of more than 16 elements are left out."""
        return self.module.operation.get_asm(
            enable_debug_info=False, large_elements_limit=None if weights else 16
        )

    def text_with_modules(self) -> str:
        """`text()` with the Flax module of each operation in a comment at the end of its line, where
        `modules_in_diagnostics` finds it: what IREE's compiler says of a line then names the module."""
        text = self.text()
        operations: list[ir.Operation] = []
        printed: list[ir.Operation] = []
        walk(self.module.operation, operations.append)
        # Parsed again, each operation knows its line; the order is the same.
        parsed = ir.Module.parse(text, self.module.context)
        walk(parsed.operation, printed.append)
        lines = text.split("\n")
        for operation, at in zip(operations, printed, strict=True):
            position = _POSITION.search(str(at.location))
            path = module_path(operation)
            if position is None or not path:
                continue
            number = int(position[1]) - 1
            if _MODULE_COMMENT not in lines[number]:  # an operation within another one's line
                lines[number] += f"{_MODULE_COMMENT}{path}"
        return "\n".join(lines)


@dataclass(frozen=True)
class Pass:
    """One step over a program."""

    name: str
    requires: str
    """What must hold before it."""
    ensures: str
    """What holds after it."""
    run: Callable[[Program], bool]
    """Changes the program; returns whether it did. Raises `CompileError`."""


def module_path(op: ir.Operation) -> str:
    """Path of the Flax module that an operation's location names; empty for the model's own body."""
    return module_of(" ".join(_NAME.findall(str(op.location))))


def modules_in_diagnostics(diagnostics: str, given: str, compiled: str) -> str:
    """The diagnostics of IREE's compiler with the Flax module after each position in its input.

    `given` is `text_with_modules`; `compiled` is what the compiler read: the same lines, with others before
    the module where a target's attributes were added to it.
    """
    lines = given.split("\n")
    moved = _first_line(compiled) - _first_line(given)

    def named(position: re.Match[str]) -> str:
        number = int(position[1]) - 1 - moved
        line = lines[number] if 0 <= number < len(lines) else ""
        _, found, path = line.partition(_MODULE_COMMENT)
        return f"{position[0]} in module {path}:" if found else position[0]

    return _STDIN.sub(named, diagnostics)


def _first_line(text: str) -> int:
    numbered = enumerate(text.split("\n"))
    return next((i for i, line in numbered if line.lstrip().startswith(("module", "func.func"))), 0)


def mark_refused(op: ir.Operation, reason: str) -> None:
    """Leaves a note on an operation that a pass cannot handle; `verify_supported` reports it with all
    others."""
    op.attributes[_REFUSED] = ir.StringAttr.get(reason, op.context)


def refused_reason(op: ir.Operation) -> str | None:
    """The note that a pass left on an operation."""
    return ir.StringAttr(op.attributes[_REFUSED]).value if _REFUSED in op.attributes else None


def walk(root: ir.Operation, visit: Callable[[ir.Operation], None]) -> None:
    """Visits every operation below `root`, in order."""

    def step(op: ir.Operation) -> ir.WalkResult:
        visit(op)
        return ir.WalkResult.ADVANCE

    root.walk(step, ir.WalkOrder.PRE_ORDER)
