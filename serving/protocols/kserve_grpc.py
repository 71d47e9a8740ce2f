"""KServe v2's GRPCInferenceService."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message

from serving.data_plane import Prediction
from serving.errors import InvalidRequestError
from serving.monitoring.ended import Ended
from serving.protocols.grpc_calls import Method, handler, parse
from serving.protocols.kserve import KServe, check_parameters, check_request_parameters, unique
from serving.protocols.kserve_tensors import checked_size, datatype_of, dtype_of, from_raw, to_raw
from serving.scheduling import Urgency
from serving.wire import kserve_pb2 as pb
from serving.wire.reflection import INFERENCE_SERVICE
from serving.workers import Workers

M = TypeVar("M", bound=Message)

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class InferenceService:
    """The calls, from request bytes to response bytes; `handler` binds them under the public name."""

    kserve: KServe

    def handler(self, workers: Workers, ended: Ended) -> grpc.GenericRpcHandler:
        """For `grpc.Server.add_generic_rpc_handlers`."""
        k = self.kserve
        methods: dict[str, Method] = {
            "ServerLive": _method(pb.ServerLiveRequest, lambda request: pb.ServerLiveResponse(live=True)),
            "ServerReady": _method(
                pb.ServerReadyRequest, lambda request: pb.ServerReadyResponse(ready=k.ready())
            ),
            "ModelReady": _method(
                pb.ModelReadyRequest,
                lambda request: pb.ModelReadyResponse(ready=k.model_ready(request.name, request.version)),
            ),
            "ServerMetadata": _method(
                pb.ServerMetadataRequest,
                lambda request: _message(pb.ServerMetadataResponse, k.server_metadata()),
            ),
            "ModelMetadata": _method(
                pb.ModelMetadataRequest,
                lambda request: _message(
                    pb.ModelMetadataResponse, k.model_metadata(request.name, request.version)
                ),
            ),
            "ModelStatistics": _method(
                pb.ModelStatisticsRequest,
                lambda request: _message(
                    pb.ModelStatisticsResponse,
                    {"model_stats": k.statistics(request.name, request.version)},
                ),
            ),
            "RepositoryIndex": _method(
                pb.RepositoryIndexRequest,
                lambda request: _message(pb.RepositoryIndexResponse, {"models": k.index(request.ready)}),
            ),
            "RepositoryModelLoad": _method(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": _method(pb.RepositoryModelUnloadRequest, self._unload),
            "ModelInfer": self._infer,
        }
        return handler(INFERENCE_SERVICE, methods, workers, ended)

    def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        self.kserve.load(request.model_name, request.parameters)
        return pb.RepositoryModelLoadResponse()

    def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        self.kserve.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _infer(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(pb.ModelInferRequest, data)

        def read() -> tuple[dict[str, np.ndarray], list[str]]:
            check_request_parameters(request.parameters)
            for output in request.outputs:
                check_parameters(output.parameters, ("binary_data",), f"output {output.name[:200]!r}")
            return _inputs(request), [output.name for output in request.outputs]

        def encode(found: Prediction) -> bytes:
            response = pb.ModelInferResponse(
                model_name=request.model_name, model_version=str(found.version), id=request.id
            )
            for name, value in found.outputs.items():
                response.outputs.add(name=name, datatype=datatype_of(value), shape=value.shape)
                response.raw_output_contents.append(to_raw(value))
            return response.SerializeToString()

        return self.kserve.infer(request.model_name, request.model_version, urgency, read, encode)


def _inputs(request: pb.ModelInferRequest) -> dict[str, np.ndarray]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; send one for "
            "each, or "
            "none"
        )
    unique([given.name for given in request.inputs])
    inputs = {}
    for i, given in enumerate(request.inputs):
        check_parameters(given.parameters, ("binary_data_size",), f"input {given.name[:200]!r}")
        if not raw:
            inputs[given.name] = _typed(given)
        elif given.HasField("contents"):
            raise InvalidRequestError(
                f"input {given.name[:200]!r} has contents, and there are raw_input_contents; send one of them"
            )
        else:
            inputs[given.name] = from_raw(given.name, given.datatype, list(given.shape), raw[i])
    return inputs


def _typed(given: pb.ModelInferRequest.InferInputTensor) -> np.ndarray:
    name, dtype = given.name, dtype_of(given.name, given.datatype)
    if given.datatype not in _FIELDS:
        raise InvalidRequestError(f"input {name!r}: {given.datatype} is sent in raw_input_contents only")
    sent = getattr(given.contents, _FIELDS[given.datatype])
    size = checked_size(name, given.shape)
    if len(sent) != size:
        raise InvalidRequestError(
            f"input {name!r} has {len(sent)} values in {_FIELDS[given.datatype]}; shape {list(given.shape)} "
            f"needs {size}"
        )
    if dtype == "string":
        values = np.empty(size, object)
        values[:] = list(sent)
        return values.reshape(given.shape)
    wide = np.array(sent, np.int64 if "int_contents" in _FIELDS[given.datatype] else dtype)
    values = wide.astype(dtype)
    if (values != wide).any() and values.dtype.kind in "iu":
        raise InvalidRequestError(f"input {name!r} has a value outside of {given.datatype}")
    return values.reshape(given.shape)


def _method(kind: type[M], answer: Callable[[M], Message]) -> Method:
    return lambda data, urgency: answer(parse(kind, data)).SerializeToString()


def _message(kind: type[M], document: dict[str, Any]) -> M:
    return json_format.ParseDict(document, kind())
