"""A small client of PredictionService and RankingService on NumPy arrays, for machines without TensorFlow."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from serving.wire import predict_pb2 as pb
from serving.wire import ranking_pb2, tensor_pb2
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import PREDICTION_SERVICE, RANKING_SERVICE

_MAX_MESSAGE = 256 << 20


@dataclass(frozen=True)
class RequestState:
    """A prepared request: what finds it on the server, the model's version that prepared it, and for how many
    seconds it is kept."""

    handle: str
    version: int
    seconds: float


class PredictClient:
    """One channel to a server, `host:port`. Calls raise `grpc.RpcError` with the server's status and
    message."""

    def __init__(self, address: str, options: Sequence[tuple[str, int | str]] = ()):
        """`options` are gRPC channel arguments."""
        limits = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        ]
        self.channel = grpc.insecure_channel(address, options=[*limits, *options])
        self._predict = self.channel.unary_unary(
            f"/{PREDICTION_SERVICE}/Predict",
            pb.PredictRequest.SerializeToString,
            pb.PredictResponse.FromString,
        )
        self._metadata = self.channel.unary_unary(
            f"/{PREDICTION_SERVICE}/GetModelMetadata",
            pb.GetModelMetadataRequest.SerializeToString,
            pb.GetModelMetadataResponse.FromString,
        )

        service = f"/{RANKING_SERVICE}"
        ranking = ranking_pb2.RankRequest.SerializeToString, ranking_pb2.RankResponse.FromString
        self._prepare = self.channel.unary_unary(
            f"{service}/PrepareRequest",
            ranking_pb2.RequestFeatures.SerializeToString,
            ranking_pb2.RequestState.FromString,
        )
        self._rank = self.channel.unary_unary(f"{service}/Rank", *ranking)
        self._rank_slices = self.channel.stream_stream(f"{service}/RankSlices", *ranking)

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
        request = pb.PredictRequest(model_spec=_spec(model, version), output_filter=outputs)
        _put(inputs, request.inputs)
        response = self._predict(request, timeout=timeout)
        return _arrays(response.outputs)

    def prepare(
        self,
        model: str,
        features: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout: float | None = 30.0,
    ) -> RequestState:
        """Has the request's own features `[1, ...]` worked on, while its candidates are not known yet."""
        request = ranking_pb2.RequestFeatures(model_spec=_spec(model, version))
        _put(features, request.features)
        found = self._prepare(request, timeout=timeout)
        return RequestState(found.handle, found.model_spec.version.value, found.expires_in_ms / 1e3)

    def rank(
        self,
        model: str,
        request: RequestState | Mapping[str, np.ndarray],
        candidates: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str] = (),
        version: int | None = None,
        timeout: float | None = 30.0,
    ) -> dict[str, np.ndarray]:
        """Scores candidates `[N, ...]` for a prepared request, or for a request's own features."""
        asked = _rank_request(model, request, outputs, version)
        _put(candidates, asked.candidates)
        return _arrays(self._rank(asked, timeout=timeout).outputs)

    def rank_slices(
        self,
        model: str,
        request: RequestState | Mapping[str, np.ndarray],
        slices: Iterable[Mapping[str, np.ndarray]],
        *,
        outputs: Sequence[str] = (),
        version: int | None = None,
        timeout: float = 30.0,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Scores slices of candidates as they come, each as soon as it is done and in their order; `timeout`
        is for all of them."""

        def messages() -> Iterator[ranking_pb2.RankRequest]:
            message = _rank_request(model, request, outputs, version)
            for candidates in slices:
                _put(candidates, message.candidates)
                yield message
                message = ranking_pb2.RankRequest()

        for answer in self._rank_slices(messages(), timeout=timeout):
            yield _arrays(answer.outputs)

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


def _rank_request(
    model: str,
    request: RequestState | Mapping[str, np.ndarray],
    outputs: Sequence[str],
    version: int | None,
) -> ranking_pb2.RankRequest:
    asked = ranking_pb2.RankRequest(model_spec=_spec(model, version), output_filter=outputs)
    if isinstance(request, RequestState):
        asked.handle = request.handle
    else:
        _put(request, asked.request_features)
    return asked


def _spec(model: str, version: int | None) -> pb.ModelSpec:
    spec = pb.ModelSpec(name=model)
    if version is not None:
        spec.version.value = version
    return spec


def _put(values: Mapping[str, np.ndarray], tensors: MutableMapping[str, tensor_pb2.TensorProto]) -> None:
    for name, value in values.items():
        tensors[name].CopyFrom(encode_content(value))


def _arrays(tensors: Mapping[str, tensor_pb2.TensorProto]) -> dict[str, np.ndarray]:
    return {name: decode(name, tensor) for name, tensor in tensors.items()}
