"""Calls of every operator with inputs that no honest client sends: the cases of the comparison with
TensorFlow, damaged at random."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.python.framework import op_def_registry

from serving.host.operators import OPERATORS, operator_name
from tests.host import (
    comparison,
    test_arrays,
    test_crosses,
    test_elementwise,
    test_example_parsing,
    test_indexing,
    test_ragged,
    test_reductions,
    test_segments,
    test_sparse,
    test_strings,
)

FAMILIES = (
    test_arrays,
    test_crosses,
    test_elementwise,
    test_example_parsing,
    test_indexing,
    test_ragged,
    test_reductions,
    test_segments,
    test_sparse,
    test_strings,
)
_INTEGERS = (-1, 0, 1, 2, -(2**31), 2**31, 2**32 + 1, 2**62, -(2**63), 2**63 - 1)
_FLOATS = (np.nan, np.inf, -np.inf, 1e300, -1e-300, 2.0**63)
_TEXTS = (b"", b"\xff", b"\0", b"a" * 300, b"\x0a\xff\xff\xff\xff\x0f", b"1e999999", b"nan(", b"\xe2\x82")


def write_calls(path: Path, seed: int, per_operator: int) -> int:
    """Writes `(operator, inputs, attributes, outputs, constant inputs)` of every call; how many."""
    with np.errstate(all="ignore"):
        calls = list(_calls(np.random.default_rng(seed), per_operator))
    path.write_bytes(pickle.dumps(calls))
    return len(calls)


def _calls(rng: np.random.Generator, per_operator: int) -> Iterator[tuple]:
    for family in FAMILIES:
        for op_type, cases in family.CASES.items():
            definition: Any = op_def_registry.get(op_type)
            known = list(cases(np.random.default_rng(0)))
            for _ in range(per_operator):
                case = known[rng.integers(len(known))]
                flat = comparison.flat_inputs(case)
                op, constant = operator_name(op_type), comparison.CONSTANTS.get(op_type, ())
                attrs = comparison.our_attributes(OPERATORS[op], definition, case)
                outputs = comparison.number_of_outputs(definition, case)
                damaged = [v if i in constant else _damaged(v, rng) for i, v in enumerate(flat)]
                yield op, damaged, attrs, outputs, constant


def _damaged(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with other values, another shape, another dtype, or as it is."""
    kind = rng.integers(6)
    if kind == 0:
        return value.reshape(-1) if value.ndim != 1 else value.reshape(1, -1)
    if kind == 1:
        return value[:0] if value.ndim else value.reshape(1)
    if kind == 2 and value.size:
        return np.concatenate([value.ravel()] * 2)
    if kind == 3 and value.dtype.kind in "iuf":
        return value.astype(rng.choice(["int32", "int64", "uint64", "float32", "float64", "int8", "bool"]))
    if kind <= 4 and value.size:
        out = value.copy().reshape(-1)
        at = rng.integers(out.size)
        if value.dtype == object:
            out[at] = _TEXTS[rng.integers(len(_TEXTS))]
        elif value.dtype.kind == "f":
            out[at] = _FLOATS[rng.integers(len(_FLOATS))]
        elif value.dtype.kind in "iu":
            low, high = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
            out[at] = min(max(_INTEGERS[rng.integers(len(_INTEGERS))], low), high)
        return out.reshape(value.shape)
    return value
