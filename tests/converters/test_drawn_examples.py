"""Drawn requests: what they cover, and that TensorFlow takes them as valid tensors."""

import numpy as np
import pytest
import tensorflow as tf

from converters.errors import ConversionError
from converters.examples import (
    Domain,
    ExampleDomain,
    FeatureDomain,
    ParsedFeature,
    draw,
    repeat_request_rows,
    rows_of,
)
from jaxrank.manifest import Part, Scope, Signature, TensorSpec

KEYS = np.array([f"key {i}".encode() for i in range(1000)], object)


def _spec(
    name: str,
    dtype: str,
    *shape: int | None,
    scope: Scope = "candidate",
    part: Part = "rows",
    feature: str = "",
) -> TensorSpec:
    return TensorSpec(
        name=name, dtype=dtype, shape=shape, scope=scope, tensor_name=f"{name}:0", part=part, feature=feature
    )


def _signature(*inputs: TensorSpec) -> Signature:
    return Signature(name="serving_default", method_name="m", inputs=inputs, outputs=())


def _sparse(name: str, dtype: str, *, scope: Scope = "candidate", rank: int = 2) -> list[TensorSpec]:
    return [
        _spec(f"{name}/indices", "int64", None, rank, part="sparse_indices", feature=name, scope=scope),
        _spec(f"{name}/shape", "int64", rank, part="sparse_shape", feature=name, scope=scope),
        _spec(f"{name}/values", dtype, None, part="sparse_values", feature=name, scope=scope),
    ]


def _ragged(name: str, dtype: str, *, scope: Scope = "candidate", levels: int = 1) -> list[TensorSpec]:
    splits = [
        _spec(f"{name}/row_splits_{i}", "int32", None, part="row_splits", feature=name, scope=scope)
        for i in range(levels)
    ]
    return [*splits, _spec(f"{name}/values", dtype, None, part="flat_values", feature=name, scope=scope)]


def _column(signature: Signature, *domains: Domain, name: str = "x") -> np.ndarray:
    """All values of one input over all requests."""
    return np.concatenate([r[name].ravel() for r in draw(signature, domains, 5000)])


def test_sizes_and_determinism() -> None:
    signature = _signature(_spec("user", "string", 1, scope="request"), _spec("x", "float32", None, 3))
    requests = draw(signature, [], 5000)
    assert [r["x"].shape for r in requests] == [(n, 3) for n in (1, 1, 7, 7, 200, 200, 5000, 5000)]
    assert {r["user"].shape for r in requests} == {(1,)}
    for first, second in zip(requests, draw(signature, [], 5000), strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])
    assert not np.array_equal(requests[-1]["x"], draw(signature, [], 5000, seed=1)[-1]["x"])
    assert [len(r["x"]) for r in draw(signature, [], 100)] == [1, 1, 7, 7, 100, 100]
    assert [len(r["x"]) for r in draw(signature, [], 7)] == [1, 1, 7, 7]


def test_string_keys() -> None:
    signature = _signature(_spec("x", "string", None))
    values = _column(signature, FeatureDomain(name="x", keys=KEYS))
    known = np.isin(values, KEYS)
    assert 0.05 < 1 - known.mean() < 0.2
    unknown = set(values[~known])
    assert b"" in unknown and any(max(v, default=0) > 127 for v in unknown)
    only_known = _column(signature, FeatureDomain(name="x", keys=KEYS, unknown=False))
    assert np.isin(only_known, KEYS).all()


def test_popularity_falls_like_zipfs() -> None:
    signature = _signature(_spec("x", "string", None))
    values = draw(signature, [FeatureDomain(name="x", keys=KEYS, unknown=False)], 5000)[-1]["x"]
    counts = np.sort(np.unique(values, return_counts=True)[1])[::-1]
    assert counts[0] > 5 * counts[20] > 10 * counts[200] > 0
    assert len(counts) > 400


def test_ids_stay_in_their_table_unless_the_domain_says_otherwise() -> None:
    signature = _signature(_spec("x", "int64", None))
    inside = _column(signature, FeatureDomain(name="x", ids=(2, 50)))
    assert (inside.min(), inside.max()) == (2, 49)
    negative = _column(signature, FeatureDomain(name="x", ids=(0, 50), negative=True))
    assert negative.min() < -1 and negative.max() == 49
    beyond = _column(signature, FeatureDomain(name="x", ids=(0, 50), out_of_range=True))
    assert beyond.min() == 0 and {50, 51} <= set(beyond.tolist())
    keys = _column(signature, FeatureDomain(name="x", keys=np.array([5, 7, 1 << 40])))
    assert {5, 7, 1 << 40} < set(keys.tolist()) and keys.min() >= 0
    assert _column(_signature(_spec("x", "int8", None)), FeatureDomain(name="x", ids=(0, 120))).max() == 119


def test_numbers_around_boundaries() -> None:
    boundaries = (-1.5, 0.1, 7.0)
    values = _column(_signature(_spec("x", "float32", None)), FeatureDomain(name="x", boundaries=boundaries))
    assert values.dtype == np.float32
    for boundary in np.array(boundaries, np.float32):
        for value in (boundary, *(np.nextafter(boundary, np.float32(s * np.inf)) for s in (-1, 1))):
            assert value in values
    assert np.unique(np.digitize(values, np.array(boundaries, np.float32))).tolist() == [0, 1, 2, 3]
    ints = _column(_signature(_spec("x", "int64", None)), FeatureDomain(name="x", boundaries=(3, 9)))
    assert np.unique(np.digitize(ints, [3, 9])).tolist() == [0, 1, 2] and ints.min() >= 0


@pytest.mark.parametrize(("dtype", "pad"), [("int64", 0), ("string", b""), ("float32", -1.0)])
def test_padded_features_have_empty_rows(dtype: str, pad: bytes | float) -> None:
    signature = _signature(_spec("x", dtype, None, 5))
    keys = {"int64": np.arange(1, 9), "string": KEYS}.get(dtype)
    domain = FeatureDomain(name="x", keys=keys, pad=pad, unknown=False)
    for request in draw(signature, [domain], 5000)[2:]:
        padded = request["x"] == pad
        assert padded.all(1).any()
        assert (np.diff(padded.astype(int), axis=1) >= 0).all()  # only the tail is padded
    assert set(padded.sum(1).tolist()) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("rank", [2, 3])
def test_sparse_features_are_valid(rank: int) -> None:
    signature = _signature(*_sparse("bag", "string", rank=rank))
    for request in draw(signature, [FeatureDomain(name="bag", keys=KEYS)], 5000):
        rows = rows_of(signature, request)["bag"]
        bag = tf.SparseTensor(request["bag/indices"], request["bag/values"], request["bag/shape"])
        dense = tf.sparse.to_dense(bag, b"none", validate_indices=True).numpy()  # refuses unordered indices
        assert dense.shape[0] == rows
        if rows >= 7:
            counts = np.bincount(request["bag/indices"][:, 0], minlength=rows)
            assert counts.min() == 0 and counts.max() <= 8
    assert counts.max() == 8
    # Values need not be packed to the left.
    assert (np.diff((dense.reshape(rows, -1) == b"none").astype(int), axis=1) < 0).any()


def test_weights_have_the_layout_of_their_bag() -> None:
    signature = _signature(*_sparse("a_weights", "float32"), *_sparse("bag", "int64"))
    domains = [FeatureDomain(name="a_weights", structure_of="bag"), FeatureDomain(name="bag", ids=(0, 20))]
    table = tf.random.normal([20, 4], seed=1)
    for request in draw(signature, domains, 300):
        bag, weights = (
            tf.SparseTensor(request[f"{n}/indices"], request[f"{n}/values"], request[f"{n}/shape"])
            for n in ("bag", "a_weights")
        )
        tf.nn.safe_embedding_lookup_sparse(table, bag, weights)  # refuses weights elsewhere
        np.testing.assert_array_equal(request["bag/indices"], request["a_weights/indices"])
    with pytest.raises(ConversionError, match="'a_weights' has the structure of 'cart', which is no"):
        draw(signature, [FeatureDomain(name="a_weights", structure_of="cart")], 300)


@pytest.mark.parametrize("levels", [1, 2])
def test_ragged_features_are_valid(levels: int) -> None:
    signature = _signature(*_ragged("words", "string", levels=levels))
    for request in draw(signature, [], 5000):
        splits = [request[f"words/row_splits_{i}"] for i in range(levels)]
        words = tf.RaggedTensor.from_nested_row_splits(request["words/values"], splits, validate=True)
        assert words.shape[0] == rows_of(signature, request)["words"]
        assert splits[0].dtype == np.int32
        if words.shape[0] >= 7:
            assert 0 in words.row_lengths().numpy()


def test_request_features_repeat_for_tensorflow() -> None:
    """Each row of the repeated feature is the one row; what the signature fixes to one row stays."""
    signature = _signature(
        *_sparse("bag", "int64", scope="request"),
        *_ragged("words", "int64", scope="request", levels=2),
        _spec("age", "float32", None, 2, scope="request"),
        _spec("city", "string", 1, scope="request"),
        _spec("x", "float32", None),
    )
    for request in draw(signature, [], 20):
        rows = len(request["x"])
        repeated = repeat_request_rows(signature, request)
        assert rows_of(signature, repeated) == {"bag": rows, "words": rows, "age": rows, "city": 1, "x": rows}
        bag = [
            tf.sparse.to_dense(tf.SparseTensor(f["bag/indices"], f["bag/values"], f["bag/shape"])).numpy()
            for f in (request, repeated)
        ]
        np.testing.assert_array_equal(np.repeat(bag[0], rows, 0), bag[1])
        words = [
            tf.RaggedTensor.from_nested_row_splits(
                f["words/values"], [f["words/row_splits_0"], f["words/row_splits_1"]], validate=True
            ).to_list()
            for f in (request, repeated)
        ]
        assert words[0] * rows == words[1]
        np.testing.assert_array_equal(np.repeat(request["age"], rows, 0), repeated["age"])


def test_serialized_examples_parse() -> None:
    """TensorFlow's own parser takes them, with defaults where a feature is missing."""
    signature = _signature(_spec("examples", "string", None), _spec("x", "float32", None))
    cities = np.array([b"berlin", "köln".encode()], object)
    domain = ExampleDomain(
        name="examples",
        features=(
            ParsedFeature(
                name="weights", kind="var", dtype="float32",
                domain=FeatureDomain(name="weights", structure_of="ids"),
            ),
            ParsedFeature(
                name="ids", kind="var", dtype="int64", optional=True,
                domain=FeatureDomain(name="ids", ids=(0, 9)),
            ),
            ParsedFeature(name="age", kind="fixed", dtype="float32"),
            ParsedFeature(name="vector", kind="fixed", dtype="float32", shape=(2, 3)),
            ParsedFeature(
                name="city", kind="fixed", dtype="string", optional=True,
                domain=FeatureDomain(name="city", keys=cities),
            ),
            ParsedFeature(name="steps", kind="sequence", dtype="int64", shape=(2,), optional=True),
        ),
    )  # fmt: skip
    spec = {
        "weights": tf.io.VarLenFeature(tf.float32),
        "ids": tf.io.VarLenFeature(tf.int64),
        "age": tf.io.FixedLenFeature([], tf.float32),
        "vector": tf.io.FixedLenFeature([2, 3], tf.float32),
        "city": tf.io.FixedLenFeature([], tf.string, "missing"),
        "steps": tf.io.FixedLenSequenceFeature([2], tf.int64, allow_missing=True),
    }
    for request in draw(signature, [domain], 500):
        parsed = tf.io.parse_example(request["examples"], spec)
        np.testing.assert_array_equal(parsed["ids"].indices, parsed["weights"].indices)
        assert parsed["vector"].shape == (len(request["x"]), 2, 3)
    assert {b"missing", b"", *cities} <= set(parsed["city"].numpy())
    counts = np.bincount(parsed["ids"].indices.numpy()[:, 0], minlength=500)
    assert (counts.min(), counts.max()) == (0, 8)
    assert len(np.unique(parsed["age"])) > 400
    assert parsed["steps"].shape[1] == 8
    has_ids = ["ids" in tf.train.Example.FromString(e).features.feature for e in request["examples"]]
    assert 0 < sum(has_ids) < 500


def test_domains_that_do_not_fit() -> None:
    signature = _signature(_spec("x", "int64", None), *_sparse("bag", "int64"))
    for domain, words in [
        (FeatureDomain(name="y"), "domains for y, which are no inputs; the inputs are: bag, x"),
        (FeatureDomain(name="x", keys=KEYS), "'x' has keys of object for an input of int64"),
        (FeatureDomain(name="x", ids=(3, 3)), r"'x' has no ids: \[3, 3\)"),
        (ExampleDomain(name="bag", features=()), "'bag' is sparse or ragged"),
    ]:
        with pytest.raises(ConversionError, match=words):
            draw(signature, [domain], 10)
