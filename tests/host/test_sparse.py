"""Sparse tensors against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import FLOATS, NUMBERS, Case, Cases, run_cases, values

_ALL = (*NUMBERS, "bool", "string")
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def sparse(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, density: float = 0.5) -> Parts:
    """Random indices in order, values and shape."""
    indices = np.argwhere(rng.random(shape) < density).astype(np.int64).reshape(-1, len(shape))
    return indices, values(rng, (len(indices),), dtype), np.array(shape, np.int64)


def _fill_empty(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        indices, found, shape = sparse(rng, (6, 3), dtype, 0.25)
        yield Case((indices, found, shape, values(rng, (), dtype)))
        order = rng.permutation(len(found))
        yield Case((indices[order], found[order], shape, values(rng, (), dtype)))
    none = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    for rows in (0, 3):
        yield Case((*none, np.array([rows, 2]), np.float32(7)))
    for bad in (-1, 6):
        yield Case((np.array([[bad, 0]]), np.ones(1), np.array([6, 2]), np.array(7.0)))
    yield Case((np.array([[0, 0]]), np.ones(1), np.array([0, 2]), np.array(7.0)))
    yield Case((np.array([[2], [0]]), np.ones(2), np.array([4]), np.array(7.0)))


def _reshape(rng: np.random.Generator) -> Cases:
    for _ in range(5):
        indices, _, shape = sparse(rng, (4, 3, 2), "int8")
        for target in ([-1, 2], [24], [2, 12], [-1, -1], [5, -1], [4, 3, 2], [-2, 12]):
            yield Case((indices, shape, np.array(target)))
    yield Case((np.zeros((0, 2), np.int64), np.array([0, 3]), np.array([-1, 3])))
    yield Case((np.zeros((0, 2), np.int64), np.array([0, 3]), np.array([3, 0])))
    yield Case((np.zeros((0, 2), np.int64), np.array([0, 3]), np.array([-1, 0])))


def _to_dense(rng: np.random.Generator) -> Cases:
    for validate in (True, False):
        attrs = {"validate_indices": validate}
        for dtype in _ALL:
            for index in (np.int32, np.int64):
                indices, found, shape = sparse(rng, (4, 3), dtype)
                yield Case((indices.astype(index), shape.astype(index), found, values(rng, (), dtype)), attrs)
        four = np.array([4])
        for flat in ([0, 2], [2, 0], [1, 1], [0, 4], [-1, 0]):
            yield Case((np.array(flat), four, np.array([5.0, 6.0]), np.array(0.0)), attrs)
        yield Case((np.array([1, 2]), four, np.array(5.0), np.array(1.0)), attrs)
        yield Case((np.array(3), four, np.array(5.0), np.array(1.0)), attrs)
        yield Case((np.array([1, 2]), four, np.array([5.0]), np.array(1.0)), attrs)
        yield Case((np.zeros((0, 2), np.int64), np.array([2, 2]), np.zeros(0), np.array(1.0)), attrs)


def _concat(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis in (-2, 0, 1, -1, 2):
            parts = [sparse(rng, (3, 4), dtype) for _ in range(3)]
            yield Case(
                ([p[0] for p in parts], [p[1] for p in parts], [p[2] for p in parts]), {"concat_dim": axis}
            )
    a, b = sparse(rng, (3, 4), "int32"), sparse(rng, (3, 2), "int32")
    for axis in (0, 1):
        yield Case(([a[0], b[0]], [a[1], b[1]], [a[2], b[2]]), {"concat_dim": axis})


def _slice(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for start, size in [
            ([1, 1], [2, 2]),
            ([0, 0], [9, 9]),
            ([3, 0], [5, 1]),
            ([0, 0], [0, 2]),
            ([4, 9], [1, 1]),
        ]:
            yield Case((*sparse(rng, (4, 5), dtype), np.array(start), np.array(size)))


def _split(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis, parts in [(0, 2), (1, 3), (1, 5), (-1, 2), (0, 5), (2, 1)]:
            yield Case((np.array(axis), *sparse(rng, (4, 5), dtype)), {"num_split": parts})


def _reorder(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        indices, found, shape = sparse(rng, (4, 5, 2), dtype)
        order = rng.permutation(len(found))
        yield Case((indices[order], found[order], shape))
    yield Case((np.array([[4, 0]]), np.ones(1), np.array([4, 5])))
    yield Case((np.zeros((0, 2), np.int64), np.ones(0), np.array([4, 5])))


def _mat_mul(rng: np.random.Generator) -> Cases:
    for dtype in ("float32", "float64", "int32"):
        for left in (False, True):
            for right in (False, True):
                a = sparse(rng, (3, 4) if not left else (4, 3), dtype)
                b = values(rng, (4, 2) if not right else (2, 4), dtype)
                yield Case((*a, b), {"adjoint_a": left, "adjoint_b": right}, 1e-6 if dtype in FLOATS else 0)
    attrs = {"adjoint_a": False, "adjoint_b": False}
    yield Case((np.array([[3, 0]]), np.ones(1), np.array([3, 4]), np.ones((4, 2))), attrs)
    yield Case((np.array([[0, 4]]), np.ones(1), np.array([3, 4]), np.ones((4, 2))), attrs)
    yield Case((np.array([[0, 0]]), np.ones(1), np.array([3, 4]), np.ones((3, 2))), attrs)


def _reduce(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        for axes in ([0], [1], [-1, 0], [], [0, 1, 2], [1, 2]):
            for keep in (False, True):
                inputs = (*sparse(rng, (3, 4, 2), dtype, 0.3), np.array(axes, np.int32))
                yield Case(inputs, {"keep_dims": keep}, 1e-6 if dtype in FLOATS else 0)
    yield Case((*sparse(rng, (3, 4), "float32"), np.array([2], np.int32)), {"keep_dims": False})


def _add(rng: np.random.Generator) -> Cases:
    for dtype in ("float32", "float64", "int8", "int16", "int32", "int64"):
        for limit in (0, 1, 3):
            a, b = sparse(rng, (4, 5), dtype), sparse(rng, (4, 5), dtype)
            yield Case((*a, *b, np.array(limit, dtype)))
    yield Case((*a, *sparse(rng, (4, 4), dtype), np.array(0, dtype)))
    yield Case((*sparse(rng, (4, 5), dtype, 0), *sparse(rng, (4, 5), dtype, 0), np.array(0, dtype)))


def _cwise(rng: np.random.Generator) -> Cases:
    for dtype in NUMBERS:
        for shape in ((4, 5), (5,), (), (4, 1), (3,), (1, 4, 5)):
            dense = values(rng, shape, dtype)
            yield Case((*sparse(rng, (4, 5), dtype), np.where(dense == 0, 1, dense).astype(dtype)))
    for zero in (0, 1):
        dense = np.ones((2, 2), np.float32)
        dense[0, zero] = 0
        yield Case((np.array([[0, 0]]), np.ones(1, np.float32), np.array([2, 2]), dense))


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "SparseFillEmptyRows": _fill_empty,
    "SparseReshape": _reshape,
    "SparseToDense": _to_dense,
    "SparseConcat": _concat,
    "SparseSlice": _slice,
    "SparseSplit": _split,
    "SparseReorder": _reorder,
    "SparseTensorDenseMatMul": _mat_mul,
    "SparseReduceSum": _reduce,
    "SparseReduceMax": _reduce,
    "SparseAdd": _add,
    "SparseDenseCwiseMul": _cwise,
    "SparseDenseCwiseAdd": _cwise,
    "SparseDenseCwiseDiv": _cwise,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
