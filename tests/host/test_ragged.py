"""Ragged tensors against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import NUMBERS, Case, Cases, run_cases, values

_ALL = (*NUMBERS, "bool", "string")
_INDEX = ("int32", "int64")


def splits(rng: np.random.Generator, rows: int, longest: int = 4, dtype: str = "int64") -> np.ndarray:
    return np.concatenate([[0], np.cumsum(rng.integers(0, longest, rows))]).astype(dtype)


def _to_tensor(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for index in _INDEX:
            outer = splits(rng, 5, 4, index)
            outer[-1] += 1
            count = int(outer[-1])
            row_ids = np.repeat(np.arange(5), np.diff(outer)).astype(index)
            found, default = values(rng, (count,), dtype), values(rng, (), dtype)
            for shape in (-1, [-1, -1], [3, 2], [7, 9], [-1, 1]):
                given = np.array(shape, index)
                yield Case((given, found, default, [outer]), {"row_partition_types": ["ROW_SPLITS"]})
                partitions = [np.array(5, index), row_ids]
                types = ["FIRST_DIM_SIZE", "VALUE_ROWIDS"]
                yield Case((given, found, default, partitions), {"row_partition_types": types})
            inner = splits(rng, count, 3, index)
            inner[-1] += 1
            deep = values(rng, (int(inner[-1]), 2), dtype)
            for shape in (-1, [-1, -1, -1, 2], [3, 2, 2, 2], [7, 9, 4, -1], [-1, -1, -1, 3], [-1, -1]):
                both = {"row_partition_types": ["ROW_SPLITS", "ROW_SPLITS"]}
                yield Case((np.array(shape, index), deep, default, [outer, inner]), both)
                yield Case((np.array(shape, index), deep, values(rng, (2,), dtype), [outer, inner]), both)
    one = {"row_partition_types": ["ROW_SPLITS"]}
    none = np.zeros(0, np.float32)
    for rows in ([0], [0, 0], [0, 0, 0]):
        for shape in (-1, [4, 3], [-1, 2]):
            yield Case((np.array(shape), none, np.float32(1), [np.array(rows)]), one)
    yield Case((np.array(-1), np.ones(3), np.array(0.0), [np.array([0, 2])]), one)
    yield Case((np.array(-1), np.ones(3), np.ones(2), [np.array([0, 3])]), one)


def _to_sparse(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for index in _INDEX:
            outer = splits(rng, 5, 4, index)
            inner = splits(rng, int(outer[-1]), 4, index)
            yield Case(([outer], values(rng, (int(outer[-1]),), dtype)))
            yield Case(([outer, inner], values(rng, (int(inner[-1]),), dtype)))
            yield Case(([outer], values(rng, (int(outer[-1]), 2, 3), dtype)))
    for bad in ([0, 2], [1, 3], [0, 4]):
        yield Case(([np.array(bad)], np.ones(3)))
    yield Case(([np.array([0])], np.ones(0)))


def _gather(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for index in _INDEX:
            outer = splits(rng, 5, 4)
            inner = splits(rng, int(outer[-1]), 4)
            flat, deep = values(rng, (int(outer[-1]), 2), dtype), values(rng, (int(inner[-1]),), dtype)
            for shape in ((4,), (2, 3), (0,), ()):
                at = rng.integers(0, 5, shape).astype(index)
                extra = len(shape) - 1
                yield Case(([outer], flat, at), {"OUTPUT_RAGGED_RANK": 1 + extra})
                yield Case(([outer, inner], deep, at), {"OUTPUT_RAGGED_RANK": 2 + extra})
    for bad in (-1, 5):
        yield Case(([outer], flat, np.array([bad])), {"OUTPUT_RAGGED_RANK": 1})


def _range(rng: np.random.Generator) -> Cases:
    for dtype in ("int32", "int64", "float32", "float64"):
        for out in _INDEX:
            step = rng.choice([-2, -1, 1, 3], 6)
            inputs = (rng.integers(-5, 5, 6), rng.integers(-5, 9, 6), step)
            yield Case(tuple(v.astype(dtype) for v in inputs), {"Tsplits": out})
            yield Case((np.array(0, dtype), np.arange(4).astype(dtype), np.array(1, dtype)), {"Tsplits": out})
            yield Case(tuple(np.array(v, dtype) for v in (0, 3, 1)), {"Tsplits": out})
            yield Case(tuple(np.array(v, dtype) for v in (0, 3, 0)), {"Tsplits": out})
            yield Case((np.zeros(2, dtype), np.ones(3, dtype), np.array(1, dtype)), {"Tsplits": out})
            yield Case((np.zeros(0, dtype), np.ones(0, dtype), np.array(1, dtype)), {"Tsplits": out})
    for dtype in ("float32", "float64"):
        start = rng.normal(size=5)
        inputs = (start, start + 7, np.abs(rng.normal(size=5)) + 0.1)
        yield Case(tuple(v.astype(dtype) for v in inputs), {"Tsplits": "int64"})


def _fill_empty(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        rows = np.sort(rng.integers(0, 6, 5))
        yield Case((rows, values(rng, (5,), dtype), np.array(6), values(rng, (), dtype)))
        yield Case((rng.permutation(rows), values(rng, (5,), dtype), np.array(6), values(rng, (), dtype)))
    for bad in (-1, 3):
        yield Case((np.array([bad]), np.ones(1), np.array(3), np.array(0.0)))
    for count in (0, 2):
        yield Case((np.zeros(0, np.int64), np.ones(0), np.array(count), np.array(0.0)))
    yield Case((np.array([0]), np.ones(1), np.array(0), np.array(0.0)))


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "RaggedTensorToTensor": _to_tensor,
    "RaggedTensorToSparse": _to_sparse,
    "RaggedGather": _gather,
    "RaggedRange": _range,
    "RaggedFillEmptyRows": _fill_empty,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
