"""What the suite `serve` sends, and what is answered to a single request."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np

from bench.serve_load import Requests, write_requests
from bench.user_models import UserModel
from bench.workloads import Traffic, WorkloadError
from jaxrank.manifest import Signature
from serving.errors import InvalidRequestError
from serving.wire import predict_pb2 as pb
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import PREDICTION_SERVICE

if TYPE_CHECKING:
    from bench.dense_models import DenseModel

USERS = 16_384
"""Of one load. What a server makes of a user is kept for 5 s: at up to 3,276 requests a second nobody is
found there again."""
KEPT_SECONDS = 5.0
_CANDIDATES = 63
"""Lists of candidates."""
_SEED = 8_500
_TIMEOUT = 60.0


def requests(model: "DenseModel | UserModel", work: Path, count: int = USERS) -> tuple[Path, bytes]:
    """A file of requests of `count` users, and the first of them. A user's own model has as many users as
    examples."""
    if isinstance(model, UserModel):
        users, rows, draw = len(model.examples), model.candidates, model.sent
    else:
        users, rows, draw = count, 1, model.request

    def drawn(rows: int, seed: int, candidates: bool) -> bytes:
        part = {n: v for n, v in draw(rows, seed).items() if (model.inputs[n][0] is None) == candidates}
        # Which values lie aligned in a message, and are not copied, is the same in each run.
        return _message(part).SerializeToString(deterministic=True)

    named = pb.PredictRequest(model_spec=_spec(model)).SerializeToString()
    made = Requests(
        [named + drawn(rows, _SEED + seed, candidates=False) for seed in range(users)],
        [drawn(model.candidates, _SEED + seed, candidates=True) for seed in range(_CANDIDATES)],
    )
    directory = work / model.name
    directory.mkdir(parents=True, exist_ok=True)
    return write_requests(directory / "requests.msgpack", made), made.message(0)


def first_scores(model: "DenseModel | UserModel") -> Mapping[str, np.ndarray]:
    """TensorFlow's scores of the first request as far as a bundle knows them."""
    return model.example(model.candidates, _SEED).outputs if isinstance(model, UserModel) else {}


def replayed(traffic: Traffic, model: UserModel, work: Path) -> Path:
    """A file of recorded requests to a model, each as TensorFlow's signature takes it.

    Raises `WorkloadError` for a request that does not fit the signature.
    """
    from converters.errors import ConversionError
    from converters.examples import repeat_request_rows
    from converters.examples.fitting import fit

    messages = []
    for number, request in enumerate(traffic.requests):
        try:
            features = {name: decode(name, tensor) for name, tensor in request.inputs.items()}
            features = repeat_request_rows(model.signature, fit(features, model.signature, "it"))
        except (ConversionError, InvalidRequestError) as error:
            raise WorkloadError(f"recorded request {number} is not one to {model.name}: {error}") from error
        message = _message(features)
        message.model_spec.CopyFrom(_spec(model))
        messages.append(message.SerializeToString())
    (work / model.name).mkdir(parents=True, exist_ok=True)
    return write_requests(work / model.name / "replayed.msgpack", Requests(messages, [b""]))


def _spec(model: "DenseModel | UserModel") -> pb.ModelSpec:
    signature: Signature | None = model.signature if isinstance(model, UserModel) else None
    return pb.ModelSpec(name=model.name, signature_name=signature.name if signature else "")


def _message(features: Mapping[str, np.ndarray]) -> pb.PredictRequest:
    request = pb.PredictRequest()
    for name, value in features.items():
        request.inputs[name].CopyFrom(encode_content(value))
    return request


def answer(address: str, request: bytes) -> bytes:
    """Raises `grpc.RpcError`."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        return channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")(request, timeout=_TIMEOUT)


def scores(address: str, request: bytes) -> dict[str, np.ndarray]:
    """Numbers that a server answers, by output. Raises `grpc.RpcError`."""
    outputs = pb.PredictResponse.FromString(answer(address, request)).outputs
    decoded = {name: decode(name, tensor) for name, tensor in outputs.items()}
    return {name: value for name, value in decoded.items() if value.dtype != object}


def degradation_config(model: "DenseModel | UserModel") -> dict | None:
    """Half of the candidates, then a quarter, are scored exactly; a candidate feature stands for a score that
    recall gave. None where no feature can."""
    named = (n for n, s in model.inputs.items() if s[0] is None)
    name = model.prior if isinstance(model, UserModel) else next(named)
    if name is None:
        return None
    prior = {"prior": name, **({"column": 0} if len(model.inputs[name]) > 1 else {})}
    steps = [{"kind": "candidates", "exact": model.candidates // n, **prior} for n in (2, 4)]
    return {"models": {model.name: {"steps": steps}}}
