"""TensorFlow Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format

from jaxrank.manifest import Manifest, Signature
from serving.auth import require
from serving.data_plane import DataPlane, ModelRef, Prediction, Work
from serving.errors import InvalidRequestError
from serving.protocols.classification import CLASSIFY, REGRESS, classification, regression, work_on_examples
from serving.protocols.json_examples import serialized
from serving.protocols.json_tensors import columns, dumps, is_base64, parse_object, rows, shown, to_array
from serving.protocols.model_service import status_response
from serving.protocols.prediction_service import SIGNATURE_DEF, check_signature, signature_map
from serving.rest_server import HttpAnswer, HttpRequest, Route
from serving.scheduling import Urgency
from serving.validation import validate

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.I)
_STATUS = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", re.I)
_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class TensorFlowRest:
    """Routes below `/v1/`. `check_method`: as for the gRPC service."""

    data_plane: DataPlane
    check_method: bool = False

    def routes(self, method: str, path: str) -> Route | None:
        """What answers a method and a path."""
        if not path.lower().startswith("/v1/"):
            return None
        call, status = _CALL.fullmatch(path), _STATUS.fullmatch(path)
        if method == "POST" and call is not None:
            answer = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[
                call["method"].lower()
            ]

            def run(request: HttpRequest, waiting: Urgency) -> HttpAnswer:
                waiting.timeline.api = call["method"].lower()
                return answer(_ref(call), request, waiting)

            return run
        if method == "GET" and status is not None:
            answer = self._metadata if status["metadata"] else self._status
            return lambda request, waiting: answer(_ref(status))

        def malformed(request: HttpRequest, waiting: Urgency) -> HttpAnswer:
            raise InvalidRequestError(f"Malformed request: {method} {path[:200]}")

        return malformed

    def _predict(self, ref: ModelRef, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        by_row = False

        def decode(manifest: Manifest) -> Work:
            nonlocal by_row
            document, signature = parse_object(request.body), manifest.signature
            name = _signature_name(document)
            if ("instances" in document) == ("inputs" in document):
                raise InvalidRequestError(
                    "Missing 'inputs' or 'instances' key"
                    if "inputs" not in document
                    else "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
                )
            by_row = "instances" in document
            check_signature(name, signature)
            read = _instances if by_row else _inputs
            inputs = read(document["instances" if by_row else "inputs"], signature)
            return Work(validate(inputs, signature, manifest.max_candidates))

        def encode(found: Prediction) -> HttpAnswer:
            # TensorFlow Serving's map of outputs is sorted by name.
            outputs = dict(sorted(found.outputs.items()))
            if by_row:
                return HttpAnswer(dumps({"predictions": rows(outputs)}))
            return HttpAnswer(dumps({"outputs": columns(outputs)}))

        return self.data_plane.run(ref, urgency, decode, encode)

    def _classify(self, ref: ModelRef, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        def encode(found: Prediction) -> HttpAnswer:
            results = classification(found).classifications
            return HttpAnswer(
                dumps({"results": [[[c.label, np.float32(c.score)] for c in r.classes] for r in results]})
            )

        return self._on_examples(CLASSIFY, ref, request, urgency, encode)

    def _regress(self, ref: ModelRef, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        def encode(found: Prediction) -> HttpAnswer:
            values = [r.value for r in regression(found).regressions]
            return HttpAnswer(dumps({"results": np.array(values, np.float32)}))

        return self._on_examples(REGRESS, ref, request, urgency, encode)

    def _on_examples(
        self,
        method: str,
        ref: ModelRef,
        request: HttpRequest,
        urgency: Urgency,
        encode: Callable[[Prediction], HttpAnswer],
    ) -> HttpAnswer:
        def decode(manifest: Manifest) -> Work:
            document = parse_object(request.body)
            name, examples = _signature_name(document), serialized(document)
            return work_on_examples(manifest, examples, name, method, check_method=self.check_method)

        return self.data_plane.run(ref, urgency, decode, encode)

    def _status(self, ref: ModelRef) -> HttpAnswer:
        require("status", ref.name)
        found = self.data_plane.repository.statuses(ref.name, ref.version, ref.label)
        return HttpAnswer(_json(status_response(found)))

    def _metadata(self, ref: ModelRef) -> HttpAnswer:
        manifest, version = self.data_plane.manifest(ref)
        spec = {"name": ref.name, "signature_name": "", "version": str(version)}
        signatures = _dict(signature_map(manifest.signature))
        return HttpAnswer(dumps({"model_spec": spec, "metadata": {SIGNATURE_DEF: signatures}}))


def _ref(match: re.Match[str]) -> ModelRef:
    if match["name"] is None:
        raise InvalidRequestError("Missing model name in request.")
    version = None if match["version"] is None else match["version"]
    if version is not None and (len(version) > 19 or int(version) > _MAX_VERSION):
        raise InvalidRequestError(f"Failed to convert version: {version[:200]} to numeric.")
    return ModelRef(match["name"], None if version is None else int(version), match["label"])


def _signature_name(document: Mapping[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"JSON Value: {shown(name)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _instances(value: object, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs in row format: one entry for each row, an object where there are several inputs."""
    if not isinstance(value, list):
        raise InvalidRequestError("Expecting 'instances' to be a list/array")
    if not value:
        raise InvalidRequestError("No values in 'instances' array")
    specs = {spec.name: spec for spec in signature.inputs}
    named = isinstance(value[0], dict) and not is_base64(value[0])
    if not named and len(specs) > 1:
        raise InvalidRequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required: "
            f"{', '.join(specs)}"
        )
    for i, row in enumerate(value):
        is_object = isinstance(row, dict) and not is_base64(row)
        if is_object != named:
            raise InvalidRequestError(
                f"Expecting {'object but got value/list' if named else 'value/list but got object'} at item "
                f"{i} of input list"
            )
        if named and row.keys() != specs.keys():
            raise InvalidRequestError(
                f"Failed to process element: {i} of 'instances' list. It has the keys "
                f"{', '.join(row)[:1000]}; keys must be equal to: {', '.join(specs)}"
            )
    if not named:
        (spec,) = specs.values()
        return {spec.name: to_array(value, spec.name, spec.dtype)}
    return {name: _named(name, [row[name] for row in value], signature) for name in specs}


def _inputs(value: object, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs in column format: an object, or the value of a lone input."""
    if not isinstance(value, dict) or is_base64(value):
        if len(signature.inputs) != 1:
            raise InvalidRequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required: "
                f"{', '.join(spec.name for spec in signature.inputs)}"
            )
        return {spec.name: to_array(value, spec.name, spec.dtype) for spec in signature.inputs}
    for spec in signature.inputs:
        if spec.name not in value:
            raise InvalidRequestError(f"Missing named input: {spec.name} in 'inputs' object.")
    return {spec.name: _named(spec.name, value[spec.name], signature) for spec in signature.inputs}


def _named(name: str, value: object, signature: Signature) -> np.ndarray:
    spec = next(spec for spec in signature.inputs if spec.name == name)
    try:
        return to_array(value, spec.name, spec.dtype)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"Failed to process key: {name}. Error: {error}") from None


def _dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _json(message: Any) -> bytes:
    return dumps(_dict(message))
