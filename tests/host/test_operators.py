"""Each host operator against the TensorFlow op it stands for, on fresh random inputs."""

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import InvalidRequestError
from serving.host.operators import OPERATORS, Lookups

EMPTY = Lookups(tables={}, vocabularies={})

_COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
_ARITHMETIC = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "floor_mod": tf.math.floormod,
    "floor_divide": tf.math.floordiv,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
}


@pytest.mark.parametrize("name", [*_COMPARISONS, *_ARITHMETIC])
@pytest.mark.parametrize("seed", range(3))
def test_integers(name: str, seed: int) -> None:
    """Exact: integer arithmetic has one answer."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-9, 9, (5, 4)), rng.integers(1, 9, (5, 4))
    reference = _ARITHMETIC.get(name) or getattr(tf, name)
    np.testing.assert_array_equal(OPERATORS[name](EMPTY, a, b), reference(a, b).numpy())


def test_constant_operand_keeps_its_side() -> None:
    x = np.arange(-3, 4)
    found = OPERATORS["subtract"](EMPTY, x, constants={"0": np.array(10)})
    np.testing.assert_array_equal(found, 10 - x)


def test_strings_compare() -> None:
    x = np.array([[b"", b"a"], [b"\xc3\xa9", b""]], object)
    found = OPERATORS["equal"](EMPTY, x, constants={"1": np.array(b"", object)})
    assert found.dtype == bool
    np.testing.assert_array_equal(found, tf.equal(x, b"").numpy())


@pytest.mark.parametrize("seed", range(3))
def test_multi_hot(seed: int) -> None:
    """Ids outside of the depth and repeated ids, as max over one_hot."""
    ids = np.random.default_rng(seed).integers(-3, 9, (6, 2, 5))
    expected = tf.reduce_max(tf.one_hot(ids, 6), axis=-2).numpy()
    np.testing.assert_array_equal(OPERATORS["multi_hot"](EMPTY, ids, depth=6), expected)


@pytest.mark.parametrize("seed", range(3))
def test_one_hot(seed: int) -> None:
    ids = np.random.default_rng(seed).integers(-3, 9, (6, 5))
    found = OPERATORS["one_hot"](EMPTY, ids, depth=6, on=2.0, off=-1.0)
    np.testing.assert_array_equal(found, tf.one_hot(ids, 6, 2.0, -1.0).numpy())
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("negative", "ids", "bad"),
    [("error", [0, 4, 5], "5"), ("error", [-1, 0], "-1"), ("wrap", [-6, 0], "-6"), ("wrap", [0, 5], "5")],
)
def test_ids_outside_of_a_table_are_refused(negative: str, ids: list[int], bad: str) -> None:
    lookups = Lookups(tables={"t": np.eye(5, dtype=np.float32)}, vocabularies={})
    with pytest.raises(InvalidRequestError, match=f"id {bad} .*'t'"):
        OPERATORS["embedding_lookup"](lookups, np.array(ids), table="t", negative_ids=negative)


@pytest.mark.parametrize("name", ["floor_mod", "floor_divide"])
def test_division_by_zero_is_refused_as_tensorflow_does(name: str) -> None:
    a, b = np.array([1, 2]), np.array([1, 0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        _ARITHMETIC[name](a, b)
    with pytest.raises(InvalidRequestError, match="division by zero"):
        OPERATORS[name](EMPTY, a, b)


def test_negative_ids_wrap() -> None:
    table = np.eye(5, dtype=np.float32)
    lookups = Lookups(tables={"t": table}, vocabularies={})
    found = OPERATORS["embedding_lookup"](lookups, np.array([-1, 2]), table="t", negative_ids="wrap")
    np.testing.assert_array_equal(found, table[[4, 2]])


def test_concat_repeats_a_request_row() -> None:
    found = OPERATORS["concat"](EMPTY, np.array([[7]]), np.arange(3)[:, None], axis=1)
    np.testing.assert_array_equal(found, [[7, 0], [7, 1], [7, 2]])


def test_every_operator_has_a_name_the_converter_writes() -> None:
    from converters import host_ops

    written = set(host_ops._ELEMENTWISE.values()) | {
        "vocabulary_lookup", "hash_bucket_fast", "embedding_lookup", "wrap_negative", "one_hot",
        "multi_hot", "cast", "reshape", "concat",
    }  # fmt: skip
    assert set(OPERATORS) == written
