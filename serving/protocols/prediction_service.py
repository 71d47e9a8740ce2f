"""TensorFlow Serving's PredictionService over the data plane."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyProto

from jaxrank.manifest import Manifest, Signature, TensorSpec
from serving.data_plane import DataPlane, ModelRef, Prediction, Work
from serving.errors import InvalidRequestError, SignatureNotFoundError, UnsupportedError
from serving.monitoring.ended import Ended
from serving.protocols.classification import (
    CLASSIFY,
    DEFAULT_SIGNATURE,
    REGRESS,
    classification,
    has_signature,
    regression,
    work_on_examples,
)
from serving.protocols.examples import serialized_examples
from serving.protocols.grpc_calls import handler, parse
from serving.scheduling import Urgency
from serving.validation import decode_inputs
from serving.wire import inference_pb2, tensor_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.codec import dtype_number, shape_proto
from serving.wire.predict_messages import read_request, write_response
from serving.wire.reflection import PREDICTION_SERVICE
from serving.workers import Workers

SIGNATURE_DEF = "signature_def"


@dataclass(frozen=True)
class PredictionService:
    """The five calls, each from request bytes to response bytes; `handler` binds them under the public name.

    Attributes:
        check_method: whether Classify and Regress look at a signature's method name.
        tensor_content: whether Predict answers in the compact encoding; TensorFlow Serving does not unless
            it is told to.
    """

    data_plane: DataPlane
    check_method: bool = False
    tensor_content: bool = False

    def handler(self, workers: Workers, ended: Ended) -> grpc.GenericRpcHandler:
        """For `grpc.Server.add_generic_rpc_handlers`."""
        return handler(
            PREDICTION_SERVICE,
            {
                "Predict": self.predict,
                "GetModelMetadata": self.metadata,
                "Classify": self.classify,
                "Regress": self.regress,
                "MultiInference": self.multi_inference,
            },
            workers,
            ended,
        )

    def predict(self, data: bytes, urgency: Urgency) -> bytes:
        request = read_request(data)

        def decode(manifest: Manifest) -> Work:
            signature = manifest.signature
            check_signature(request.spec.signature_name, signature)
            wanted = output_filter(list(request.output_filter), signature)
            return Work(decode_inputs(request.inputs, signature, manifest.max_candidates), wanted)

        def respond(found: Prediction) -> bytes:
            spec = _spec(request.spec.name, found.version, found.signature.name).SerializeToString()
            return write_response(spec, found.outputs, tensor_content=self.tensor_content)

        return self.data_plane.run(model_ref(request.spec), urgency, decode, respond)

    def metadata(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(pb.GetModelMetadataRequest, data)
        if not request.metadata_field:
            raise InvalidRequestError(f"metadata_field is empty; ask for {SIGNATURE_DEF!r}")
        for name in request.metadata_field:
            if name != SIGNATURE_DEF:
                raise InvalidRequestError(
                    f"there is no metadata_field {name[:200]!r}; ask for {SIGNATURE_DEF!r}"
                )
        manifest, version = self.data_plane.manifest(model_ref(request.model_spec))
        packed = AnyProto(
            type_url="type.googleapis.com/tensorflow.serving.SignatureDefMap",
            value=signature_map(manifest.signature).SerializeToString(),
        )
        return pb.GetModelMetadataResponse(
            model_spec=_spec(request.model_spec.name, version, ""), metadata={SIGNATURE_DEF: packed}
        ).SerializeToString()

    def classify(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(inference_pb2.ClassificationRequest, data)

        def respond(found: Prediction) -> bytes:
            return inference_pb2.ClassificationResponse(
                result=classification(found), model_spec=_answering(request.model_spec, found)
            ).SerializeToString()

        work = self._on_examples(request.model_spec, request.input, CLASSIFY)
        return self.data_plane.run(model_ref(request.model_spec), urgency, work, respond)

    def regress(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(inference_pb2.RegressionRequest, data)

        def respond(found: Prediction) -> bytes:
            return inference_pb2.RegressionResponse(
                result=regression(found), model_spec=_answering(request.model_spec, found)
            ).SerializeToString()

        work = self._on_examples(request.model_spec, request.input, REGRESS)
        return self.data_plane.run(model_ref(request.model_spec), urgency, work, respond)

    def multi_inference(self, data: bytes, urgency: Urgency) -> bytes:
        """Several methods on one input. TensorFlow Serving evaluates a signature once, and a bundle has one:
        what can be answered is one task."""
        request = parse(inference_pb2.MultiInferenceRequest, data)
        _check_tasks(request)
        task = request.tasks[0] if request.tasks else inference_pb2.InferenceTask()

        def decode(manifest: Manifest) -> Work:
            for other in request.tasks:
                if not has_signature(other.model_spec.signature_name, manifest.signature):
                    raise InvalidRequestError(
                        f"Requested signature not found in model graph: "
                        f"{other.model_spec.signature_name[:200]}; this model has {manifest.signature.name!r}"
                    )
            if len(request.tasks) > 1:
                raise InvalidRequestError(f"Duplicate evaluation of signature: {manifest.signature.name}")
            return self._on_examples(task.model_spec, request.input, task.method_name)(manifest)

        def respond(found: Prediction) -> bytes:
            result = inference_pb2.InferenceResult(model_spec=_answering(task.model_spec, found))
            if task.method_name == CLASSIFY:
                result.classification_result.CopyFrom(classification(found))
            else:
                result.regression_result.CopyFrom(regression(found))
            return inference_pb2.MultiInferenceResponse(results=[result]).SerializeToString()

        return self.data_plane.run(model_ref(task.model_spec), urgency, decode, respond)

    def _on_examples(
        self, spec: pb.ModelSpec, given: inference_pb2.Input, method: str
    ) -> Callable[[Manifest], Work]:
        def decode(manifest: Manifest) -> Work:
            return work_on_examples(
                manifest,
                serialized_examples(given),
                spec.signature_name,
                method,
                check_method=self.check_method,
            )

        return decode


def model_ref(spec: pb.ModelSpec) -> ModelRef:
    """The model that a request names."""
    match spec.WhichOneof("version_choice"):
        case "version":
            return ModelRef(spec.name, version=spec.version.value)
        case "version_label":
            return ModelRef(spec.name, label=spec.version_label)
        case _:
            return ModelRef(spec.name)


def check_signature(name: str, signature: Signature) -> None:
    """Raises `SignatureNotFoundError` unless Predict takes `name` for the bundle's signature."""
    if not has_signature(name, signature):
        raise SignatureNotFoundError(
            f"there is no signature {name[:200]!r}; this model has {signature.name!r}"
        )


def output_filter(names: list[str], signature: Signature) -> list[str] | None:
    """The outputs that a request wants, None for all. Raises `InvalidRequestError` for an unknown one."""
    known = [t.name for t in signature.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequestError(
                f"output_filter names {name[:200]!r}; the outputs are: {', '.join(known)}"
            )
    return names or None


def signature_map(signature: Signature) -> pb.SignatureDefMap:
    """A bundle's signature as TensorFlow describes it."""
    definition = tensor_pb2.SignatureDef(
        inputs={t.name: _tensor_info(t) for t in signature.inputs},
        outputs={t.name: _tensor_info(t) for t in signature.outputs},
        method_name=signature.method_name,
    )
    return pb.SignatureDefMap(signature_def={signature.name: definition})


def _check_tasks(request: inference_pb2.MultiInferenceRequest) -> None:
    for task in request.tasks:
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise InvalidRequestError(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if task.method_name not in (CLASSIFY, REGRESS):
            raise UnsupportedError(
                f"Unsupported signature method_name: {task.method_name[:200]}; use {CLASSIFY!r} or "
                f"{REGRESS!r}"
            )


def _spec(name: str, version: int, signature: str) -> pb.ModelSpec:
    spec = pb.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return spec


def _answering(asked: pb.ModelSpec, found: Prediction) -> pb.ModelSpec:
    return _spec(asked.name, found.version, asked.signature_name or DEFAULT_SIGNATURE)


def _tensor_info(spec: TensorSpec) -> tensor_pb2.TensorInfo:
    return tensor_pb2.TensorInfo(
        name=spec.tensor_name, dtype=dtype_number(spec.dtype), tensor_shape=shape_proto(spec.shape)
    )
