"""The fused operators, on both paths, against the TensorFlow functions that they stand for."""

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import InvalidRequestError
from serving.host.operators import OPERATORS, Lookups
from serving.tables import Table
from tests.host.comparison import EMPTY, strings
from tests.host.one_operator import run_natively
from tests.tables import table_of

_ROWS, _DIM = 20, 6


def _lookups(rng: np.random.Generator) -> Lookups:
    rows = rng.normal(size=(_ROWS, _DIM)).astype(np.float32)
    return Lookups(tables={"t": table_of(rows)}, vocabularies={})


def _rows(lookups: Lookups) -> np.ndarray:
    table = lookups.tables["t"]
    assert isinstance(table, Table)
    return table.array


def _bags(
    rng: np.random.Generator, shape: tuple[int, ...], low: int = 0, shuffle: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices, ids (repeated ones, some rows empty), dense shape, and weights with 0, negative ones and
    NaN."""
    present = (rng.random(shape) < 0.5) & (rng.random(shape[:-1]) < 0.7)[..., None]
    indices = np.argwhere(present).astype(np.int64).reshape(-1, len(shape))
    if shuffle:
        indices = rng.permutation(indices)
    weights = rng.normal(size=len(indices)).astype(np.float32)
    weights[rng.random(len(indices)) < 0.1] = np.nan
    weights[rng.random(len(indices)) < 0.1] = 0
    return indices, rng.integers(low, _ROWS, len(indices)), np.array(shape, np.int64), weights


def both(
    op: str, lookups: Lookups, *inputs: np.ndarray, vocabularies: Any = None, **attrs: Any
) -> np.ndarray:
    """The result of NumPy's operator, after the native one gave the same, or refused with the same words."""
    arrays = [np.asarray(v) for v in inputs]
    try:
        expected = OPERATORS[op](lookups, *inputs, **attrs)
    except InvalidRequestError as refusal:
        with pytest.raises(InvalidRequestError, match=f": {re.escape(str(refusal))}$"):
            run_natively(op, arrays, attrs, lookups=lookups, vocabularies=vocabularies)
        raise
    assert isinstance(expected, np.ndarray)
    (found,) = run_natively(op, arrays, attrs, lookups=lookups, vocabularies=vocabularies)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind == "f":
        scale = np.nanmax(np.abs(expected), initial=0)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6 * scale)
    else:
        np.testing.assert_array_equal(found, expected)
    return expected


def _sparse(indices: np.ndarray, values: np.ndarray, shape: np.ndarray) -> tf.SparseTensor:
    return tf.SparseTensor(indices, values, shape)


def _assert_close(found: Any, expected: tf.Tensor) -> None:
    """Sums in another order: within 1e-6 of the largest value."""
    theirs = expected.numpy()
    assert found.dtype == theirs.dtype == np.float32
    assert found.shape == theirs.shape
    scale = np.nanmax(np.abs(theirs), initial=0)
    np.testing.assert_allclose(found, theirs, rtol=2e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_embedding_lookup_sparse(combiner: str, weighted: bool, max_norm: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lookups = _lookups(rng)
    for _ in range(5):
        indices, ids, shape, weights = _bags(rng, (9, 5))
        expected = tf.nn.embedding_lookup_sparse(
            _rows(lookups),
            _sparse(indices, ids, shape),
            _sparse(indices, weights, shape) if weighted else None,
            combiner=combiner,
            max_norm=max_norm,
        )
        extra = [weights] if weighted else []
        found = both(
            "embedding_bag",
            lookups,
            indices,
            ids,
            shape,
            *extra,
            table="t",
            combiner=combiner,
            max_norm=max_norm,
        )
        _assert_close(found, expected)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("default_id", [None, 0, 7])
@pytest.mark.parametrize("seed", range(2))
def test_safe_embedding_lookup_sparse(
    combiner: str, weighted: bool, max_norm: float | None, default_id: int | None, seed: int
) -> None:
    """Negative ids, weights that are not positive, empty rows, bags of more than two dimensions, any
    order."""
    rng = np.random.default_rng(seed)
    lookups = _lookups(rng)
    for dims, shuffle in [
        ((9, 5), False),
        ((9, 5), True),
        ((3, 4, 5), False),
        ((4, 0), False),
        ((5, 1), False),
    ]:
        indices, ids, shape, weights = _bags(rng, dims, low=-4, shuffle=shuffle)
        expected = tf.nn.safe_embedding_lookup_sparse(
            _rows(lookups),
            _sparse(indices, ids, shape),
            _sparse(indices, weights, shape) if weighted else None,
            combiner=combiner,
            default_id=default_id,
            max_norm=max_norm,
        )
        extra = [weights] if weighted else []
        attrs = {"table": "t", "combiner": combiner, "max_norm": max_norm, "default_id": default_id}
        found = both("embedding_bag", lookups, indices, ids, shape, *extra, safe=True, **attrs)
        _assert_close(found, expected)


@pytest.mark.parametrize(
    ("rows", "ids", "safe", "message"),
    [
        ([0, 1], [0, _ROWS], False, f"id {_ROWS} .*'t'"),
        ([0, 1], [0, -1], False, "id -1 .*'t'"),
        ([0, 1], [0, _ROWS], True, f"id {_ROWS} .*'t'"),
        ([1, 0], [0, 0], False, "not in order"),
        ([0, 9], [0, 0], True, "row 9"),
    ],
)
def test_bad_bags_are_refused(rows: list[int], ids: list[int], safe: bool, message: str) -> None:
    indices, shape = np.column_stack([rows, [0, 0]]), np.array([4, 2])
    lookups = _lookups(np.random.default_rng(0))
    with pytest.raises(InvalidRequestError, match=message):
        both("embedding_bag", lookups, indices, np.array(ids), shape, table="t", combiner="sum", safe=safe)


@pytest.mark.parametrize("seed", range(3))
def test_multi_hot(seed: int) -> None:
    """Ids outside of the depth and repeated ids, as max over one_hot."""
    ids = np.random.default_rng(seed).integers(-3, 9, (6, 2, 5))
    expected = tf.reduce_max(tf.one_hot(ids, 6), axis=-2).numpy()
    np.testing.assert_array_equal(both("multi_hot", EMPTY, ids, depth=6), expected)


@pytest.mark.parametrize("max_norm", [None, 1.5])
def test_embedding_lookup(max_norm: float | None) -> None:
    rng = np.random.default_rng(0)
    lookups, ids = _lookups(rng), rng.integers(0, _ROWS, (4, 3))
    found = both("embedding_lookup", lookups, ids, table="t", negative_ids="error", max_norm=max_norm)
    _assert_close(found, tf.nn.embedding_lookup(_rows(lookups), ids, max_norm=max_norm))


@pytest.mark.parametrize(
    ("negative", "ids", "bad"),
    [("error", [0, 4, 5], "5"), ("error", [-1, 0], "-1"), ("wrap", [-6, 0], "-6"), ("wrap", [0, 5], "5")],
)
def test_ids_outside_of_a_table_are_refused(negative: str, ids: list[int], bad: str) -> None:
    lookups = Lookups(tables={"t": table_of(np.eye(5, dtype=np.float32))}, vocabularies={})
    with pytest.raises(InvalidRequestError, match=f"id {bad} .*'t'"):
        both("embedding_lookup", lookups, np.array(ids), table="t", negative_ids=negative)


def test_negative_ids_wrap() -> None:
    table = np.eye(5, dtype=np.float32)
    lookups, ids = Lookups(tables={"t": table_of(table)}, vocabularies={}), np.array([-1, 2])
    found = both("embedding_lookup", lookups, ids, table="t", negative_ids="wrap")
    np.testing.assert_array_equal(found, table[[4, 2]])
    np.testing.assert_array_equal(both("wrap_negative", EMPTY, ids, rows=5), [4, 2])


def test_vocabulary_lookup() -> None:
    """As a static hash table; `override` is one more entry that wins."""
    keys, default = strings(b"a", b"", "é".encode()), -1
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(keys.tolist()), tf.constant([3, 4, 5], tf.int64)),
        default,
    )
    values = dict(zip(keys.tolist(), [3, 4, 5], strict=True))
    lookup = np.vectorize(lambda key: values.get(key, default), otypes=[np.int64])
    lookups = Lookups(tables={}, vocabularies={"v": lookup})
    ordered = sorted(values)
    text, offsets = np.frombuffer(b"".join(ordered), np.uint8), np.cumsum([0, *map(len, ordered)])
    parts = {"v": ((text, offsets), np.array([values[k] for k in ordered]), default)}
    wanted = strings(b"", b"x", "é".encode(), b"a", shape=(2, 2))
    found = both("vocabulary_lookup", lookups, wanted, vocabulary="v", vocabularies=parts)
    np.testing.assert_array_equal(found, table.lookup(tf.constant(wanted.tolist())).numpy())
    found = OPERATORS["vocabulary_lookup"](
        lookups, wanted, vocabulary="v", override={"key": b"x", "value": 0}
    )
    key = {"dtype": "string", "shape": [], "values": ["eA=="]}
    attrs = {"vocabulary": "v", "override": {"key": key, "value": 0}}
    (native,) = run_natively("vocabulary_lookup", [wanted], attrs, vocabularies=parts)
    np.testing.assert_array_equal(native, found)
    np.testing.assert_array_equal(found, [[4, 0], [5, 3]])


def test_older_name_of_the_fast_hash() -> None:
    texts = strings(b"a", b"")
    found = both("hash_bucket_fast", EMPTY, texts, buckets=7)
    np.testing.assert_array_equal(
        found, tf.strings.to_hash_bucket_fast(tf.constant(texts.tolist()), 7).numpy()
    )
