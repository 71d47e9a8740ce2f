"""Lookups of the native tables against TensorFlow's own ops, on fresh random inputs."""

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.native import _core
from serving.tables import (
    Lookup,
    RowFormat,
    RowNotFoundError,
    Table,
    TableMismatchError,
    WorkerPool,
    pool_rows,
)
from tests.tables import table_of

DECODED: tuple[RowFormat, ...] = ("f32", "f16", "bf16", "int8")
DIMS = (1, 3, 8, 16, 17, 31, 64, 100, 128, 200)
COMBINERS = ("sum", "mean", "sqrtn")


def reference(rows: np.ndarray, row_format: RowFormat) -> np.ndarray:
    """What a table of that format holds, from the definition of the format."""
    if row_format == "f16":
        return rows.astype(np.float16).astype(np.float32)
    if row_format == "bf16":
        return tf.cast(tf.cast(rows, tf.bfloat16), tf.float32).numpy()
    if row_format == "int8":
        exact = rows.astype(np.float64)
        scale = (np.abs(exact).max(axis=1, keepdims=True) / 127).astype(np.float32)
        return np.rint(exact / scale).astype(np.float32) * scale
    return rows


def bags(
    rng: np.random.Generator, rows: int, longest: int
) -> tuple[np.ndarray, np.ndarray, tf.SparseTensor, tf.SparseTensor, np.ndarray]:
    """Ids with repeats, offsets with empty segments in the middle, and both as sparse tensors with
    weights."""
    counts = rng.integers(0, longest, int(rng.integers(1, 40)))
    counts = np.where(rng.random(counts.size) < 0.2, 0, counts)
    counts[-1] = 1  # TensorFlow's op makes no rows behind the last one that has ids
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    ids = rng.integers(0, rows, offsets[-1])
    ids[rng.random(ids.size) < 0.3] = ids[0]
    weights = rng.normal(size=ids.size).astype(np.float32)
    segments = np.repeat(np.arange(counts.size), counts)
    indices = np.stack([segments, np.arange(ids.size)], axis=1)
    shape = [counts.size, ids.size]
    return (
        ids,
        offsets,
        tf.SparseTensor(indices, ids, shape),
        tf.SparseTensor(indices, weights, shape),
        weights,
    )


@pytest.mark.parametrize("row_format", DECODED)
@pytest.mark.parametrize("dim", DIMS)
def test_gather(row_format: RowFormat, dim: int) -> None:
    """The bits of tf.gather in the format's values, in a range of columns of a larger block."""
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(500, dim)).astype(np.float32)
    table, held = table_of(rows, row_format), reference(rows, row_format)
    ids = rng.integers(0, 500, 3000)
    block = np.full((3000, dim + 7), np.nan, np.float32)
    table.lookup(ids, block[:, 3 : 3 + dim])
    np.testing.assert_array_equal(block[:, 3 : 3 + dim], tf.gather(held, ids).numpy())
    assert np.isnan(block[:, :3]).all() and np.isnan(block[:, 3 + dim :]).all()
    out = np.empty((3000, dim), np.float32)
    assert table.fetch(ids, out) is None
    np.testing.assert_array_equal(out, block[:, 3 : 3 + dim])


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("row_format", DECODED)
def test_pooling_has_the_bits_of_tensorflow(combiner: Any, weighted: bool, row_format: RowFormat) -> None:
    """The order of TensorFlow's sums is followed (`kernels.inc`). The one exception are squares of weights:
    TensorFlow's pow(w, 2) is up to 1 ulp off."""
    rng = np.random.default_rng(COMBINERS.index(combiner) + 10 * weighted)
    for dim, longest in itertools.product(DIMS, (4, 15, 60)):
        table = table_of(rng.normal(size=(300, dim)).astype(np.float32), row_format)
        ids, offsets, sparse, sparse_weights, weights = bags(rng, 300, longest)
        held = table.read(0, 300)
        expected = tf.nn.embedding_lookup_sparse(
            held, sparse, sparse_weights if weighted else None, combiner=combiner
        ).numpy()
        block = np.full((len(offsets) - 1, dim + 5), np.nan, np.float32)
        out = block[:, 2 : 2 + dim]
        table.pool(ids, offsets, weights if weighted else None, combiner, None, out)
        rtol = 3e-7 if weighted and combiner == "sqrtn" else 0
        np.testing.assert_allclose(out, expected, rtol=rtol, atol=0)
        assert np.isnan(block[:, :2]).all() and np.isnan(block[:, 2 + dim :]).all()
        again = np.empty((len(offsets) - 1, dim), np.float32)
        pool_rows(held[ids], offsets, weights if weighted else None, combiner, None, again)
        np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_max_norm(combiner: Any, weighted: bool) -> None:
    """A norm is a sum of squares, which TensorFlow makes in a tree: 2 ulp of the norm are 2 of the row, and
    up to 60 such rows are added."""
    rng = np.random.default_rng(5)
    for dim, row_format in itertools.product(DIMS, DECODED):
        rows = (rng.normal(size=(300, dim)) * rng.choice([0.01, 1, 100], (300, 1))).astype(np.float32)
        table = table_of(rows, row_format)
        ids, offsets, sparse, sparse_weights, weights = bags(rng, 300, 60)
        held = table.read(0, 300)
        expected = tf.nn.embedding_lookup_sparse(
            held, sparse, sparse_weights if weighted else None, combiner=combiner, max_norm=0.7
        ).numpy()
        out = np.empty((len(offsets) - 1, dim), np.float32)
        table.pool(ids, offsets, weights if weighted else None, combiner, 0.7, out)
        # What cancels in a sum is bounded by the sum of magnitudes; divisors of weights may be small.
        size = np.empty_like(out)
        table.pool(ids, offsets, np.abs(weights) if weighted else None, "sum", 0.7, size)
        scale = max(1.0, float(np.abs(expected).max() / np.abs(out).max()))
        np.testing.assert_allclose(out, expected, rtol=3e-6, atol=3e-6 * scale * np.abs(expected).max())


def test_safe_lookups_with_default_ids() -> None:
    """Through the host operator, which prunes and fills as safe_embedding_lookup_sparse does: sums keep their
    bits."""
    from serving.host.operators import OPERATORS, Lookups

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(50, 24)).astype(np.float32)
    lookups = Lookups(tables={"t": table_of(rows)}, vocabularies={})
    indices = np.argwhere(rng.random((30, 20)) < 0.3)
    ids, shape = rng.integers(-5, 50, len(indices)), np.array([30, 20])
    for default_id in (None, 4):
        expected = tf.nn.safe_embedding_lookup_sparse(
            rows, tf.SparseTensor(indices, ids, shape), combiner="mean", default_id=default_id
        )
        found = OPERATORS["embedding_bag"](
            lookups, indices, ids, shape, table="t", combiner="mean", safe=True, default_id=default_id
        )
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("ids", [[0, 100], [-1], [1 << 40], [-(1 << 63)]])
def test_ids_outside_are_an_error_as_on_tensorflows_cpu(ids: list[int]) -> None:
    rows = np.ones((100, 4), np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.gather(rows, ids)
    table, out = table_of(rows), np.empty((len(ids), 4), np.float32)
    for call in (
        lambda: table.lookup(np.array(ids), out),
        lambda: table.take(np.array(ids)),
        lambda: table.pool(np.array(ids), np.arange(len(ids) + 1), None, "sum", None, out),
    ):
        with pytest.raises(RowNotFoundError, match=r"has rows \[0, 100\)") as refusal:
            call()
        assert refusal.value.id == ids[-1]


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("row_format", DECODED)
def test_default_rows(keyed: bool, row_format: RowFormat) -> None:
    """Zeros, the mean, and a given row stand in for what is not there, also in a pool."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 6)).astype(np.float32)
    keys = rng.permutation(1000)[:40] if keyed else None
    known = int(keys[7]) if keys is not None else 7
    given = np.arange(6, dtype=np.float32)
    for default, expected in [("zeros", np.zeros(6)), ("mean", rows.mean(axis=0)), (given, given)]:
        table = table_of(rows, row_format, keys, default=default)
        out = np.empty((3, 6), np.float32)
        table.lookup(np.array([5000, known, -1]), out)
        np.testing.assert_array_equal(out[[0, 2]], [table.default_row] * 2)
        np.testing.assert_array_equal(out[1], table.read(7, 8)[0])
        # bf16 has 8 bits of precision; int8's step is the largest magnitude over 254.
        np.testing.assert_allclose(out[0], expected, rtol=2**-8, atol=np.abs(expected).max() / 254)
        summed = np.empty((1, 6), np.float32)
        table.pool(np.array([known, 5000]), np.array([0, 2]), None, "sum", None, summed)
        np.testing.assert_array_equal(summed[0], out[1] + out[0])


def test_keys() -> None:
    """Every key leads to its row and no other does: extreme keys, dense ones, and those of one home slot."""
    rng = np.random.default_rng(1)
    keys = np.unique(np.concatenate([
        [np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1],
        np.arange(100_000, 150_000),
        rng.integers(-(1 << 62), 1 << 62, 50_000),
    ]))  # fmt: skip
    rng.shuffle(keys)
    rows = np.arange(2 * len(keys), dtype=np.float32).reshape(-1, 2)
    table = table_of(rows, keys=keys)
    assert table.keyed and table.keys is not None
    np.testing.assert_array_equal(table.keys, keys)
    order = rng.permutation(len(keys))
    out = np.empty((len(keys), 2), np.float32)
    table.lookup(keys[order], out)
    np.testing.assert_array_equal(out, rows[order])
    absent = np.setdiff1d(rng.integers(-(1 << 62), 1 << 62, 50_000), keys)
    assert (table.find(absent) == -1).all()
    with pytest.raises(RowNotFoundError, match=f"key {absent[3]} is not in the table"):
        table.take(absent[3:])


@pytest.mark.parametrize("name", ["float64", "int32", "int64"])
def test_what_does_not_decode_is_handed_out_as_it_is(name: str) -> None:
    rows = np.random.default_rng(0).normal(0, 1e6, (30, 3)).astype(name)
    row_format: Any = {"float64": "f64", "int32": "i32", "int64": "i64"}[name]
    table = table_of(rows, row_format)
    np.testing.assert_array_equal(table.array, rows)
    np.testing.assert_array_equal(table.take(np.array([5, 5, 29])), rows[[5, 5, 29]])
    np.testing.assert_array_equal(table.read(3, 9), rows[3:9])
    out = np.empty((2, 3), name)
    table.fetch(np.array([1, 2]), out)
    np.testing.assert_array_equal(out, rows[1:3])
    with pytest.raises(TableMismatchError, match="not decoded to float32"):
        table.lookup(np.array([0]), np.empty((1, 3), np.float32))


def _table() -> Table:
    return table_of(np.ones((10, 4), np.float32))


BAD_CALLS = [
    ([0], [[0, 0, 0]], None, None, "sum", None, r"the output is \[1, 3\], it must be \[1, 4\]"),
    ([0], [[0] * 4] * 2, [0, 1], None, "sum", None, r"the output is \[2, 4\], it must be \[1, 4\]"),
    ([0], [[0] * 4], [0, 2], None, "sum", None, "offsets end with 2, there are 1 ids"),
    ([0], [[0] * 4], [-1, 1], None, "sum", None, "begin with -1"),
    ([0, 0], [[0] * 4] * 2, [0, 2, 1], None, "sum", None, "decrease from 2 to 1 behind segment 1"),
    ([0], [[0] * 4], [1 << 40, 1], None, "sum", None, "decrease"),
    ([0], [[0] * 4], [], None, "sum", None, "offsets are empty"),
    ([0], [[0] * 4], [0, 1], [1.0, 2.0], "sum", None, "2 weights for 1 ids"),
    ([0], [[0] * 4], [0, 1], None, "max", None, "no combiner 'max'"),
    ([0], [[0] * 4], [0, 1], None, "sum", -1.0, "max_norm is -1.0"),
    ([0], [[0] * 4], [0, 1], None, "sum", np.nan, "max_norm is nan"),
]


@pytest.mark.parametrize(("ids", "out", "offsets", "weights", "combiner", "max_norm", "message"), BAD_CALLS)
def test_calls_that_do_not_fit_are_refused(
    ids: Any, out: Any, offsets: Any, weights: Any, combiner: Any, max_norm: Any, message: str
) -> None:
    table, buffer = _table(), np.array(out, np.float32)
    with pytest.raises(TableMismatchError, match=message):
        if offsets is None:
            table.lookup(np.array(ids), buffer)
        else:
            given = None if weights is None else np.array(weights, np.float32)
            table.pool(np.array(ids), np.array(offsets, np.int64), given, combiner, max_norm, buffer)


def test_arrays_of_another_kind_are_refused() -> None:
    table, ids = _table(), np.array([0, 1])
    for wrong, message in [
        (lambda: table.lookup(ids.astype(np.int32), np.empty((2, 4), np.float32)), r"ids: int32\[2\]"),
        (lambda: table.lookup(ids, np.empty((2, 4), np.float64)), r"the output: float64\[2, 4\]"),
        (lambda: table.lookup(ids, np.empty((4, 2), np.float32).T), "columns of an output row"),
        (lambda: table.lookup(ids, np.empty((2, 4), np.float32)[::-1]), "its rows behind each other"),
        (lambda: table.read(5, 11), r"no rows \[5, 11\)"),
        (lambda: table.read(-1, 2), "no rows"),
        (lambda: table.read(3, 2), "no rows"),
        (lambda: table_of(np.ones((2, 2), np.float32), "bf16").array, "no NumPy array"),
    ]:
        with pytest.raises(TableMismatchError, match=message):
            wrong()


@pytest.mark.parametrize("level", _core.table_kernels())
def test_every_instruction_set_gives_the_same_bits(level: str) -> None:
    """Those that this CPU has, against each other: half precision's conversion is another in each."""
    rng = np.random.default_rng(9)
    for row_format, dim in itertools.product(DECODED, (1, 7, 8, 24, 40, 100)):
        rows = rng.normal(size=(200, dim)).astype(np.float32) * np.float32(rng.choice([1, 1e-6]))
        table = table_of(rows, row_format)
        ids, offsets, _, _, weights = bags(rng, 200, 50)
        for given, max_norm in itertools.product((None, weights), (0.0, 0.5)):
            expected, found = (np.empty((len(offsets) - 1, dim), np.float32) for _ in range(2))
            table.native.pool(ids, offsets, given, 1, max_norm, expected)
            table.native.pool_with(level, ids, offsets, given, 1, max_norm, found)
            # Vectors of another width add squares in another order.
            np.testing.assert_allclose(
                found, expected, rtol=1e-6 if max_norm else 0, atol=1e-6 if max_norm else 0
            )


def test_many_lookups_on_a_pool() -> None:
    """Pieces on several threads, small lookups beside large ones, from four callers at once: the same bits
    as one call for each."""
    rng = np.random.default_rng(2)
    cores = sorted(os.sched_getaffinity(0)) * 2  # on a core of its own or not, some are not the caller's
    pool, lookups, expected = WorkerPool(cores), [], []
    for i, (row_format, dim) in enumerate(itertools.product(DECODED, (5, 64))):
        table = table_of(rng.normal(size=(1000, dim)).astype(np.float32), row_format)
        ids = rng.integers(0, 1000, 30_000 if i % 2 else 100)
        offsets = None
        if i % 3:
            inner = np.sort(rng.integers(0, len(ids), len(ids) // 20))
            offsets = np.concatenate([[0], inner, [len(ids)]]).astype(np.int64)
        out = np.empty((len(ids) if offsets is None else len(offsets) - 1, dim), np.float32)
        if offsets is None:
            table.lookup(ids, out)
        else:
            table.pool(ids, offsets, None, "mean", None, out)
        expected.append(out)
        lookups.append(Lookup(table, ids, out, offsets, combiner="mean"))

    def call(_: int) -> None:
        mine = [dataclasses.replace(k, out=np.full_like(k.out, np.nan)) for k in lookups]
        pool.run(mine)
        for found, out in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(found.out, out)

    assert pool.threads == len(cores)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, range(20)))
    wrong = dataclasses.replace(lookups[1], ids=np.where(lookups[1].ids == 5, 1000, lookups[1].ids))
    with pytest.raises(RowNotFoundError, match="id 1000 is outside"):
        pool.run([*lookups, wrong])
    call(0)
