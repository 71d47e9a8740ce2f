"""Requests against a signature: what is accepted, and the message for what is not, as a table."""

import numpy as np
import pytest

from jaxrank.manifest import Signature, TensorSpec
from serving.errors import InvalidRequestError
from serving.validation import decode_inputs, validate
from serving.wire.codec import encode_content


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
    ],
)
def test_refusals_name_the_feature(request_: dict[str, np.ndarray], expected: str) -> None:
    """The same for arrays and for tensors on the wire."""
    with pytest.raises(InvalidRequestError, match=expected):
        validate(request_, SIGNATURE, 5)
    with pytest.raises(InvalidRequestError, match=expected):
        decode_inputs({name: encode_content(value) for name, value in request_.items()}, SIGNATURE, 5)


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
