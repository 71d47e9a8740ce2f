"""Describes the services to reflection clients under their public names, without touching the process's
descriptor pool.

A client such as grpcurl asks for `tensorflow.serving.PredictionService`. Our messages are registered under
our own package; here their descriptors are renamed into a pool of their own.
"""

from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from serving.wire import (
    inference_pb2,
    kserve_pb2,
    model_service_pb2,
    predict_pb2,
    ranking_pb2,
    server_config_pb2,
    tensor_pb2,
)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"
RANKING_SERVICE = "jaxrank.ranking.RankingService"
_PREFIX = "jaxrank."
_OWN = ranking_pb2.DESCRIPTOR.package
"""This package has its public name."""


def public_pool() -> DescriptorPool:
    """Descriptors of the services under their public names, and of health checking and reflection."""
    pool = DescriptorPool()
    for module in (any_pb2, wrappers_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    public = (tensor_pb2, predict_pb2, inference_pb2, server_config_pb2, model_service_pb2, kserve_pb2)
    for module in (*public, ranking_pb2):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        if file.package != _OWN:
            file.package = file.package.removeprefix(_PREFIX)
        for message in file.message_type:
            _rename_types(message)
        for service in file.service:
            for method in service.method:
                method.input_type = _public(method.input_type)
                method.output_type = _public(method.output_type)
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _rename_types(message: DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _public(field.type_name)
    for nested in message.nested_type:
        _rename_types(nested)


def _public(name: str) -> str:
    if name.startswith(f".{_OWN}."):
        return name
    return name.replace(f".{_PREFIX}", ".", 1) if name.startswith(f".{_PREFIX}") else name
