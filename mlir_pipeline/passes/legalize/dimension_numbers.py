# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Dimension numbers of gathers, and where each element of a result is read."""

import re
from dataclasses import dataclass

from iree.compiler import ir


@dataclass(frozen=True)
class GatherNumbers:
    """StableHLO's `#stablehlo.gather` attribute; names as in its specification."""

    offset_dims: list[int]
    collapsed_slice_dims: list[int]
    operand_batching_dims: list[int]
    start_indices_batching_dims: list[int]
    start_index_map: list[int]
    index_vector_dim: int


def numbers_of(op: ir.Operation) -> GatherNumbers:
    """The dimension numbers of a `gather` or `dynamic_gather`."""
    text = str(op.attributes["dimension_numbers"])
    vector = re.search(r"index_vector_dim = (\d+)", text)
    return GatherNumbers(
        offset_dims=integers(text, "offset_dims"),
        collapsed_slice_dims=integers(text, "collapsed_slice_dims"),
        operand_batching_dims=integers(text, "operand_batching_dims"),
        start_indices_batching_dims=integers(text, "start_indices_batching_dims"),
        start_index_map=integers(text, "start_index_map"),
        index_vector_dim=int(vector.group(1)) if vector else 0,
    )


def integers(text: str, field: str) -> list[int]:
    """`field = [1, 2]` of a printed attribute; none where it is left out."""
    found = re.search(rf"\b{field} = \[([\d, ]*)\]", text)
    return [int(d) for d in found.group(1).split(",") if d.strip()] if found else []
