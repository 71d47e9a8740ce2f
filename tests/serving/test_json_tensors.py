"""JSON to arrays and back: which types a dtype takes, and numbers that come back as they were."""

import json
import math

import numpy as np
import pytest

from serving.errors import InvalidRequestError
from serving.protocols.json_tensors import MAX_JSON_VALUES, columns, dumps, parse_object, rows, to_array


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", [[1, 2.5], [-0.0, 1e-45]], np.array([[1, 2.5], [-0.0, 1e-45]], np.float32)),
        ("float32", [16777215], np.array([16777215], np.float32)),
        ("float64", 3, np.array(3.0)),
        ("int64", [2**63 - 1, -(2**63)], np.array([2**63 - 1, -(2**63)])),
        ("uint64", [2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ("bool", [True, False], np.array([True, False])),
        (
            "string",
            ["ja ✓", {"b64": "/w=="}, {"b64": "/w"}],
            np.array(["ja ✓".encode(), b"\xff", b"\xff"], object),
        ),
        ("int32", [], np.zeros(0, np.int32)),
        ("int32", [[], []], np.zeros((2, 0), np.int32)),
    ],
)
def test_values(dtype: str, value: object, expected: np.ndarray) -> None:
    found = to_array(value, "x", dtype)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tolist() == expected.tolist()


def test_a_body_of_too_many_values_is_refused_before_it_is_parsed() -> None:
    """Twenty times its size is what Python would take for it."""
    lists = b'{"x": [' + b"[]," * MAX_JSON_VALUES + b"[]]}"
    with pytest.raises(InvalidRequestError, match="more than 4194304 JSON values"):
        parse_object(lists)
    # One long string is one value.
    assert len(parse_object(b'{"x": "' + b"y" * (MAX_JSON_VALUES + 1) + b'"}')["x"]) == MAX_JSON_VALUES + 1


def test_not_a_number_and_infinity_are_read() -> None:
    document = parse_object(b'{"x": [NaN, Infinity, -Infinity]}')
    found = to_array(document["x"], "x", "float32")
    assert math.isnan(found[0]) and found[1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float32", ["1"], 'JSON Value: "1" Type: String is not of expected type: float32'),
        ("float32", [1, True], "JSON Value: true Type: Bool is not of expected type: float32"),
        ("float32", [16777217], "16777217 to float32 without loss of precision"),
        ("float32", [1e39], "1e\\+39 to float32 without loss"),
        ("float64", [10**400], "to float64 without loss"),
        ("int32", [1.0], "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", [2**31], "2147483648 Type: Number is not of expected type: int32"),
        ("uint8", [-1], "-1 Type: Number is not of expected type: uint8"),
        ("bool", [1], "Type: Number is not of expected type: bool"),
        ("string", [1], "JSON Value: 1 Type: Number is not of expected type: string"),
        ("string", [{"b64": "@"}], "Unable to base64 decode"),
        ("int64", [None], "JSON Value: null Type: Null"),
        ("int64", [{"b64": "AA=="}], "Type: Object is not of expected type"),
        ("int64", [[1], [1, 2]], "unexpected size: 2 at level: 1 expected size: 1"),
        ("int64", [[1], 2], "JSON Value: 2 found at incorrect level"),
        ("int64", [1, [2]], "Encountered list at unexpected level"),
        ("int64", eval("[" * 17 + "1" + "]" * 17), "more than 16 dimensions"),
    ],
)
def test_refused_values(dtype: str, value: object, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        to_array(value, "x", dtype)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The document is empty"),
        (b"{", "JSON Parse error"),
        (b"\xff\xfe\xfd", "JSON Parse error"),
        (b"[1]", "Is not object"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"x": ' + b"1" * 10_000 + b"}", "JSON Parse error"),
    ],
)
def test_refused_documents(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parse_object(body)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_decimals_round_trip(dtype: type) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).view(dtype)
    value = bits[np.isfinite(bits)]
    text = dumps({"v": value})
    found = np.array(json.loads(text)["v"], dtype)
    assert found.tobytes() == value.tobytes()


def test_decimals_have_the_shortest_form_of_their_type() -> None:
    for dtype in (np.float32, np.float64):
        assert dumps({"v": np.array([0.1, 3.0, 1e20], dtype)}) == b'{"v":[0.1,3.0,1e+20]}'


def test_what_json_cannot_say_is_written_as_tensorflow_serving_writes_it() -> None:
    outputs = {"a": np.array([np.nan, np.inf, 0.1], np.float32), "b": np.array([1, 2, -3], np.int64)}
    text = dumps({"predictions": rows(outputs)}).decode().replace(" ", "")
    assert text == '{"predictions":[{"a":NaN,"b":1},{"a":Infinity,"b":2},{"a":0.1,"b":-3}]}'


def test_strings_and_bytes() -> None:
    """Outputs named `*_bytes` are in base64; so is a string that no JSON text can hold."""
    value = np.array([b"ja", b"\xff"], object)
    assert json.loads(dumps(columns({"t": value[:1], "t_bytes": value}))) == {
        "t": ["ja"],
        "t_bytes": [{"b64": "amE="}, {"b64": "/w=="}],
    }
    assert json.loads(dumps(columns({"t": value}))) == ["ja", {"b64": "/w=="}]
