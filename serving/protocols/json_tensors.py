"""JSON values as tensors, and tensors as JSON, as TensorFlow Serving's REST API has them.

The public description is https://www.tensorflow.org/tfx/serving/api_rest; what it leaves open follows
TensorFlow Serving's `json_tensor.cc`: which JSON types a dtype takes, decimals that round-trip, `NaN` and
`Infinity` as bare words, strings of outputs named `*_bytes` in base64.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from serving.errors import InvalidRequestError
from serving.wire.codec import MAX_ELEMENTS, MAX_RANK

MAX_JSON_VALUES = 1 << 22
"""Of one body, lists and objects among them. Python takes up to 64 bytes for one that has two in JSON."""

_B64 = "b64"
_SHOWN = 200
_TYPES = {type(None): "Null", bool: "Bool", dict: "Object", list: "Array", str: "String"}


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises `InvalidRequestError` for anything else, for more values than
    `MAX_JSON_VALUES`, and for lists or objects that are nested deeper than any request needs."""
    if not body:
        raise InvalidRequestError("JSON Parse error: The document is empty")
    if len(body) > MAX_JSON_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise InvalidRequestError(
            f"the body has more than {MAX_JSON_VALUES} JSON values; send fewer candidates, or use gRPC"
        )
    try:
        # Not orjson: it refuses NaN and Infinity, which TensorFlow Serving takes.
        value = json.loads(body)
    except RecursionError as error:
        raise InvalidRequestError("JSON Parse error: nested too deeply") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"JSON Parse error: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"JSON Value: {shown(value)} Is not object")
    return value


def shown(value: object) -> str:
    """A JSON value for a message, cut short."""
    if isinstance(value, list | dict):
        return f"{'[...]' if isinstance(value, list) else '{...}'} with {len(value)} entries"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def is_base64(value: object) -> bool:
    """Whether a value is `{"b64": "..."}`, a string of bytes."""
    return isinstance(value, dict) and value.keys() == {_B64} and isinstance(value[_B64], str)


def to_array(value: object, name: str, dtype: str) -> np.ndarray:
    """A JSON value, nested lists of scalars, as an array.

    Args:
        name: for messages.
        dtype: TensorFlow's name of it.

    Raises `InvalidRequestError`: lists of different lengths, a value of another type, a number that the dtype
    does not hold.
    """
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    if len(shape) > MAX_RANK:
        raise InvalidRequestError(f"{name!r} has more than {MAX_RANK} dimensions")
    flat: list[Any] = []
    _flatten(value, shape, 0, flat)
    if len(flat) > MAX_ELEMENTS:
        raise InvalidRequestError(f"{name!r} has {len(flat)} values; at most {MAX_ELEMENTS} are taken")
    return _typed(flat, dtype).reshape(shape)


def _flatten(value: object, shape: Sequence[int], level: int, flat: list[Any]) -> None:
    if level == len(shape):
        if isinstance(value, list):
            raise InvalidRequestError(
                f"Encountered list at unexpected level: {level} expected < {len(shape)}"
            )
        flat.append(value)
        return
    if not isinstance(value, list):
        raise InvalidRequestError(
            f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
            f"level: {len(shape)}"
        )
    if len(value) != shape[level]:
        raise InvalidRequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    if level + 1 == len(shape) and list not in set(map(type, value)):
        flat.extend(value)
        return
    for item in value:
        _flatten(item, shape, level + 1, flat)


def _typed(flat: list[Any], name: str) -> np.ndarray:
    if name == "string":
        values = np.empty(len(flat), object)
        values[:] = [_bytes(v) if type(v) is not str else v.encode("utf-8", "surrogatepass") for v in flat]
        return values
    dtype = np.dtype(name)
    allowed = {"f": {int, float}, "b": {bool}}.get(dtype.kind, {int})
    if set(map(type, flat)) - allowed:
        wrong = next(v for v in flat if type(v) not in allowed)
        raise InvalidRequestError(
            f"JSON Value: {shown(wrong)} Type: {_TYPES.get(type(wrong), 'Number')} is not of expected type: "
            f"{name}"
        )
    if dtype.kind == "f":
        return _decimals(flat, dtype)
    try:
        return np.array(flat, dtype)
    except OverflowError:
        limits = np.iinfo(dtype)
        wrong = next(v for v in flat if not limits.min <= v <= limits.max)
        raise InvalidRequestError(
            f"JSON Value: {shown(wrong)} Type: Number is not of expected type: {name}"
        ) from None


def _decimals(flat: list[Any], dtype: np.dtype) -> np.ndarray:
    """Floats: a whole number that the type does not hold exactly is refused, as is one out of its range."""
    exact = 2 ** (np.finfo(dtype).nmant + 1) - 1
    most = float(np.finfo(dtype).max)
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        wide = None
    large = wide is None or (np.isfinite(wide) & (np.abs(wide) > min(exact, most))).any()
    if large:
        for value in flat:
            if abs(value) > (exact if type(value) is int else most) and abs(value) != float("inf"):
                raise InvalidRequestError(
                    f"Cannot convert JSON value: {shown(value)} to {dtype.name} without loss of precision."
                )
    assert wide is not None
    return wide.astype(dtype)


def _bytes(value: object) -> bytes:
    if not is_base64(value):
        raise InvalidRequestError(
            f"JSON Value: {shown(value)} Type: {_TYPES.get(type(value), 'Number')} is not of expected type: "
            'string; send a string, or {"b64": "..."} for bytes'
        )
    return base64_bytes(value[_B64])  # type: ignore[index]


def base64_bytes(text: str) -> bytes:
    """Bytes from base64. Raises `InvalidRequestError`."""
    try:
        # TensorFlow Serving takes base64 without its padding, too.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"Unable to base64 decode {shown(text)}") from error


# --- writing ---


def rows(outputs: Mapping[str, np.ndarray]) -> Any:
    """The outputs by row: for one output its values, otherwise an object for each row."""
    if len(outputs) == 1:
        return columns(outputs)
    values = {name: _json_values(name, value) for name, value in outputs.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def columns(outputs: Mapping[str, np.ndarray]) -> Any:
    """The outputs by name: for one output its values."""
    values = {name: _json_values(name, value) for name, value in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


def _json_values(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return np.ascontiguousarray(value)
    texts = [_text(v, as_bytes=name.endswith("_bytes")) for v in value.ravel().tolist()]
    boxes = np.empty(value.size, object)
    boxes[:] = texts
    return boxes.reshape(value.shape).tolist()


def _text(value: bytes, *, as_bytes: bool) -> str | dict[str, str]:
    if not as_bytes:
        try:
            return value.decode()
        except UnicodeDecodeError:
            # TensorFlow Serving writes such bytes as they are, which no JSON parser takes.
            pass
    return {_B64: base64.b64encode(value).decode()}


def dumps(document: object) -> bytes:
    """A JSON document. Floats have the shortest digits that give the same float of their dtype."""
    if not _all_finite(document):
        # orjson writes null for what JSON cannot say.
        return json.dumps(document, default=_plain, ensure_ascii=False).encode()
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _all_finite(document: object) -> bool:
    if isinstance(document, dict):
        return all(_all_finite(value) for value in document.values())
    if isinstance(document, list):
        return all(_all_finite(value) for value in document)
    if isinstance(document, np.ndarray | np.floating) and document.dtype.kind == "f":
        return bool(np.isfinite(document).all())
    return True


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray):
        return list(value)
    if isinstance(value, np.floating):
        return float(str(value))  # the digits of its own dtype, not of the double nearest to it
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
