"""Feature crosses against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from serving.errors import InvalidRequestError
from serving.host.operators import OPERATORS
from tests.host.comparison import EMPTY, Case, Cases, random_strings, run_cases, strings
from tests.host.test_ragged import splits
from tests.host.test_sparse import sparse

_ROWS = 4
_HASH_KEY = 0xDECAFCAFFE


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "string":
        return random_strings(rng, shape)
    return rng.integers(-(2**62), 2**62, shape)


def _columns(rng: np.random.Generator, sparse_types: list[str], dense_types: list[str]) -> tuple[list, ...]:
    indices, found, shapes = [], [], []
    for dtype in sparse_types:
        at, _, shape = sparse(rng, (_ROWS, 3), "int8")
        indices.append(at)
        found.append(_values(rng, (len(at),), dtype))
        shapes.append(shape)
    dense = [_values(rng, (_ROWS, int(rng.integers(1, 3))), dtype) for dtype in dense_types]
    return indices, found, shapes, dense


_KINDS = [
    (["string"], []),
    (["string", "int64"], []),
    (["int64", "int64"], ["string"]),
    (["string"], ["int64", "string"]),
    ([], ["string", "string", "int64"]),
    ([], ["int64"]),
]


def _v1(rng: np.random.Generator) -> Cases:
    for sparse_types, dense_types in _KINDS:
        inputs = _columns(rng, sparse_types, dense_types)
        for buckets in (0, 1, 1000):
            for key in (_HASH_KEY, 0, -5):
                # Hashed columns are int64 inside; the feature columns of TensorFlow hash strings before.
                attrs = {"hashed_output": True, "num_buckets": buckets, "hash_key": key}
                yield Case(inputs, {**attrs, "out_type": "int64", "internal_type": "int64"})
        attrs = {"hashed_output": False, "num_buckets": 0, "hash_key": 0}
        yield Case(inputs, {**attrs, "out_type": "string", "internal_type": "string"})


def _v2(rng: np.random.Generator) -> Cases:
    for sparse_types, dense_types in _KINDS:
        for separator in (b"_X_", b"", "é".encode()):
            yield Case((*_columns(rng, sparse_types, dense_types), strings(separator, shape=())))


def _hashed(rng: np.random.Generator) -> Cases:
    for sparse_types, dense_types in _KINDS:
        inputs = _columns(rng, sparse_types, dense_types)
        for buckets in (0, 7, 2**40):
            for strong in (False, True):
                if strong and "int64" in dense_types:
                    continue  # crashes TensorFlow
                salt = rng.integers(-(2**62), 2**62, 2)
                yield Case((*inputs, np.array(buckets), np.array(strong), salt))


def _ragged(rng: np.random.Generator) -> Cases:
    for order in ("R", "RS", "SRD", "DD", "RRD", "S"):
        for dtype in ("string", "int64"):
            for index in ("int32", "int64"):
                rows = [splits(rng, _ROWS, 3, index) for _ in range(order.count("R"))]
                ragged = [_values(rng, (int(s[-1]),), dtype) for s in rows]
                rest = _columns(rng, [dtype] * order.count("S"), [dtype] * order.count("D"))
                inputs = (ragged, rows, *rest)
                common = {"input_order": order, "out_row_splits_type": index}
                for buckets in (0, 100):
                    attrs = {"hashed_output": True, "num_buckets": buckets, "hash_key": _HASH_KEY}
                    yield Case(inputs, {**common, **attrs, "out_values_type": "int64"})
                attrs = {"hashed_output": False, "num_buckets": 0, "hash_key": 0}
                yield Case(inputs, {**common, **attrs, "out_values_type": "string"})


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "SparseCross": _v1,
    "SparseCrossV2": _v2,
    "SparseCrossHashed": _hashed,
    "RaggedCross": _ragged,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))


def test_strong_hash_of_dense_integers_is_refused() -> None:
    types = {"sparse_types": [], "dense_types": ["int64"]}
    inputs = np.ones((1, 1), np.int64), np.array(7), np.array(True), np.array([1, 2])
    with pytest.raises(InvalidRequestError, match="strong hash of dense integers"):
        OPERATORS["sparse_cross_hashed"](EMPTY, *inputs, **types)
