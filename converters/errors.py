"""Errors of the converter."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxrank.errors import JaxrankError


class ConversionError(JaxrankError):
    """The model cannot be converted; nothing was written."""

    exit_code = 2


@dataclass(frozen=True)
class Unsupported:
    """One op that has no place in a bundle, and what its owner can do about it."""

    name: str
    op: str
    advice: str


class UnsupportedOpsError(ConversionError):
    """All unsupported ops of a model at once."""

    def __init__(self, found: Sequence[Unsupported]):
        self.found = tuple(found)
        lines = [f"  {u.op:<24} {u.name}\n  {'':<24} {u.advice}" for u in self.found]
        super().__init__(
            f"{len(self.found)} ops cannot be converted; nothing was written:\n" + "\n".join(lines)
        )
