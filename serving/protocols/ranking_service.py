"""Our own RankingService: a request prepared before its candidates are there, and candidates in slices."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np

from jaxrank.manifest import Manifest
from serving.data_plane import DataPlane, ModelRef, Prediction, Work
from serving.errors import InvalidRequestError, OverloadedError
from serving.monitoring.ended import Ended
from serving.protocols.grpc_calls import Method, handler, parse
from serving.protocols.prediction_service import check_signature, model_ref, output_filter
from serving.scheduling import Urgency
from serving.state import Handle
from serving.validation import decode_candidates, decode_request
from serving.wire import predict_pb2, tensor_pb2
from serving.wire import ranking_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import RANKING_SERVICE
from serving.workers import Workers

MAX_STREAM_SECONDS = 60.0
"""Of a stream's deadline: while it waits for its client's next slice, it holds a thread."""
_ROUNDING = 1.0
"""Seconds by which gRPC may make a deadline later on its way."""


class RankingService:
    """The three calls, from request bytes to response bytes; `handler` binds them."""

    def __init__(self, data_plane: DataPlane, max_streams: int):
        """`max_streams` are open at once."""
        self._data_plane, self._max_streams = data_plane, max_streams
        self._free_streams = threading.BoundedSemaphore(max_streams)

    def handler(self, workers: Workers, ended: Ended) -> grpc.GenericRpcHandler:
        """For `grpc.Server.add_generic_rpc_handlers`. `ended` is told of every call."""
        methods = {"PrepareRequest": self.prepare, "Rank": self.rank}
        return handler(RANKING_SERVICE, methods, workers, ended, {"RankSlices": self.rank_slices})

    def prepare(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(pb.RequestFeatures, data)
        spec = request.model_spec

        def decode(manifest: Manifest) -> dict[str, np.ndarray]:
            check_signature(spec.signature_name, manifest.signature)
            return decode_request(request.features, manifest.signature)

        handle, seconds = self._data_plane.prepare(model_ref(spec), urgency, decode)
        return pb.RequestState(
            model_spec=_answering(spec, handle.version),
            handle=str(handle),
            expires_in_ms=math.floor(seconds * 1e3),
        ).SerializeToString()

    def rank(self, data: bytes, urgency: Urgency) -> bytes:
        request = parse(pb.RankRequest, data)
        ref = model_ref(request.model_spec)
        return self._rank(ref, request, request.candidates, urgency).SerializeToString()

    @contextmanager
    def rank_slices(self, urgency: Urgency) -> Iterator[Method]:
        """Opens a stream; what it gives answers a slice. The first one says what is asked; all are of the
        version that answers it.

        Raises `InvalidRequestError` for a call without a deadline, and `OverloadedError` for more streams
        than there may be; for a slice as `rank` does, and `InvalidRequestError` for a later one with more
        than candidates.
        """
        if urgency.remaining() > MAX_STREAM_SECONDS + _ROUNDING:
            raise InvalidRequestError(
                f"RankSlices needs a deadline of at most {MAX_STREAM_SECONDS:g} s; set one, or send Rank for "
                "each slice"
            )
        asked: pb.RankRequest | None = None
        ref = ModelRef("")

        def answer(data: bytes, urgency: Urgency) -> bytes:
            nonlocal asked, ref
            request = parse(pb.RankRequest, data)
            if asked is None:
                asked, ref = request, model_ref(request.model_spec)
            else:
                _check_candidates_only(request)
            found = self._rank(ref, asked, request.candidates, urgency)
            ref = replace(ref, answering=found.model_spec.version.value)
            return found.SerializeToString()

        with self._stream():
            yield answer

    def _rank(
        self,
        ref: ModelRef,
        asked: pb.RankRequest,
        candidates: Mapping[str, tensor_pb2.TensorProto],
        urgency: Urgency,
    ) -> pb.RankResponse:
        """One slice of what is asked."""
        if asked.handle and asked.request_features:
            raise InvalidRequestError("there are a handle and request_features; send one of them")
        handle = Handle.parse(asked.handle) if asked.handle else None

        def decode(manifest: Manifest) -> Work:
            signature = manifest.signature
            check_signature(asked.model_spec.signature_name, signature)
            wanted = output_filter(list(asked.output_filter), signature)
            features = {} if handle is not None else decode_request(asked.request_features, signature)
            features |= decode_candidates(candidates, signature, manifest.max_candidates)
            return Work(features, wanted, handle)

        def encode(found: Prediction) -> pb.RankResponse:
            response = pb.RankResponse(model_spec=_answering(asked.model_spec, found.version))
            for name, value in found.outputs.items():
                response.outputs[name].CopyFrom(encode_content(value))
            return response

        return self._data_plane.run(ref, urgency, decode, encode)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._free_streams.acquire(blocking=False):
            raise OverloadedError(
                f"{self._max_streams} streams of RankSlices are open, which is as many as there may be; send "
                "Rank for each slice"
            )
        try:
            yield
        finally:
            self._free_streams.release()


def _check_candidates_only(request: pb.RankRequest) -> None:
    for name in ("model_spec", "handle", "request_features", "output_filter"):
        if request.HasField(name) if name == "model_spec" else getattr(request, name):
            raise InvalidRequestError(
                f"{name} belongs to the first slice; the later ones have candidates only"
            )


def _answering(asked: predict_pb2.ModelSpec, version: int) -> predict_pb2.ModelSpec:
    spec = predict_pb2.ModelSpec(name=asked.name, signature_name=asked.signature_name)
    spec.version.value = version
    return spec
