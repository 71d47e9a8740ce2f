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
