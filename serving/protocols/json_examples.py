"""The examples of REST's Classify and Regress: JSON objects as serialized tf.Examples."""

from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidRequestError
from serving.protocols.json_tensors import base64_bytes, is_base64, shown
from serving.wire.example_pb2 import Example, Feature

_INT64 = range(-(2**63), 2**63)
_MAX_FLOAT = (2 - 2**-23) * 2.0**127


def serialized(document: Mapping[str, Any]) -> list[bytes]:
    """The `examples` of a request, each with the `context` in front.

    The type of a feature is that of its first value: a number without a point is an int64, with one a float.
    Raises `InvalidRequestError`.
    """
    examples = document.get("examples")
    if not isinstance(examples, list) or not examples:
        raise InvalidRequestError("'examples' must be a list of at least one object")
    context = _example(document["context"], "context") if "context" in document else b""
    return [context + _example(example, f"example {i}") for i, example in enumerate(examples)]


def _example(value: object, where: str) -> bytes:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Example must be JSON object but {where} is {shown(value)}")
    example = Example()
    for name, content in value.items():
        entry = example.features.feature.add(key=name.encode("utf-8", "surrogatepass"))
        entry.value.SetInParent()
        _fill(
            entry.value,
            content if isinstance(content, list) else [content],
            f"{where}: feature {name[:200]!r}",
        )
    return example.SerializeToString()


def _fill(feature: Feature, values: list[Any], where: str) -> None:
    kinds = {_kind(value, where) for value in values}
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"{where} has values of the types {' and '.join(sorted(kinds))}; write 1.0 for a float"
        )
    if "int64" in kinds:
        if any(int(value) not in _INT64 for value in values):
            raise InvalidRequestError(f"{where} has a number outside of int64")
        feature.int64_list.value.extend(map(int, values))
    elif "float" in kinds:
        for value in values:
            if _MAX_FLOAT < abs(value) < float("inf"):
                raise InvalidRequestError(
                    f"{where}: cannot convert {value} to float without loss of precision."
                )
        feature.float_list.value.extend(values)
    elif "bytes" in kinds:
        feature.bytes_list.value.extend(
            base64_bytes(v["b64"]) if isinstance(v, dict) else v.encode("utf-8", "surrogatepass")
            for v in values
        )


def _kind(value: object, where: str) -> str:
    if isinstance(value, bool | int):
        return "int64"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str) or is_base64(value):
        return "bytes"
    raise InvalidRequestError(f"{where} has element with unexpected JSON type: {shown(value)}")
