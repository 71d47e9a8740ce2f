"""The schema of `host_program.json`: the sparse half of a model as data, a short list of host operators.

A host program turns the raw features of one request into two *feature blocks* of float32, one row per scope
row: `request` is `[1, width]`, `candidate` is `[N, width]`. Tensors are named; an operator reads named
tensors and writes one. Tensors keep TensorFlow's layout with the leading row dimension, so an operator runs
unchanged on one row or on thousands. The scope of a tensor is `request` when everything it was computed from
is.
"""

from typing import Any, Literal

import msgspec

from jaxrank.manifest import Scope

HOST_SCHEMA_VERSION = 1


class HostOperator(msgspec.Struct, frozen=True, kw_only=True):
    """One step: `op` names an entry of `serving.host.operators`, `inputs` and `output` name tensors.

    `name` is the TensorFlow op it stands for, for error messages. `attrs` are JSON values; constants of the
    graph are attributes, never inputs.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    scope: Scope
    attrs: dict[str, Any] = {}


class BlockColumn(msgspec.Struct, frozen=True, kw_only=True):
    """Where one tensor lies in its scope's feature block: columns `[offset, offset + prod(shape))`,
    row-major."""

    tensor: str
    feature: str
    """Readable name of the value; the keyword argument of the Flax module that receives it."""
    scope: Scope
    offset: int
    shape: tuple[int, ...]
    """Shape of one row, without the leading dimension."""
    dtype: Literal["float32", "bool"]
    """What the dense program sees; a bool travels as 0.0 / 1.0."""


class HostProgram(msgspec.Struct, frozen=True, kw_only=True):
    """`host_program.json`."""

    schema_version: int
    operators: tuple[HostOperator, ...]
    columns: tuple[BlockColumn, ...]

    def width(self, scope: Scope) -> int:
        """Columns of the scope's feature block (float32 values per row)."""
        ends = [c.offset + _size(c.shape) for c in self.columns if c.scope == scope]
        return max(ends, default=0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
