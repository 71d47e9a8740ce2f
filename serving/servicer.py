"""TensorFlow Serving's PredictionService over the repository: decode, predict, encode.

Messages arrive as bytes and are parsed here, so that a damaged one gets a status of its own. Every error
becomes a status in `_answer`, nowhere else.
"""

import logging
import uuid
from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.message import DecodeError, Message

from jaxrank.manifest import Signature, TensorSpec
from serving.errors import InvalidRequestError, ServingError, SignatureNotFoundError
from serving.repository import ModelRepository
from serving.validation import decode_inputs
from serving.wire import predict_pb2 as pb
from serving.wire import tensor_pb2
from serving.wire.codec import dtype_number, encode, shape_proto
from serving.wire.reflection import SERVICE

log = logging.getLogger("jaxrank")

DEFAULT_SIGNATURE = "serving_default"
_SIGNATURE_DEF = "signature_def"
M = TypeVar("M", bound=Message)


class PredictionServicer:
    """The two calls, each from request bytes to response bytes. `handler` binds them under the public
    name."""

    def __init__(self, repository: ModelRepository):
        self._repository = repository

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.Server.add_generic_rpc_handlers`."""
        calls = {"Predict": self._predict, "GetModelMetadata": self._metadata}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(_answer(call)) for name, call in calls.items()},
        )

    def _predict(self, data: bytes) -> bytes:
        request = _parse(pb.PredictRequest, data)
        with self._repository.lend(request.model_spec.name, _version(request.model_spec)) as (model, version):
            signature = model.manifest.signature
            _check_signature(request.model_spec.signature_name, signature)
            wanted = _output_filter(list(request.output_filter), signature)
            inputs = decode_inputs(request.inputs, signature, model.manifest.max_candidates)
            outputs = model.predict(inputs, wanted)
        response = pb.PredictResponse(model_spec=_spec(request.model_spec.name, version, signature.name))
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(encode(value))
        return response.SerializeToString()

    def _metadata(self, data: bytes) -> bytes:
        request = _parse(pb.GetModelMetadataRequest, data)
        if not request.metadata_field:
            raise InvalidRequestError(f"metadata_field is empty; ask for {_SIGNATURE_DEF!r}")
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise InvalidRequestError(
                    f"there is no metadata_field {name[:200]!r}; ask for {_SIGNATURE_DEF!r}"
                )
        with self._repository.lend(request.model_spec.name, _version(request.model_spec)) as (model, version):
            signature = model.manifest.signature
        definition = tensor_pb2.SignatureDef(
            inputs={t.name: _tensor_info(t) for t in signature.inputs},
            outputs={t.name: _tensor_info(t) for t in signature.outputs},
            method_name=signature.method_name,
        )
        packed = AnyProto(
            type_url="type.googleapis.com/tensorflow.serving.SignatureDefMap",
            value=pb.SignatureDefMap(signature_def={signature.name: definition}).SerializeToString(),
        )
        return pb.GetModelMetadataResponse(
            model_spec=_spec(request.model_spec.name, version, ""), metadata={_SIGNATURE_DEF: packed}
        ).SerializeToString()


def _answer(call: Callable[[bytes], bytes]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A gRPC method of `call`; the one place where errors become statuses."""

    def run(data: bytes, context: grpc.ServicerContext) -> bytes:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed while the request waited")
        try:
            return call(data)
        except ServingError as error:
            context.abort(error.code, str(error))
        except Exception:
            number = uuid.uuid4().hex[:8]
            log.exception("request failed, error %s", number)
            context.abort(
                grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log has the details"
            )

    return run


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a {kind.__name__}: {len(data)} bytes do not parse"
        ) from error


def _version(spec: pb.ModelSpec) -> int | None:
    if spec.WhichOneof("version_choice") == "version_label":
        raise InvalidRequestError(
            f"version label {spec.version_label[:200]!r}: labels are not supported; give a version "
            "number, or none"
        )
    if not spec.name:
        raise InvalidRequestError("model_spec.name is empty; name the model")
    return spec.version.value if spec.HasField("version") else None


def _check_signature(name: str, signature: Signature) -> None:
    if name not in ("", DEFAULT_SIGNATURE, signature.name):
        raise SignatureNotFoundError(
            f"there is no signature {name[:200]!r}; this model has {signature.name!r}"
        )


def _output_filter(names: list[str], signature: Signature) -> list[str] | None:
    known = [t.name for t in signature.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequestError(
                f"output_filter names {name[:200]!r}; the outputs are: {', '.join(known)}"
            )
    return names or None


def _spec(name: str, version: int, signature: str) -> pb.ModelSpec:
    spec = pb.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return spec


def _tensor_info(spec: TensorSpec) -> tensor_pb2.TensorInfo:
    return tensor_pb2.TensorInfo(
        name=spec.tensor_name, dtype=dtype_number(spec.dtype), tensor_shape=shape_proto(spec.shape)
    )
