"""The schema of `host_program.json`: the sparse half of a model as data, a short list of host operators.

A host program turns the raw features of one request into two *feature blocks* of 32-bit values, one row per
scope row: `request` is `[1, width]`, `candidate` is `[N, width]`. Tensors are named; an operator reads named
tensors and writes one or more. Tensors keep TensorFlow's layout, so an operator runs unchanged on one row
or on thousands. The scope of a tensor is `request` when everything it was computed from is.
"""

from typing import Any, Literal

import msgspec

from jaxrank.manifest import Scope

HOST_SCHEMA_VERSION = 2

TABLE_PREFIX = "table:"
"""An input `table:<name>` is the whole embedding table of that name."""


class HostOperator(msgspec.Struct, frozen=True, kw_only=True):
    """One step: `op` names an entry of `serving.host.operators`, `inputs` and `outputs` name tensors.

    `name` is the TensorFlow op it stands for, for error messages. `attrs` are JSON values. Constants of the
    graph are never inputs: `constants` has them by their position among the operator's operands, as `{dtype,
    shape, values}`; one with `per_row` too grows by that for every candidate beyond the first.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scope: Scope
    attrs: dict[str, Any] = {}
    constants: dict[str, Any] = {}


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
    dtype: Literal["float32", "bool", "int32"]
    """What the dense program sees. A bool travels as 0.0 / 1.0, an integer as its 32 bits."""


class HostOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output of the signature that the host makes: a label, an id passed through."""

    output: str
    tensor: str
    constant: bool = False
    """Whether it is the same for every request."""


class HostProgram(msgspec.Struct, frozen=True, kw_only=True):
    """`host_program.json`."""

    schema_version: int
    operators: tuple[HostOperator, ...]
    columns: tuple[BlockColumn, ...]
    outputs: tuple[HostOutput, ...] = ()

    def width(self, scope: Scope) -> int:
        """Columns of the scope's feature block (32-bit values per row)."""
        ends = [c.offset + _size(c.shape) for c in self.columns if c.scope == scope]
        return max(ends, default=0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
