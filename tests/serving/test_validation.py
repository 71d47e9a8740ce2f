"""Requests against a signature: what is accepted, and the message for what is not, as a table."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from jaxrank import bundle as files
from jaxrank.manifest import Signature, TensorSpec
from serving.errors import InvalidRequestError
from serving.host import HostProgramRunner
from serving.validation import MAX_STRING_BYTES, decode_inputs, decode_request, validate
from serving.wire.codec import encode_content
from tests import models


def _spec(name: str, dtype: str, shape: tuple[int | None, ...], scope: str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, scope=scope, tensor_name=f"{name}:0")  # type: ignore[arg-type]


SIGNATURE = Signature(
    name="serving_default",
    method_name="tensorflow/serving/predict",
    inputs=(
        _spec("user_city", "string", (1,), "request"),
        _spec("user_age", "float32", (None,), "request"),
        _spec("item_id", "int64", (None,), "candidate"),
        _spec("item_tags", "string", (None, 2), "candidate"),
    ),
    outputs=(_spec("score", "float32", (None,), "candidate"),),
)


def _request(rows: int = 3, **changes: object) -> dict[str, np.ndarray]:
    features: dict[str, object] = {
        "user_city": np.array([b"x"], object),
        "user_age": np.array([30.0], np.float32),
        "item_id": np.arange(rows),
        "item_tags": np.full((rows, 2), b"t", object),
    }
    features.update(changes)
    return {k: v for k, v in features.items() if v is not None}  # type: ignore[misc]


def test_a_good_request_passes_unchanged() -> None:
    request = _request()
    found = validate(request, SIGNATURE, 5)
    assert all(found[name] is request[name] for name in request)


@pytest.mark.parametrize("value", [30.0, np.nan])
def test_equal_rows_of_a_request_feature_become_one(value: float) -> None:
    found = validate(_request(user_age=np.full(3, value, np.float32)), SIGNATURE, 5)
    np.testing.assert_array_equal(found["user_age"], np.array([value], np.float32))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(
            _request(item_id=None, user_age=None), "missing features: 'item_id', 'user_age'", id="missing"
        ),
        pytest.param(
            _request(item_idd=np.arange(3)),
            "unknown feature 'item_idd' .did you mean 'item_id'",
            id="unknown",
        ),
        pytest.param(
            _request(item_id=np.arange(3, dtype=np.int32)), "'item_id' has dtype int32.*int64", id="dtype"
        ),
        pytest.param(
            _request(user_city=np.array([1.0])), "'user_city' has dtype float64.*string", id="not a string"
        ),
        pytest.param(
            _request(item_id=np.zeros((3, 1), np.int64)), "'item_id' has 2 dimensions.*'N'", id="rank"
        ),
        pytest.param(_request(item_id=np.array(3)), "'item_id' has 0 dimensions", id="scalar"),
        pytest.param(
            _request(item_tags=np.full((3, 5), b"", object)), r"'item_tags' has shape \[3, 5\]", id="size"
        ),
        pytest.param(
            _request(item_tags=np.full((2, 2), b"", object)),
            "'item_tags' has 2 rows but 'item_id' has 3",
            id="ragged",
        ),
        pytest.param(_request(rows=0), "'item_id' has no rows", id="zero"),
        pytest.param(_request(rows=6), "'item_id' has 6 candidates; .*at most 5", id="too many"),
        pytest.param(
            _request(user_age=np.array([1, 1, 2], np.float32)),
            "'user_age' must be the same.*row 2",
            id="rows differ",
        ),
        pytest.param(
            _request(user_age=np.zeros(2, np.float32)), "'user_age' has 2 rows.*one row or 3", id="row count"
        ),
        pytest.param(
            _request(user_age=np.zeros(0, np.float32)), "'user_age' has 0 rows", id="no request row"
        ),
        pytest.param(
            _request(user_city=np.array([b"x"] * 3, object)),
            "'user_city' has 3 rows.*send one row",
            id="fixed row",
        ),
        pytest.param(
            _request(
                item_tags=np.array([[b"t", b"t"], [b"t", b"t" * (MAX_STRING_BYTES + 1)]], object),
                item_id=np.arange(2),
            ),
            "'item_tags' has a string of 1048577 bytes; at most 1048576",
            id="string",
        ),
    ],
)
def test_refusals_name_the_feature(request_: dict[str, np.ndarray], expected: str) -> None:
    """The same for arrays and for tensors on the wire."""
    with pytest.raises(InvalidRequestError, match=expected):
        validate(request_, SIGNATURE, 5)
    with pytest.raises(InvalidRequestError, match=expected):
        decode_inputs({name: encode_content(value) for name, value in request_.items()}, SIGNATURE, 5)


def test_the_longest_string() -> None:
    longest = np.array([b"x" * MAX_STRING_BYTES], object)
    assert validate(_request(user_city=longest), SIGNATURE, 5)["user_city"] is longest
    features = {"user_city": longest, "user_age": np.ones(1, np.float32)}
    decode_request({name: encode_content(value) for name, value in features.items()}, SIGNATURE)
    features["user_city"] = longest + b"x"
    with pytest.raises(InvalidRequestError, match="'user_city' has a string of 1048577 bytes"):
        decode_request({name: encode_content(value) for name, value in features.items()}, SIGNATURE)


def test_a_signature_without_candidates() -> None:
    """The converter makes none; a bundle from elsewhere gets an answer, not a crash."""
    signature = Signature(name="s", method_name="m", inputs=SIGNATURE.inputs[:1], outputs=())
    with pytest.raises(InvalidRequestError, match="nothing to rank"):
        validate({"user_city": np.array([b"x"], object)}, signature, 5)


def test_a_long_refusal_fits_in_a_status() -> None:
    """Hundreds of missing features: the first are named, the rest counted."""
    inputs = tuple(
        _spec(f"a_rather_long_feature_name_{i:04d}", "float32", (None,), "candidate") for i in range(900)
    )
    signature = Signature(name="s", method_name="m", inputs=inputs, outputs=())
    with pytest.raises(InvalidRequestError, match=r"_0000'.*more characters\)$") as caught:
        validate({}, signature, 5)
    assert len(str(caught.value)) < 8192


def _part(
    feature: str, name: str, dtype: str, shape: tuple, part: str, scope: str = "candidate"
) -> TensorSpec:
    return TensorSpec(
        name=name, dtype=dtype, shape=shape, scope=scope, tensor_name=f"{name}:0", part=part, feature=feature
    )  # type: ignore[arg-type]


COMPOSITES = Signature(
    name="s",
    method_name="m",
    inputs=(
        _part("bag", "bag", "int64", (None, 2), "sparse_indices"),
        _part("bag", "bag_1", "string", (None,), "sparse_values"),
        _part("bag", "bag_2", "int64", (2,), "sparse_shape"),
        _part("path", "path", "float32", (None,), "flat_values"),
        _part("path", "path_1", "int64", (None,), "row_splits"),
        _part("path", "path_2", "int64", (None,), "row_splits"),
        _part("seen", "seen", "int64", (None,), "flat_values", "request"),
        _part("seen", "seen_1", "int64", (None,), "row_splits", "request"),
        TensorSpec(name="grid", dtype="float32", shape=(None, None), scope="candidate", tensor_name="grid:0"),
    ),
    outputs=(),
)


def _composite_request(**changes: object) -> dict[str, np.ndarray]:
    features: dict[str, object] = {
        "bag": np.array([[0, 0], [0, 2], [2, 1]]),
        "bag_1": np.array([b"a", b"b", b"c"], object),
        "bag_2": np.array([3, 4]),
        "path": np.zeros(5, np.float32),
        "path_1": np.array([0, 2, 2, 3]),
        "path_2": np.array([0, 1, 4, 5]),
        "seen": np.arange(4),
        "seen_1": np.array([0, 4]),
        "grid": np.zeros((3, 7), np.float32),
    }
    features.update(changes)
    return features  # type: ignore[return-value]


def test_good_sparse_and_ragged_features_pass_unchanged() -> None:
    request = _composite_request()
    found = validate(request, COMPOSITES, 5)
    assert all(found[name] is request[name] for name in request)
    empty = _composite_request(bag=np.zeros((0, 2), np.int64), bag_1=np.array([], object))
    assert set(validate(empty, COMPOSITES, 5)) == set(request)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"bag": np.array([[0, 0]])}, "'bag' has parts that do not fit", id="lengths"),
        pytest.param(
            {"bag": np.array([[0, 0], [0, 4], [2, 1]])}, r"'bag' has the index \[0, 4\] at pos", id="outside"
        ),
        pytest.param({"bag": np.array([[0, 0], [0, 2], [-1, 1]])}, "which is outside", id="negative"),
        pytest.param({"bag": np.array([[0, 2], [0, 0], [2, 1]])}, "position 1 after a later", id="order"),
        pytest.param({"bag_2": np.array([3, 1 << 40])}, "dense form may have at most", id="large"),
        pytest.param({"bag_2": np.array([-3, 4])}, "must not be negative", id="negative shape"),
        pytest.param({"bag_2": np.array([4, 4])}, "'bag' has 4 rows but|but 'bag' has 4", id="sparse rows"),
        pytest.param(
            {"path_1": np.array([0, 2, 1, 3])}, "'path_1' must begin with 0, never", id="decreasing"
        ),
        pytest.param({"path_1": np.array([1, 2, 2, 3])}, "'path_1' must begin", id="start"),
        pytest.param({"path_1": np.array([0, 2, 2, 4])}, "end with 3, .* of 'path_2'", id="nested end"),
        pytest.param({"path_2": np.array([0, 1, 4, 6])}, "end with 5, .* of 'path'", id="end"),
        pytest.param({"path_1": np.array([], np.int64)}, "has 0 row splits", id="no splits"),
        pytest.param({"path_1": np.array([0, 3])}, "'path' has 1 rows|has 3 rows but", id="ragged rows"),
        pytest.param(
            {"seen_1": np.array([0, 2, 4])}, "'seen' has 2 rows; .* send one row", id="request rows"
        ),
        pytest.param({"path": np.zeros((1 << 20) + 1, np.float32)}, "at most 1048576", id="many values"),
        pytest.param({"grid": np.zeros((2, 7), np.float32)}, "rows", id="plain rows"),
        pytest.param({"grid": np.zeros(3, np.float32)}, "'grid' has 1 dim.*'N', 'N'", id="open rank"),
    ],
)
def test_bad_sparse_and_ragged_features_are_refused(changes: dict[str, object], expected: str) -> None:
    """The same for arrays and for tensors on the wire."""
    request = _composite_request(**changes)
    with pytest.raises(InvalidRequestError, match=expected):
        validate(request, COMPOSITES, 5)
    with pytest.raises(InvalidRequestError, match=expected):
        decode_inputs({name: encode_content(value) for name, value in request.items()}, COMPOSITES, 5)


REPEATED = Signature(
    name="s",
    method_name="m",
    inputs=(
        _part("bag", "bag", "int64", (None, 3), "sparse_indices", "request"),
        _part("bag", "bag_1", "string", (None,), "sparse_values", "request"),
        _part("bag", "bag_2", "int64", (3,), "sparse_shape", "request"),
        _part("path", "path", "float32", (None, 2), "flat_values", "request"),
        _part("path", "path_1", "int64", (None,), "row_splits", "request"),
        _part("path", "path_2", "int64", (None,), "row_splits", "request"),
        _spec("name", "string", (None, 2), "request"),
        _spec("item", "int64", (None,), "candidate"),
    ),
    outputs=(),
)


def _one_user() -> dict[str, np.ndarray]:
    """A sparse feature of three values, and a ragged one of three lists of 2, 0 and 1 pairs."""
    return {
        "bag": np.array([[0, 0, 1], [0, 2, 0], [0, 2, 3]]),
        "bag_1": np.array([b"a", b"b", b"c"], object),
        "bag_2": np.array([1, 3, 4]),
        "path": np.array([[1, 2], [3, np.nan], [5, 6]], np.float32),
        "path_1": np.array([0, 3]),
        "path_2": np.array([0, 2, 2, 3]),
        "name": np.array([[b"x", b"y"]], object),
    }


def _repeated(user: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """As a client sends it that knows rows only."""
    bag = np.concatenate([user["bag"] + [[row, 0, 0]] for row in range(rows)])
    lists = np.tile(np.diff(user["path_2"]), rows)
    return {
        "bag": bag,
        "bag_1": np.tile(user["bag_1"], rows),
        "bag_2": np.array([rows, *user["bag_2"][1:]]),
        "path": np.tile(user["path"], (rows, 1)),
        "path_1": np.arange(rows + 1) * (len(user["path_2"]) - 1),
        "path_2": np.concatenate([[0], np.cumsum(lists)]),
        "name": np.tile(user["name"], (rows, 1)),
        "item": np.arange(rows),
    }


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_equal_rows_of_every_kind_become_one(rows: int) -> None:
    request = _repeated(_one_user(), rows)
    for found in (
        validate(request, REPEATED, 5),
        decode_inputs({name: encode_content(value) for name, value in request.items()}, REPEATED, 5),
    ):
        for name, value in _one_user().items():
            assert found[name].dtype == value.dtype, name
            assert found[name].tolist() == value.tolist() or np.array_equal(found[name], value, True), name
        assert found["item"].tolist() == list(range(rows))


def test_empty_rows_become_one() -> None:
    user = _one_user() | {
        "bag": np.zeros((0, 3), np.int64),
        "bag_1": np.array([], object),
        "path": np.zeros((0, 2), np.float32),
        "path_1": np.array([0, 0]),
        "path_2": np.array([0]),
    }
    found = validate(_repeated(user, 4), REPEATED, 5)
    assert found["bag"].shape == (0, 3) and found["bag_2"].tolist() == [1, 3, 4]
    assert found["path"].shape == (0, 2) and found["path_1"].tolist() == [0, 0]


def _another(name: str, at: int, value: object) -> dict[str, np.ndarray]:
    request = _repeated(_one_user(), 4)
    request[name] = request[name].copy()
    request[name][at] = value
    return request


def _longer(row: int) -> dict[str, np.ndarray]:
    """A value more in a row of the sparse feature, and of the ragged one's last list."""
    request = _repeated(_one_user(), 4)
    at = 3 * (row + 1)
    request["bag"] = np.insert(request["bag"], at, [row, 2, 3], axis=0)
    request["bag_1"] = np.insert(request["bag_1"], at, b"c")
    request["path"] = np.insert(request["path"], at, 0.0, axis=0)
    request["path_2"] = request["path_2"] + (np.arange(13) >= at)
    return request


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(_another("bag_1", 7, b"z"), "'bag' .*row 2 differs", id="sparse value"),
        pytest.param(_another("bag", 4, [1, 2, 1]), "'bag' .*row 1 differs", id="sparse index"),
        pytest.param(_another("bag", 3, [0, 2, 3]), "'bag' .*row 1 differs", id="sparse row"),
        pytest.param(_longer(0), "'bag' .*row 1 differs", id="first row is longer"),
        pytest.param(_longer(3), "'bag' .*row 3 differs", id="last row is longer"),
        pytest.param(_another("path", 10, [5, 0]), "'path' .*row 3 differs", id="ragged value"),
        pytest.param(_another("path_2", 4, 4), "'path' .*row 1 differs", id="inner list"),
        pytest.param(_another("path_1", 2, 5), "'path' .*row 1 differs", id="outer list"),
        pytest.param(_another("name", 3, [b"x", b"z"]), "'name' .*row 3 differs", id="string"),
        pytest.param(
            {**_repeated(_one_user(), 4), "item": np.arange(3)},
            "'bag' has 4 rows; .*one row or 3|'path' has 4 rows; .*one row or 3|'name' has 4",
            id="rows",
        ),
    ],
)
def test_rows_that_differ_are_refused(request_: dict[str, np.ndarray], expected: str) -> None:
    """The same for arrays and for tensors on the wire."""
    with pytest.raises(InvalidRequestError, match=expected):
        validate(request_, REPEATED, 5)
    with pytest.raises(InvalidRequestError, match=expected):
        decode_inputs({name: encode_content(value) for name, value in request_.items()}, REPEATED, 5)


@pytest.mark.parametrize("wrong", [0, 5, 7])
def test_an_open_dimension_that_the_model_does_not_take(ranker_bundle: Path, wrong: int) -> None:
    """The signature leaves it open, the dense half does not: the refusal names the feature."""
    manifest = files.read_manifest(ranker_bundle)
    inputs = tuple(
        msgspec.structs.replace(spec, shape=(1, None)) if spec.name == "user_items" else spec
        for spec in manifest.signature.inputs
    )
    signature = msgspec.structs.replace(manifest.signature, inputs=inputs)
    host = HostProgramRunner(ranker_bundle, msgspec.structs.replace(manifest, signature=signature))
    request = models.ranker_request(3, 0)
    host.run(request)
    with pytest.raises(InvalidRequestError, match="'user_items'"):
        host.run({**request, "user_items": np.ones((1, wrong), np.int64)})
