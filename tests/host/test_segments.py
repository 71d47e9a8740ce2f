"""Segment reductions against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import FLOATS, NUMBERS, Case, Cases, random_strings, run_cases, values

_SUM = 1e-6  # TensorFlow adds in another order
_INDEX = ("int32", "int64")


def _sorted(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        rtol = _SUM if dtype in FLOATS else 0.0
        for index in _INDEX:
            for inner in ((), (3,), (2, 2)):
                ids = np.sort(rng.integers(0, 7, 12)).astype(index)
                yield Case((values(rng, (12, *inner), dtype), ids), rtol=rtol)
        yield Case((values(rng, (4, 2), dtype), np.array([1, 1, 4, 4])), rtol=rtol)
    for bad in ([1, 0], [-1, 0], [0, 1, 2]):
        yield Case((np.ones(2, np.float32), np.array(bad)))
    yield Case((np.zeros((0, 3), np.float32), np.zeros(0, np.int64)))
    yield Case((np.array([1, np.nan, 3], np.float32), np.array([0, 0, 1])))


def _unsorted(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        rtol = _SUM if dtype in FLOATS else 0.0
        for index in _INDEX:
            ids = rng.integers(-2, 6, (12,)).astype(index)
            yield Case((values(rng, (12, 3), dtype), ids, np.array(7, index)), rtol=rtol)
            yield Case((values(rng, (4, 3, 2), dtype), ids.reshape(4, 3), np.array(6, index)), rtol=rtol)
            yield Case((values(rng, (12,), dtype), ids, np.array(6, np.int32)), rtol=rtol)
    yield Case((np.ones(2, np.float32), np.array([0, 3]), np.array(3)))
    yield Case((np.ones(2, np.float32), np.array([0, 1, 2]), np.array(3)))
    yield Case((np.ones((0, 2), np.float32), np.zeros(0, np.int64), np.array(3)))
    yield Case((np.ones(2, np.float32), np.array([0, 0]), np.array(-1)))


def _join(rng: np.random.Generator) -> Cases:
    for index in _INDEX:
        ids = rng.integers(0, 4, 8).astype(index)
        yield Case((random_strings(rng, (8,)), ids, np.array(5, index)), {"separator": ","})
        yield Case((random_strings(rng, (8, 2)), ids, np.array(4, index)), {"separator": ""})
    for bad in (-1, 4):
        yield Case((random_strings(rng, (2,)), np.array([0, bad]), np.array(4)), {"separator": ""})


def _sparse(counted: bool) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        attrs = {"sparse_gradient": False}

        def case(data: np.ndarray, indices: np.ndarray, ids: np.ndarray, count: int = 9) -> Case:
            more = (np.array(count, np.int32),) if counted else ()
            return Case((data, indices, ids, *more), attrs, _SUM)

        for dtype in NUMBERS:
            for index in _INDEX:
                for segment in _INDEX:
                    indices = rng.integers(0, 6, 40).astype(index)
                    ids = np.sort(rng.integers(0, 9, 40)).astype(segment)
                    yield case(values(rng, (6, 5), dtype), indices, ids)
        data = values(rng, (6, 5), "float32")
        yield case(data, np.array([0, 1, 2]), np.array([1, 1, 4]))
        yield case(data, np.array([0, 6]), np.array([0, 1]))
        yield case(data, np.array([0, -1]), np.array([0, 1]))
        yield case(data, np.array([0, 1]), np.array([1, 0]))
        yield case(data, np.array([0, 1]), np.array([-1, 0]))
        yield case(data, np.array([0, 1]), np.array([0]))
        yield case(data, np.zeros(0, np.int64), np.zeros(0, np.int64))
        yield case(data, np.array([0, 1]), np.array([0, 4]), 4)
        yield case(values(rng, (6,), "float32"), np.array([0, 1, 1]), np.array([0, 0, 2]))

    return cases


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "SegmentSum": _sorted,
    "SegmentMean": _sorted,
    "SegmentMax": _sorted,
    "SegmentMin": _sorted,
    "SegmentProd": _sorted,
    "UnsortedSegmentSum": _unsorted,
    "UnsortedSegmentProd": _unsorted,
    "UnsortedSegmentMax": _unsorted,
    "UnsortedSegmentMin": _unsorted,
    "UnsortedSegmentJoin": _join,
    "SparseSegmentSum": _sparse(False),
    "SparseSegmentSumWithNumSegments": _sparse(True),
    "SparseSegmentMean": _sparse(False),
    "SparseSegmentMeanWithNumSegments": _sparse(True),
    "SparseSegmentSqrtN": _sparse(False),
    "SparseSegmentSqrtNWithNumSegments": _sparse(True),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
