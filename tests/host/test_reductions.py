"""Reductions, running sums, extremes and histograms against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import FLOATS, NUMBERS, Case, Cases, run_cases, values
from tests.host.comparison import values as any_values

_SUM = 1e-6  # TensorFlow adds in another order


def _reduction(dtypes: tuple[str, ...]) -> Callable[[np.random.Generator], Cases]:
    def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Floats of one sign: a sum near 0 of large values has no relative error to speak of."""
        found = any_values(rng, shape, dtype)
        return np.asarray(np.abs(found) if dtype in FLOATS else found)

    def cases(rng: np.random.Generator) -> Cases:
        for dtype in dtypes:
            rtol = _SUM if dtype in FLOATS else 0.0
            for axes in ([0], [1, -1], [], [0, 1, 2], [0, 0], [3]):
                for keep in (False, True):
                    for index in (np.int32, np.int64):
                        inputs = (values(rng, (3, 4, 2), dtype), np.array(axes, index))
                        yield Case(inputs, {"keep_dims": keep}, rtol)
            yield Case((values(rng, (0, 2), dtype), np.array([0], np.int32)), {"keep_dims": False})
            yield Case((values(rng, (2, 3), dtype), np.array(-1, np.int32)), {"keep_dims": False}, rtol)
            yield Case((values(rng, (), dtype), np.zeros(0, np.int32)), {"keep_dims": True})
        if "float32" in dtypes:
            special = np.array([[1, np.nan, 2], [np.inf, -np.inf, 0], [np.inf, 1, 2]], np.float32)
            yield Case((special, np.array([1], np.int32)), {"keep_dims": False})

    return cases


def _arg(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool"):
        for axis in (0, 1, -1, 2):
            for out in ("int32", "int64"):
                yield Case((values(rng, (5, 6), dtype), np.array(axis, np.int32)), {"output_type": out})
    x = np.array([[1, np.nan, 3, np.nan], [np.nan] * 4, [np.inf, 1, np.inf, -np.inf]], np.float32)
    yield Case((x, np.array(1, np.int32)), {"output_type": "int64"})
    yield Case((np.zeros((0, 3), np.float32), np.array(0, np.int32)), {"output_type": "int64"})
    yield Case((np.zeros((0, 3), np.float32), np.array(1, np.int32)), {"output_type": "int64"})


def _running(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        for axis in (0, -1, 2):
            for exclusive in (False, True):
                for reverse in (False, True):
                    attrs = {"exclusive": exclusive, "reverse": reverse}
                    yield Case((values(rng, (3, 4), dtype), np.array(axis, np.int32)), attrs, 1e-6)
    yield Case((values(rng, (0, 4), "int32"), np.array(0, np.int32)), attrs)


def _top_k(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        for k in (0, 1, 3, 6, 7, -1):
            for index in ("int32", "int64"):
                inputs = (values(rng, (4, 6), dtype), np.array(k, np.int32))
                yield Case(inputs, {"sorted": True, "index_type": index})
    yield Case((values(rng, (), "int32"), np.array(0, np.int32)), {"sorted": True, "index_type": "int32"})


def _in_top_k(rng: np.random.Generator) -> Cases:
    predictions = rng.integers(0, 4, (6, 5)).astype(np.float32)
    predictions[0, 0] = np.nan
    predictions[1, 1] = np.inf
    for k in (0, 1, 3):
        for index in (np.int32, np.int64):
            targets = np.array([0, 1, 2, 3, 4, 7], index)
            yield Case((predictions, targets, np.array(k, index)))


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    none = [np.zeros(0, dtype) for dtype in ("int32", "int64", "float32", "float64")]
    return [*none, rng.integers(0, 5, shape).astype(np.float32), rng.integers(0, 5, shape)]


def _bincount(rng: np.random.Generator) -> Cases:
    for weights in _weights(rng, (9,)):
        yield Case((rng.integers(0, 6, 9).astype(np.int32), np.array(4, np.int32), weights))
    yield Case((np.array([1, -1], np.int32), np.array(4, np.int32), np.zeros(0, np.float32)))
    yield Case((np.zeros(0, np.int32), np.array(3, np.int32), np.zeros(0, np.float32)))
    yield Case((np.array([1], np.int32), np.array(-1, np.int32), np.zeros(0, np.float32)))


def _dense_bincount(rng: np.random.Generator) -> Cases:
    for index in (np.int32, np.int64):
        for shape in ((9,), (3, 4)):
            for weights in _weights(rng, shape):
                for binary in (False, True):
                    inputs = (rng.integers(0, 6, shape).astype(index), np.array(4, index), weights)
                    yield Case(inputs, {"binary_output": binary})
    attrs = {"binary_output": False}
    yield Case((np.array([[1, -1]]), np.array(4), np.zeros(0, np.float32)), attrs)
    yield Case((np.zeros((2, 0), np.int64), np.array(4), np.zeros(0, np.float32)), attrs)


def _sparse_bincount(rng: np.random.Generator) -> Cases:
    rows = np.sort(rng.integers(0, 3, 8))
    indices = np.column_stack([rows, np.arange(8)])
    for weights in _weights(rng, (8,)):
        for binary in (False, True):
            inputs = (indices, rng.integers(0, 6, 8), np.array([3, 8]), np.array(4), weights)
            yield Case(inputs, {"binary_output": binary})
    flat = (np.arange(5)[:, None], rng.integers(0, 3, 5), np.array([5]), np.array(4), np.zeros(0, np.float32))
    yield Case(flat, {"binary_output": False})
    bad = (np.array([[3, 0]]), np.array([1]), np.array([3, 8]), np.array(4), np.zeros(0, np.float32))
    yield Case(bad, {"binary_output": False})


def _ragged_bincount(rng: np.random.Generator) -> Cases:
    for splits in ([0, 3, 3, 8], [0, 8], [0, 2, 7], [1, 8]):
        for weights in _weights(rng, (8,)):
            for binary in (False, True):
                inputs = (np.array(splits), rng.integers(0, 6, 8), np.array(4), weights)
                yield Case(inputs, {"binary_output": binary})


def _bucketize(rng: np.random.Generator) -> Cases:
    for dtype in ("int32", "int64", "float32", "float64"):
        for boundaries in ([0.0, 1.5, 3.0], [], [0.1, 0.2, 0.3], [2.0]):
            yield Case((values(rng, (4, 5), dtype),), {"boundaries": boundaries})
    edges = np.array([0.1, 0.2, np.nan, np.inf, -np.inf])
    for dtype in FLOATS:
        yield Case((edges.astype(dtype),), {"boundaries": [0.1, 0.2]})
    yield Case((np.array([2**24, 2**24 + 1, 2**24 + 2]),), {"boundaries": [float(2**24 + 1)]})


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "Sum": _reduction(NUMBERS),
    "Mean": _reduction(NUMBERS),
    "Prod": _reduction(NUMBERS),
    "Max": _reduction(NUMBERS),
    "Min": _reduction(NUMBERS),
    "All": _reduction(("bool",)),
    "Any": _reduction(("bool",)),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Cumsum": _running,
    "Cumprod": _running,
    "TopKV2": _top_k,
    "InTopKV2": _in_top_k,
    "Bincount": _bincount,
    "DenseBincount": _dense_bincount,
    "SparseBincount": _sparse_bincount,
    "RaggedBincount": _ragged_bincount,
    "Bucketize": _bucketize,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
