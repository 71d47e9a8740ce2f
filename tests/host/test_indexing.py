"""Gather, scatter, partition, stitch, where, unique and search against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import FLOATS, NUMBERS, Case, Cases, run_cases, strings, values

_ALL = (*NUMBERS, "bool", "string")
_INDEX = ("int32", "int64")


def _gather(rng: np.random.Generator) -> Cases:
    attrs = {"validate_indices": True}
    for index in _INDEX:
        for dtype in _ALL:
            yield Case((values(rng, (5, 2), dtype), rng.integers(0, 5, (3, 2)).astype(index)), attrs)
        for bad in ([5], [-1]):
            yield Case((values(rng, (5,), "float32"), np.array(bad, index)), attrs)
        yield Case((values(rng, (5,), "string"), np.array(2, index)), attrs)
        yield Case((values(rng, (0, 3), "string"), np.zeros(0, index)), attrs)


def _gather_v2(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        params = values(rng, (2, 3, 4), dtype)
        for index in _INDEX:
            for axis in (-3, -1, 0, 1, 2, 3):
                at = rng.integers(0, 2, (2, 3)).astype(index)
                yield Case((params, at, np.array(axis, np.int32)), {"batch_dims": 0})
        for axis, batch in [(1, 1), (2, 1), (2, 2), (-1, 1), (1, 2), (2, -1), (1, -1)]:
            at = rng.integers(0, 3, (2, 3, 2))
            yield Case((params, at, np.array(axis)), {"batch_dims": batch})
    yield Case((params, np.array([[0], [9]]), np.array(1)), {"batch_dims": 1})
    yield Case((params, np.array(1), np.array(1)), {"batch_dims": 0})
    yield Case((params, np.array([2]), np.array(0)), {"batch_dims": 0})
    yield Case((params, np.array([[0]]), np.array(1)), {"batch_dims": 1})


def _coordinates(
    rng: np.random.Generator, shape: tuple[int, ...], batch: tuple[int, ...], depth: int
) -> np.ndarray:
    return np.stack([rng.integers(0, shape[i], batch) for i in range(depth)], -1)


def _gather_nd(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        params = values(rng, (2, 3, 4), dtype)
        for index in _INDEX:
            for depth in (1, 2, 3):
                yield Case((params, _coordinates(rng, (2, 3, 4), (5, 2), depth).astype(index)))
    for bad in ([[2]], [[0, -1]], [[0, 0, 0, 0]]):
        yield Case((params, np.array(bad)))
    yield Case((params, np.zeros((0, 2), np.int64)))
    yield Case((params, np.zeros((3, 0), np.int64)))


def _scatter_nd(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool", "string"):
        for depth, slices in [(1, (4,)), (2, ())]:
            at = _coordinates(rng, (5, 4), (6,), depth)
            if dtype == "string":
                at = np.unique(at, axis=0)
            updates = values(rng, (len(at), *slices), dtype)
            yield Case((at, updates, np.array([5, 4])), rtol=1e-6)
    yield Case((np.array([[5]]), np.array([1.0]), np.array([5])))
    yield Case((np.array([[-1]]), np.array([1.0]), np.array([5])))
    yield Case((np.array([[1]]), np.array([1.0, 2.0]), np.array([5])))
    yield Case((np.zeros((0, 1), np.int64), np.zeros(0, np.float32), np.array([3])))


def _tensor_scatter(dtypes: tuple[str, ...]) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        for dtype in dtypes:
            for depth, slices in [(1, (4,)), (2, ())]:
                at = _coordinates(rng, (5, 4), (7,), depth)
                inputs = (values(rng, (5, 4), dtype), at, values(rng, (7, *slices), dtype))
                yield Case(inputs, rtol=1e-6 if dtype in FLOATS else 0)
            yield Case((values(rng, (5,), dtype), np.array([[5]]), values(rng, (1,), dtype)))
            yield Case((values(rng, (5,), dtype), np.array([[1]]), values(rng, (2,), dtype)))

    return cases


def _dynamic_partition(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        parts = rng.integers(0, 3, 8).astype(np.int32)
        yield Case((values(rng, (8, 2), dtype), parts), {"num_partitions": 3})
        yield Case((values(rng, (4, 2), dtype), parts.reshape(4, 2)), {"num_partitions": 4})
    yield Case((values(rng, (2,), "int32"), np.array([0, 3], np.int32)), {"num_partitions": 3})
    yield Case((values(rng, (2,), "int32"), np.array([0, -1], np.int32)), {"num_partitions": 3})
    yield Case((values(rng, (0,), "int32"), np.zeros(0, np.int32)), {"num_partitions": 2})


def _stitch(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        order = rng.permutation(7).astype(np.int32)
        indices = [order[:3], order[3:4].reshape(()), order[4:].reshape(3, 1)]
        data = [values(rng, (*at.shape, 2), dtype) for at in indices]
        yield Case((indices, data))
    yield Case(
        ([np.array([0, 1], np.int32), np.array([1, 0], np.int32)], [np.array([1, 2]), np.array([3, 4])])
    )
    yield Case(([np.array([0, -1], np.int32)], [np.array([1, 2])]))
    yield Case(([np.array([0, 1], np.int32)], [np.array([1])]))
    yield Case(([np.zeros(0, np.int32)], [np.zeros((0, 2), np.float32)]))


def _where(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool"):
        for shape in ((4, 3), (5,), (2, 0), (2, 2, 2)):
            yield Case(
                (values(rng, shape, dtype) * (rng.random(shape) < 0.5).astype(values(rng, (), dtype).dtype),)
            )
    yield Case((np.array([np.nan, 0.0, -0.0, 1.0]),))


def _unique(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool", "string"):
        for out in _INDEX:
            x = values(rng, (12,), dtype)
            yield Case((np.round(x).astype(dtype) if dtype in FLOATS else x,), {"out_idx": out})
    yield Case((np.array([np.nan, 1, np.nan, 0.0, -0.0, np.inf]),), {"out_idx": "int32"})
    yield Case((strings(),), {"out_idx": "int32"})
    yield Case((np.zeros(0, np.int64),), {"out_idx": "int64"})
    yield Case((np.zeros((2, 2), np.int64),), {"out_idx": "int64"})


def _unique_v2(rng: np.random.Generator) -> Cases:
    for case in _unique(rng):
        yield Case((case.inputs[0], np.zeros(0, np.int64)), case.attrs)
        yield Case((case.inputs[0], np.array([0])), case.attrs)
    for axis in (0, 1, -1):
        x = rng.integers(0, 2, (6, 2, 1))
        yield Case((x, np.array([axis])), {"out_idx": "int32"})
    yield Case(
        (strings(b"a", b"b", b"a", b"b", b"", b"c", shape=(3, 2)), np.array([0])), {"out_idx": "int32"}
    )


def _one_hot(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for index in ("uint8", "int32", "int64", "int8"):
            for axis in (-1, 0, 1, 2):
                ids = rng.integers(-2 if index != "uint8" else 0, 6, (3, 2)).astype(index)
                on, off = values(rng, (), dtype), values(rng, (), dtype)
                yield Case((ids, np.array(4, np.int32), on, off), {"axis": axis})
    yield Case((np.array(2), np.array(3, np.int32), np.array(1.0), np.array(0.0)), {"axis": -1})
    yield Case((np.array([2]), np.array(-3, np.int32), np.array(1.0), np.array(0.0)), {"axis": -1})
    yield Case((np.array([2]), np.array(0, np.int32), np.array(1.0), np.array(0.0)), {"axis": -1})
    yield Case((np.array([2]), np.array(3, np.int32), np.array(1.0), np.array(0.0)), {"axis": 3})


def _invert(rng: np.random.Generator) -> Cases:
    for index in _INDEX:
        yield Case((rng.permutation(7).astype(index),))
        for bad in ([0, 0], [0, 2], [-1, 0]):
            yield Case((np.array(bad, index),))
        yield Case((np.zeros(0, index),))


def _bound(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        for out in _INDEX:
            rows = np.sort(values(rng, (3, 6), dtype), axis=-1)
            yield Case((rows, values(rng, (3, 4), dtype)), {"out_type": out})
    yield Case((np.zeros((2, 3)), np.zeros((3, 1))), {"out_type": "int32"})


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "Gather": _gather,
    "GatherV2": _gather_v2,
    "GatherNd": _gather_nd,
    "ScatterNd": _scatter_nd,
    "TensorScatterUpdate": _tensor_scatter(_ALL),
    "TensorScatterAdd": _tensor_scatter(NUMBERS),
    "TensorScatterSub": _tensor_scatter(NUMBERS),
    "TensorScatterMax": _tensor_scatter(NUMBERS),
    "TensorScatterMin": _tensor_scatter(NUMBERS),
    "DynamicPartition": _dynamic_partition,
    "DynamicStitch": _stitch,
    "ParallelDynamicStitch": _stitch,
    "Where": _where,
    "Unique": _unique,
    "UniqueV2": _unique_v2,
    "UniqueWithCounts": _unique,
    "UniqueWithCountsV2": _unique_v2,
    "OneHot": _one_hot,
    "InvertPermutation": _invert,
    "LowerBound": _bound,
    "UpperBound": _bound,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
