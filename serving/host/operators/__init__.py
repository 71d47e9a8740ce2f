"""The host operators: each a function from NumPy arrays to NumPy arrays that does exactly what TensorFlow's
op does on a CPU.

`registry.py` states the calling convention; the other files hold one family each and end with its table.
`OPERATORS` has them all by name: `operator_name` of the TensorFlow op that one mirrors, or a name of our own
for a fused one (`lookups.py`). `docs/host_program.md` lists them for people.
"""

from serving.host.operators import (
    arrays,
    crosses,
    elementwise,
    example_parsing,
    indexing,
    lookups,
    numbers,
    ragged,
    reductions,
    regular_expressions,
    segments,
    sparse,
    strings,
)
from serving.host.operators.registry import Lookups, Operator, decode_constant, operator_name

FUSED = frozenset(lookups.OPERATORS) | {"hash_bucket_fast"}
"""Operators that mirror no TensorFlow op."""

OPERATORS: dict[str, Operator] = {
    name: operator
    for family in (
        arrays,
        elementwise,
        reductions,
        indexing,
        segments,
        sparse,
        ragged,
        crosses,
        strings,
        numbers,
        regular_expressions,
        example_parsing,
        lookups,
    )
    for name, operator in family.OPERATORS.items()
}

__all__ = ["FUSED", "OPERATORS", "Lookups", "Operator", "decode_constant", "operator_name"]
