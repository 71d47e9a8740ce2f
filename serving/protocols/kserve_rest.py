"""KServe v2's REST form, with its binary tensor extension."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.data_plane import Prediction
from serving.errors import InvalidRequestError
from serving.protocols.json_tensors import dumps, parse_object, shown, to_array
from serving.protocols.kserve import KServe, check_parameters, check_request_parameters, unique
from serving.protocols.kserve_tensors import checked_size, datatype_of, dtype_of, from_raw, to_raw
from serving.rest_server import HttpAnswer, HttpRequest, Route
from serving.scheduling import Urgency

_HEADER = "Inference-Header-Content-Length"
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/[a-z]+)?")
_REPOSITORY = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)")


@dataclass(frozen=True)
class KServeRest:
    """Routes below `/v2`."""

    kserve: KServe

    def routes(self, method: str, path: str) -> Route | None:
        """What answers a method and a path; None where nothing does."""
        k, path = self.kserve, path.rstrip("/")
        fixed: dict[tuple[str, str], Callable[[HttpRequest], HttpAnswer]] = {
            ("GET", "/v2"): lambda request: _answer(k.server_metadata()),
            ("GET", "/v2/health/live"): lambda request: HttpAnswer(b""),
            ("GET", "/v2/health/ready"): lambda request: _is(k.ready()),
            ("GET", "/v2/models/stats"): lambda request: _answer({"model_stats": k.statistics("", "")}),
            ("POST", "/v2/repository/index"): self._index,
        }
        if (method, path) in fixed:
            return lambda request, urgency: fixed[method, path](request)
        if method == "POST" and (asked := _REPOSITORY.fullmatch(path)):
            return lambda request, urgency: self._load(asked["name"], asked["verb"], request)
        if asked := _MODEL.fullmatch(path):
            return self._of_model(method, asked["name"], asked["version"] or "", asked["rest"] or "")
        return None

    def _of_model(self, method: str, name: str, version: str, rest: str) -> Route | None:
        k = self.kserve
        match method, rest:
            case "GET", "":
                return lambda request, urgency: _answer(k.model_metadata(name, version))
            case "GET", "/ready":
                return lambda request, urgency: _is(k.model_ready(name, version))
            case "GET", "/stats":
                return lambda request, urgency: _answer({"model_stats": k.statistics(name, version)})
            case "POST", "/infer":
                return lambda request, urgency: self._infer(name, version, request, urgency)
        return None

    def _index(self, request: HttpRequest) -> HttpAnswer:
        document = parse_object(request.body) if request.body else {}
        return _answer(self.kserve.index(document.get("ready") is True))

    def _load(self, name: str, verb: str, request: HttpRequest) -> HttpAnswer:
        document = parse_object(request.body) if request.body else {}
        if verb == "load":
            self.kserve.load(name, _object(document, "parameters"))
        else:
            self.kserve.unload(name)
        return HttpAnswer(b"")

    def _infer(self, name: str, version: str, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        urgency.timeline.api = "ModelInfer"
        document: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
        as_binary: dict[str, bool] = {}

        def read() -> tuple[dict[str, np.ndarray], list[str]]:
            text, binary = _split(request)
            document.update(parse_object(text))
            parameters.update(_object(document, "parameters"))
            check_request_parameters(parameters)
            _check_identifier(document)
            for output in _objects(document, "outputs"):
                of_output = _object(output, "parameters")
                wanted = _text(output, "name")
                check_parameters(of_output, ("binary_data",), f"output {wanted[:200]!r}")
                as_binary[wanted] = of_output.get("binary_data", parameters.get("binary_data_output")) is True
            return _inputs(document, binary), list(as_binary)

        def encode(found: Prediction) -> HttpAnswer:
            default = parameters.get("binary_data_output") is True
            outputs: list[dict[str, Any]] = []
            raw: list[bytes] = []
            for output, value in found.outputs.items():
                entry = {"name": output, "datatype": datatype_of(value), "shape": list(value.shape)}
                if as_binary.get(output, default):
                    raw.append(to_raw(value))
                    entry["parameters"] = {"binary_data_size": len(raw[-1])}
                else:
                    entry["data"] = _json_data(output, value)
                outputs.append(entry)
            answer = {"model_name": name, "model_version": str(found.version), "outputs": outputs}
            if "id" in document:
                answer["id"] = document["id"]
            body = dumps(answer)
            if not raw:
                return HttpAnswer(body)
            headers = {_HEADER: str(len(body))}
            return HttpAnswer(
                b"".join([body, *raw]), content_type="application/octet-stream", headers=headers
            )

        return self.kserve.infer(name, version, urgency, read, encode)


def _split(request: HttpRequest) -> tuple[bytes, bytes]:
    """The JSON text of a body, and the tensors behind it."""
    length = request.headers.get(_HEADER)
    if length is None:
        return request.body, b""
    if not (
        length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= len(request.body)
    ):
        raise InvalidRequestError(
            f"{_HEADER} is {length[:50]!r}; it must be the bytes of JSON in a body of {len(request.body)}"
        )
    return request.body[: int(length)], request.body[int(length) :]


def _inputs(document: dict[str, Any], binary: bytes) -> dict[str, np.ndarray]:
    given = _objects(document, "inputs")
    unique([_text(entry, "name") for entry in given])
    inputs, at = {}, 0
    for entry in given:
        name, datatype, shape = _text(entry, "name"), _text(entry, "datatype"), entry.get("shape")
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            raise InvalidRequestError(
                f"input {name[:200]!r} has the shape {shown(shape)}; give a list of sizes"
            )
        parameters = _object(entry, "parameters")
        check_parameters(parameters, ("binary_data_size",), f"input {name[:200]!r}")
        size = parameters.get("binary_data_size")
        if size is None:
            inputs[name] = _from_json(name, datatype, shape, entry.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - at:
            raise InvalidRequestError(
                f"input {name[:200]!r} has binary_data_size {shown(size)}; {len(binary) - at} bytes are left"
            )
        inputs[name] = from_raw(name, datatype, shape, binary[at : at + size])
        at += size
    if at != len(binary):
        raise InvalidRequestError(f"{len(binary) - at} bytes behind the JSON belong to no input")
    return inputs


def _from_json(name: str, datatype: str, shape: list[int], data: object) -> np.ndarray:
    """`data` may be flat or nested."""
    size = checked_size(name, shape)
    value = to_array(data, name, dtype_of(name, datatype))
    if value.size != size:
        raise InvalidRequestError(f"input {name!r} has {value.size} values; shape {shape} needs {size}")
    return value.reshape(shape)


def _json_data(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return np.ascontiguousarray(value.ravel())
    try:
        return [text.decode() for text in value.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"output {name!r} has strings that are no UTF-8, which JSON cannot hold; ask for it with "
            "binary_data"
        ) from error


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{key!r} is {shown(value)}; give an object")
    return value


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidRequestError(f"{key!r} is {shown(value)}; give a list of objects")
    return value


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise InvalidRequestError(f"{key!r} is {shown(value)}; give a string")
    return value


def _check_identifier(document: dict[str, Any]) -> None:
    """The answer has it, too: raises `InvalidRequestError` for one that no answer can hold."""
    found = document.get("id", "")
    try:
        found.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InvalidRequestError(f"'id' is {shown(found)}; give a string") from error


def _answer(document: object) -> HttpAnswer:
    return HttpAnswer(dumps(document))


def _is(true: bool) -> HttpAnswer:
    return HttpAnswer(b"", 200 if true else 503)
