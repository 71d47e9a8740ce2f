"""A small client of PredictionService on NumPy arrays, for machines without TensorFlow."""

from collections.abc import Mapping, Sequence

import grpc
import numpy as np

from serving.wire import predict_pb2 as pb
from serving.wire import tensor_pb2
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import SERVICE

_MAX_MESSAGE = 256 << 20


class PredictClient:
    """One channel to a server, `host:port`. Calls raise `grpc.RpcError` with the server's status and
    message."""

    def __init__(self, address: str):
        limits = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        ]
        self.channel = grpc.insecure_channel(address, options=limits)
        self._predict = self.channel.unary_unary(
            f"/{SERVICE}/Predict", pb.PredictRequest.SerializeToString, pb.PredictResponse.FromString
        )
        self._metadata = self.channel.unary_unary(
            f"/{SERVICE}/GetModelMetadata",
            pb.GetModelMetadataRequest.SerializeToString,
            pb.GetModelMetadataResponse.FromString,
        )

    def predict(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str] = (),
        version: int | None = None,
        timeout: float | None = 30.0,
    ) -> dict[str, np.ndarray]:
        """Scores one request. Strings are object arrays of bytes; `timeout` in seconds."""
        request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model), output_filter=outputs)
        if version is not None:
            request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(encode_content(value))
        response = self._predict(request, timeout=timeout)
        return {name: decode(name, tensor) for name, tensor in response.outputs.items()}

    def signature(self, model: str, *, timeout: float | None = 30.0) -> dict[str, tensor_pb2.SignatureDef]:
        """Signatures of a model, by name."""
        request = pb.GetModelMetadataRequest(
            model_spec=pb.ModelSpec(name=model), metadata_field=["signature_def"]
        )
        packed = self._metadata(request, timeout=timeout).metadata["signature_def"]
        return dict(pb.SignatureDefMap.FromString(packed.value).signature_def)

    def close(self) -> None:
        """Closes the channel."""
        self.channel.close()
