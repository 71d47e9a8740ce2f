from serving.wire import predict_pb2 as _predict_pb2
from serving.wire import server_config_pb2 as _server_config_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogMetadata(_message.Message):
    __slots__ = ("model_spec", "sampling_config", "timestamp_secs", "arrival_ns")
    MODEL_SPEC_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_SECS_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_NS_FIELD_NUMBER: _ClassVar[int]
    model_spec: _predict_pb2.ModelSpec
    sampling_config: _server_config_pb2.SamplingConfig
    timestamp_secs: int
    arrival_ns: int
    def __init__(self, model_spec: _Optional[_Union[_predict_pb2.ModelSpec, _Mapping]] = ..., sampling_config: _Optional[_Union[_server_config_pb2.SamplingConfig, _Mapping]] = ..., timestamp_secs: _Optional[int] = ..., arrival_ns: _Optional[int] = ...) -> None: ...
